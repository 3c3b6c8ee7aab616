"""Device profiles: what the shipped ones say, inheritance, and every problem with file, line, column and message."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from edgepipe.core.errors import ConfigError, InputError
from edgepipe.core.metric import Evidence
from edgepipe.devices import device_profile

PROFILE = """\
name: mine
description: a board
sources: [a datasheet]
system:
  core: Cortex-M4F
  architecture: Armv7E-M
  clock: 80 MHz
  memory: {ram: 128 KiB, flash: 1 MiB}
runtime: {name: tflite-micro, version: "1"}
dtypes: [int8, int32]
operators: [CONV_2D, SOFTMAX]
integer_only: true
latency: {evidence: unavailable, reason: no board}
ram: {evidence: simulated, by: tflite-micro}
flash: {evidence: exact, by: file}
"""


def write_profile(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.yaml").write_text(text)


def test_shipped_devices() -> None:
    assert {"ethos-u55-128", "host", "nucleo-l4r5zi", "raspberry-pi-4"} <= set(device_profile.device_names())
    board = device_profile.load("nucleo-l4r5zi", Path())
    assert (board.system.memory.ram, board.system.memory.flash) == (640 * 1024, 2 * 1024 * 1024)
    assert board.system.clock == 120e6
    assert board.integer_only
    assert board.ram.evidence is Evidence.SIMULATED
    host = device_profile.load("host", Path())
    assert (host.latency.evidence, host.latency.by, host.operators) == (Evidence.MEASURED, "host", None)
    ethos = device_profile.load("ethos-u55-128", Path())
    assert ethos.system.npu is not None
    assert ethos.system.npu.macs_per_cycle == 128
    assert (ethos.latency.evidence, ethos.latency.by) == (Evidence.SIMULATED, "vela")
    assert device_profile.load("raspberry-pi-4", Path()).latency.evidence is Evidence.UNAVAILABLE


def test_a_user_profile(tmp_path: Path) -> None:
    write_profile(tmp_path, "mine", PROFILE)
    device = device_profile.load("mine.yaml", tmp_path)
    assert device == device_profile.load("mine", Path(), (tmp_path,))
    assert device.operators == ("CONV_2D", "SOFTMAX")
    assert "mine" in device_profile.device_names((tmp_path,))


def test_inheritance_merges_mappings_and_the_child_wins(tmp_path: Path) -> None:
    write_profile(tmp_path, "mine", PROFILE)
    write_profile(
        tmp_path,
        "fast",
        "inherit: mine\nname: fast\ndescription: d\nsources: [s]\n"
        "system: {clock: 160 MHz, memory: {ram: 256 KiB}}\noperators: all\n"
        "ram: {evidence: unavailable, reason: other}\n",
    )
    fast = device_profile.load("fast.yaml", tmp_path)
    assert fast.system.core == "Cortex-M4F"
    assert fast.system.clock == 160e6
    assert (fast.system.memory.ram, fast.system.memory.flash) == (256 * 1024, 1024 * 1024)
    assert fast.operators is None
    assert fast.ram.by is None, "the child replaces the parent's metric source as a whole"
    assert fast.dtypes == ("int8", "int32")


def test_a_profile_may_inherit_a_shipped_one(tmp_path: Path) -> None:
    write_profile(
        tmp_path, "slow", "inherit: nucleo-l4r5zi\nname: slow\ndescription: d\nsources: [s]\nsystem: {clock: 80 MHz}\n"
    )
    assert device_profile.load("slow.yaml", tmp_path).system.memory.ram == 640 * 1024


def test_the_digest_depends_on_content_not_files(tmp_path: Path) -> None:
    write_profile(tmp_path, "mine", PROFILE)
    (tmp_path / "flat").mkdir()
    base = yaml.safe_load(PROFILE)
    child = {key: base.pop(key) for key in ("name", "description", "sources")}
    write_profile(tmp_path / "flat", "parent", "abstract: true\n" + yaml.safe_dump(base))
    write_profile(tmp_path / "flat", "mine", "inherit: parent\n" + yaml.safe_dump(child))
    single_file, split_files = (
        device_profile.load("mine.yaml", tmp_path),
        device_profile.load("flat/mine.yaml", tmp_path),
    )
    assert device_profile.digest(single_file) == device_profile.digest(split_files)
    write_profile(tmp_path, "mine", PROFILE.replace("128 KiB", "127 KiB"))
    assert device_profile.digest(device_profile.load("mine.yaml", tmp_path)) != device_profile.digest(single_file)


ALL_DTYPES = (
    "int8, uint8, int16, uint16, int32, uint32, int64, uint64, int4, uint4, int2, bool, "
    "float16, bfloat16, float32, float64, complex64, string, resource, variant"
)
MALFORMED_PROFILES = [  # text to replace, its replacement, the problem
    ("clock: 80 MHz", "clok: 80 MHz", "7:3: system.clok: unknown option; did you mean 'clock'?"),
    ("80 MHz", "80", "7:10: system.clock: '80' has no unit; allowed: Hz, kHz, MHz, GHz"),
    ("80 MHz", "80 KiB", "7:10: system.clock: 'KiB' is not a unit of hertz; allowed: Hz, kHz, MHz, GHz"),
    ("80 MHz", "0 MHz", "7:10: system.clock: should be greater than 0; found the text '0 MHz'"),
    (
        "ram: 128 KiB",
        "ram: much",
        "8:17: system.memory.ram: 'much' is not a quantity; write a number and a unit, one of: "
        "B, KiB, MiB, GiB, kB, KB, MB, GB",
    ),
    ("name: mine\n", "name: yours\n", "1:7: name: 'yours' must equal the name of its file, 'mine'"),
    ("name: mine\n", "", "1:1: name: is required but missing"),
    (
        "[a datasheet]",
        "[]",
        "3:10: sources: must be a list of citations, or map fields to citations, found an empty list",
    ),
    ("  core: Cortex-M4F\n", "", "5:3: system.core: is required but missing"),
    (
        "name: tflite-micro",
        "name: tflite-mirco",
        "9:17: runtime.name: found 'tflite-mirco'; allowed: litert, tflite-micro, vela, x-cube-ai, "
        "neural-art, openvx, edgetpu; did you mean 'tflite-micro'?",
    ),
    ('version: "1"', "version: 1", "9:40: runtime.version: should be a text; found the number 1"),
    (
        "[int8, int32]",
        "[int8, int33]",
        f"10:16: dtypes.1: found 'int33'; allowed: {ALL_DTYPES}; did you mean 'int32'?",
    ),
    (
        "[CONV_2D, SOFTMAX]",
        "[CONV_2D, SOFTMX]",
        "11:22: operators.1: unknown operator 'SOFTMX'; did you mean 'SOFTMAX'?",
    ),
    (
        "[CONV_2D, SOFTMAX]",
        "every",
        "11:12: operators: must be `all` or a list of TFLite operators such as CONV_2D",
    ),
    ("integer_only: true", "integer_only: yes", "12:15: integer_only: should be true or false; found the text 'yes'"),
    (
        "{evidence: unavailable, reason: no board}",
        "{evidence: unavailable}",
        "13:10: latency: `unavailable` needs a `reason` (why, and what would make it available) and no `by`",
    ),
    (
        "{evidence: simulated, by: tflite-micro}",
        "{evidence: measured, by: tflite-micro}",
        "14:6: ram: `by: tflite-micro` gives `evidence: simulated`, found `measured`",
    ),
    (
        "{evidence: exact, by: file}",
        "{evidence: exact}",
        "15:8: flash: `exact` needs `by` (host, tflite-micro, vela, file, program, fit, transfer, calibration, plan, "
        "weights) and no `reason`",
    ),
    (
        "{evidence: exact, by: file}",
        "{evidence: counted, by: file}",
        "15:19: flash.evidence: should be 'exact', 'measured', 'simulated', 'estimated' or 'unavailable'; "
        "found the text 'counted'",
    ),
    (
        "dtypes: [int8, int32]\n",
        "dtypes: [int8]\ndtypes: [int8]\n",
        "11:1: dtypes: duplicate key; the first is on line 10",
    ),
    (
        "name: mine\n",
        "name: mine\ninherit: runtimes/litter\n",
        "2:10: inherit: unknown profile 'runtimes/litter'; did you mean 'runtimes/litert'?",
    ),
    ("name: mine\n", "name: mine\ninherit: hots\n", "2:10: inherit: unknown profile 'hots'; did you mean 'host'?"),
    (
        "name: mine\n",
        "name: mine\ninherit: [host, hots]\n",
        "2:17: inherit.1: unknown profile 'hots'; did you mean 'host'?",
    ),
    (
        "name: mine\n",
        "name: mine\ninherit: 3\n",
        "2:10: inherit: must name one profile or a list of them, found the number 3",
    ),
    (
        "{evidence: simulated, by: tflite-micro}",
        "{evidence: estimated, by: plan}",
        "14:6: ram: `by: plan` needs `ratio`",
    ),
    (
        "{evidence: simulated, by: tflite-micro}",
        "{evidence: estimated, by: plan, ratio: 1.0, interval: [2.0, 1.0]}",
        "14:6: ram: `interval` must go from the lower to the higher, found [2.0, 1.0]",
    ),
    (
        "{evidence: exact, by: file}",
        "{evidence: estimated, by: weights, interval: [1.0, 2.0], ratio: 1.0}",
        "15:8: flash: `ratio` belongs to `by: plan`",
    ),
    (
        "{evidence: exact, by: file}",
        "{evidence: exact, by: file, plus: 1 KiB}",
        "15:8: flash: `plus` belongs to `by: plan` or `by: weights` or `by: program`",
    ),
    (
        "operators: [CONV",
        "rules: [static-shape]\noperators: [CONV",
        f"11:9: rules.0: found 'static-shape'; allowed: {', '.join(get_args(device_profile.RuleName))}; "
        "did you mean 'static-shapes'?",
    ),
    ("name: mine\n", "name: mine\nabstract: maybe\n", "2:11: abstract: must be true or false, found the text 'maybe'"),
    (PROFILE, "- a\n", "1:1: a device profile is a mapping, found a list"),
    (PROFILE, "a: [\n", "2:1: not valid YAML: expected the node content, but found '<stream end>'"),
    (PROFILE, "", "1:1: the file is empty"),
]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    MALFORMED_PROFILES,
    ids=[message.split(": ", 1)[1][:50] for *_, message in MALFORMED_PROFILES],
)
def test_malformed(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in PROFILE
    write_profile(tmp_path, "mine", PROFILE.replace(old, new))
    with pytest.raises(ConfigError) as error:
        device_profile.load("mine.yaml", tmp_path)
    expected_problem = f"{tmp_path}/mine.yaml:{message}"
    assert [str(problem) for problem in error.value.problems] == [expected_problem]


def test_all_problems_at_once(tmp_path: Path) -> None:
    write_profile(
        tmp_path, "mine", PROFILE.replace("80 MHz", "80").replace("SOFTMAX", "SOFT").replace("int32", "int33")
    )
    with pytest.raises(ConfigError) as error:
        device_profile.load("mine.yaml", tmp_path)
    assert [problem.line for problem in error.value.problems] == [7, 10, 11]


def test_a_problem_in_an_inherited_value_points_at_the_file_that_holds_it(tmp_path: Path) -> None:
    write_profile(tmp_path, "parent", PROFILE.replace("name: mine\n", "abstract: true\n").replace("80 MHz", "80"))
    write_profile(tmp_path, "child", "inherit: parent\nname: child\ndescription: d\nsources: [s]\nsystem: {cores: 0}\n")
    with pytest.raises(ConfigError) as error:
        device_profile.load("child.yaml", tmp_path)
    assert [str(problem) for problem in error.value.problems] == [
        f"{tmp_path}/child.yaml:5:17: system.cores: should be greater than or equal to 1; found the number 0",
        f"{tmp_path}/parent.yaml:7:10: system.clock: '80' has no unit; allowed: Hz, kHz, MHz, GHz",
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_cycles_of_any_length(length: int, tmp_path: Path) -> None:
    for index in range(length):
        write_profile(tmp_path, f"d{index}", f"name: d{index}\ninherit: d{(index + 1) % length}\n")
    with pytest.raises(ConfigError) as error:
        device_profile.load("d0.yaml", tmp_path)
    cycle = " -> ".join(f"d{index % length}" for index in range(length + 1))
    problems = [str(problem) for problem in error.value.problems]
    assert problems == [f"{tmp_path}/d{length - 1}.yaml:2:10: inherit: inherits itself: {cycle}"]


def test_a_cycle_further_up_names_only_the_cycle(tmp_path: Path) -> None:
    for name, parent in (("a", "b"), ("b", "c"), ("c", "b")):
        write_profile(tmp_path, name, f"inherit: {parent}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:1:10: inherit: inherits itself: b -> c -> b$"):
        device_profile.load("a.yaml", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nucleo-l4r5z",
            r"unknown device 'nucleo-l4r5z'; did you mean 'nucleo-l4r5zi'\? \(the path of a",
        ),
        ("../devices/host", r"unknown device '\.\./devices/host'"),
        ("cortex-m-tflite-micro", "'cortex-m-tflite-micro' is abstract and can only be inherited; devices: android"),
        ("gone.yaml", r"gone\.yaml: cannot be read: No such file"),
    ],
)
def test_unknown_and_abstract_devices(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        device_profile.load(name, tmp_path)


def test_loading_a_device_imports_no_numpy() -> None:
    code = (
        "import sys, pathlib; from edgepipe.devices import device_profile\n"
        "[device_profile.load(name, pathlib.Path()) for name in device_profile.device_names()]\n"
        "print([m for m in ('numpy', 'tensorflow', 'keras', 'ai_edge_litert') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
