"""The shipped devices, put together from systems and runtimes: each number with its source, each source inherited."""

from pathlib import Path

import pytest

from edgepipe.core.errors import ConfigError
from edgepipe.core.metric import Evidence
from edgepipe.devices import citations, device_profile
from edgepipe.render import devices

HERE = Path(__file__).parent
BOARD = """\
abstract: true
system:
  core: Cortex-M4F
  architecture: Armv7E-M
  clock: 80 MHz
  memory:
    ram: 128 KiB
    banks: [{name: SRAM, kind: ram, size: 128 KiB}, {name: cache, kind: cache, size: 1 KiB}]
sources: {system: board sheet, system.memory.banks.1: core manual}
"""
RUNTIME = """\
abstract: true
runtime: {name: tflite-micro, version: "1", threads: 2}
dtypes: [int8]
operators: all
latency: {evidence: unavailable, reason: no board}
ram: {evidence: simulated, by: tflite-micro}
flash: {evidence: exact, by: file}
sources: {runtime.threads: release notes}
"""


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for name, text in (("systems/board", BOARD), ("runtimes/micro", RUNTIME)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def load(folder: Path, text: str) -> device_profile.Device:
    (folder / "mine.yaml").write_text(f"name: mine\ndescription: d\ninherit: [systems/board, runtimes/micro]\n{text}")
    return device_profile.load("mine.yaml", folder)


def source(device: device_profile.Device, path: str) -> str | None:
    return citations.source_of(device.sources, citations.parse_path(path))


def test_a_device_is_a_system_and_a_runtime(parts: Path) -> None:
    device = load(parts, "")
    assert (device.system.clock, device.runtime.threads, device.ram.by) == (80e6, 2, "tflite-micro")
    assert source(device, "system.clock") == "board sheet"
    assert source(device, "system.memory.banks.0.size") == "board sheet"
    assert source(device, "system.memory.banks.1.size") == "core manual"
    assert source(device, "runtime.threads") == "release notes"
    assert source(device, "dtypes") is None


def test_later_parents_lie_over_earlier_ones(parts: Path) -> None:
    (parts / "systems" / "fast.yaml").write_text("abstract: true\nsystem: {clock: 160 MHz}\n")
    (parts / "mine.yaml").write_text(
        "name: mine\ndescription: d\ninherit: [systems/board, systems/fast, runtimes/micro]\n"
    )
    device = device_profile.load("mine.yaml", parts)
    assert device.system.clock == 160e6
    assert source(device, "system.clock") is None, "nobody gave a source for the new value"
    assert source(device, "system.memory.ram") == "board sheet"


CHILD = [  # what the child says, a path, its source
    ("system: {clock: 40 MHz}\n", "system.clock", None),
    ("system: {clock: 40 MHz}\n", "system.memory.ram", "board sheet"),
    ("system: {clock: 40 MHz}\nsources: {system.clock: measured}\n", "system.clock", "measured"),
    ("system: {clock: 40 MHz}\nsources: {system: schematic}\n", "system.clock", "schematic"),
    ("system: {clock: 40 MHz}\nsources: {system: schematic}\n", "system.memory.ram", "board sheet"),
    ("system: {clock: 40 MHz}\nsources: [schematic, me]\n", "system.clock", "schematic; me"),
    ("sources: [schematic]\n", "dtypes", "schematic"),
    ("sources: [schematic]\n", "system.clock", "board sheet"),
    ("system: {memory: {banks: [{name: X, kind: ram, size: 1 KiB}]}}\n", "system.memory.banks.0.size", None),
]


@pytest.mark.parametrize(("text", "path", "expected"), CHILD)
def test_a_source_goes_with_the_number_that_it_covers(text: str, path: str, expected: str | None, parts: Path) -> None:
    assert source(load(parts, text), path) == expected


BAD = [
    ("sources: {system.clok: s}\n", "4:11: sources.system.clok: this profile has no field 'system.clok'; did you mean "
     "'system.clock'?"),
    ("sources: {system.clock: 3}\n", "4:25: sources.system.clock: must be a citation, found the number 3"),
    ("sources: {system.memory.banks.7: s}\n", "4:11: sources.system.memory.banks.7: this profile has no field "
     "'system.memory.banks.7'; did you mean 'system.memory.banks.1.size'?"),
    ("sources: a sheet\n", "4:10: sources: must be a list of citations, or map fields to citations, found the text "
     "'a sheet'"),
    ("sources: [1]\n", "4:10: sources: must be a list of citations, or map fields to citations, found a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text for text, _ in BAD])
def test_wrong_sources(text: str, message: str, parts: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(parts, text)
    assert str(caught.value.problems[0]) == f"{parts}/mine.yaml:{message}"


def test_a_problem_of_a_part_points_into_the_part(parts: Path) -> None:
    (parts / "runtimes" / "micro.yaml").write_text(RUNTIME.replace("threads: 2", "threads: 0"))
    with pytest.raises(ConfigError, match=r"runtimes/micro\.yaml:2:54: runtime\.threads: should be greater than or"):
        load(parts, "")


REQUIRED = (
    *("raspberry-pi-zero-2w", "raspberry-pi-3b-plus", "raspberry-pi-4", "raspberry-pi-5", "pixel-3", "pixel-4"),
    *("android-arm64", "imx8mp", "imx93", "stm32mp157f", "stm32mp257f", "stm32n6570-dk", "stm32h747i-disco"),
    *("stm32f769i-disco", "nucleo-l4r5zi", "nucleo-u575zi-q", "b-u585i-iot02a", "nucleo-h7a3zi-q", "nrf5340-dk"),
    *("rp2040-pico", "esp32-s3", "arduino-nano-33-ble", "coral-edge-tpu", "host"),
)


def test_the_devices_of_the_project_are_there() -> None:
    assert len(REQUIRED) == 24
    assert set(REQUIRED) <= set(device_profile.names())


@pytest.mark.parametrize("name", device_profile.names())
def test_each_number_of_a_shipped_device_has_a_source(name: str) -> None:
    device = device_profile.load(name, HERE)
    bare = [
        path
        for path in device_profile.stated_numbers(device)
        if len(citations.source_of(device.sources, path) or "") < 20
    ]
    assert bare == []


@pytest.mark.parametrize("name", device_profile.names())
def test_each_shipped_device_is_whole(name: str) -> None:
    device = device_profile.load(name, HERE)
    memory = device.system.memory
    for kind, most in (("ram", memory.ram), ("flash", memory.flash)):
        banks = [bank.size for bank in memory.banks if bank.kind == kind]
        assert not banks or (most is not None and max(banks) <= most <= sum(banks)), f"{kind} of {name}"
    for obtained in (device.latency, device.ram, device.flash):
        assert (obtained.evidence is Evidence.UNAVAILABLE) == (len(obtained.reason or "") > 30)


def test_parts_are_abstract_and_each_is_used() -> None:
    folder = device_profile.shipped_folder()
    files = {file.relative_to(folder).with_suffix("").as_posix(): file.read_text() for file in folder.rglob("*.yaml")}
    parts = {name for name in files if "/" in name}
    assert [name for name in parts if "\nabstract: true\n" not in f"\n{files[name]}"] == []
    used = {name for name in parts if any(name in text for text in files.values())}
    used |= {name for name in parts if any(f"inherit: {name.split('/')[1]}\n" in text for text in files.values())}
    assert used == parts


def test_show_gives_each_number_its_source(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(parts, "system: {clock: 40 MHz}\n")
    monkeypatch.chdir(parts)
    (table,) = devices.tables("mine.yaml")
    rows = {what.strip(): (value, given) for what, value, given in table.rows}
    assert table.columns == ("what", "value", "source")
    assert rows["clock"] == ("40 MHz", devices.NO_SOURCE)
    assert rows["RAM"] == ("128.0 KiB", "board sheet")
    assert rows["cache"] == ("1.0 KiB cache", "core manual")
    assert rows["threads"] == ("2", "release notes")
    assert rows["operators"] == ("all", "")
