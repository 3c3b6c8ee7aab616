"""The shipped devices, composed of systems and runtimes: each number has a source, and sources are inherited."""

from pathlib import Path

import pytest

from edgepipe.core.errors import ConfigError
from edgepipe.core.metric import Evidence
from edgepipe.core.shipped_files import shipped_folder
from edgepipe.devices import citations, device_profile
from edgepipe.render import devices

FOLDER = Path(__file__).parent
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
def profile_folder(tmp_path: Path) -> Path:
    for name, text in (("systems/board", BOARD), ("runtimes/micro", RUNTIME)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def load(folder: Path, text: str) -> device_profile.Device:
    (folder / "mine.yaml").write_text(f"name: mine\ndescription: d\ninherit: [systems/board, runtimes/micro]\n{text}")
    return device_profile.load("mine.yaml", folder)


def source(device: device_profile.Device, path: str) -> str | None:
    return citations.find_citation(device.sources, citations.parse_path(path))


def test_a_device_is_a_system_and_a_runtime(profile_folder: Path) -> None:
    device = load(profile_folder, "")
    assert (device.system.clock, device.runtime.threads, device.ram.by) == (80e6, 2, "tflite-micro")
    assert source(device, "system.clock") == "board sheet"
    assert source(device, "system.memory.banks.0.size") == "board sheet"
    assert source(device, "system.memory.banks.1.size") == "core manual"
    assert source(device, "runtime.threads") == "release notes"
    assert source(device, "dtypes") is None


def test_later_parents_override_earlier_ones(profile_folder: Path) -> None:
    (profile_folder / "systems" / "fast.yaml").write_text("abstract: true\nsystem: {clock: 160 MHz}\n")
    (profile_folder / "mine.yaml").write_text(
        "name: mine\ndescription: d\ninherit: [systems/board, systems/fast, runtimes/micro]\n"
    )
    device = device_profile.load("mine.yaml", profile_folder)
    assert device.system.clock == 160e6
    assert source(device, "system.clock") is None, "nobody gave a source for the new value"
    assert source(device, "system.memory.ram") == "board sheet"


CHILD_SOURCES = [  # content of the child, a path, its source
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


@pytest.mark.parametrize(("text", "path", "citation"), CHILD_SOURCES)
def test_a_source_covers_its_field(text: str, path: str, citation: str | None, profile_folder: Path) -> None:
    assert source(load(profile_folder, text), path) == citation


WRONG_SOURCES = [
    ("sources: {system.clok: s}\n", "4:11: sources.system.clok: this profile has no field 'system.clok'; did you mean "
     "'system.clock'?"),
    ("sources: {system.clock: 3}\n", "4:25: sources.system.clock: must be a citation, found the number 3"),
    ("sources: {system.memory.banks.7: s}\n", "4:11: sources.system.memory.banks.7: this profile has no field "
     "'system.memory.banks.7'; did you mean 'system.memory.banks.1.size'?"),
    ("sources: a sheet\n", "4:10: sources: must be a list of citations, or map fields to citations, found the text "
     "'a sheet'"),
    ("sources: [1]\n", "4:10: sources: must be a list of citations, or map fields to citations, found a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG_SOURCES, ids=[text for text, _ in WRONG_SOURCES])
def test_wrong_sources(text: str, message: str, profile_folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(profile_folder, text)
    assert str(error.value.problems[0]) == f"{profile_folder}/mine.yaml:{message}"


def test_a_problem_of_a_part_points_into_the_part(profile_folder: Path) -> None:
    (profile_folder / "runtimes" / "micro.yaml").write_text(RUNTIME.replace("threads: 2", "threads: 0"))
    with pytest.raises(ConfigError, match=r"runtimes/micro\.yaml:2:54: runtime\.threads: should be greater than or"):
        load(profile_folder, "")


REQUIRED_DEVICES = (
    *("raspberry-pi-zero-2w", "raspberry-pi-3b-plus", "raspberry-pi-4", "raspberry-pi-5", "pixel-3", "pixel-4"),
    *("android-arm64", "imx8mp", "imx93", "stm32mp157f", "stm32mp257f", "stm32n6570-dk", "stm32h747i-disco"),
    *("stm32f769i-disco", "nucleo-l4r5zi", "nucleo-u575zi-q", "b-u585i-iot02a", "nucleo-h7a3zi-q", "nrf5340-dk"),
    *("rp2040-pico", "esp32-s3", "arduino-nano-33-ble", "coral-edge-tpu", "host"),
)


def test_the_required_devices_are_shipped() -> None:
    assert len(REQUIRED_DEVICES) == 24
    assert set(REQUIRED_DEVICES) <= set(device_profile.device_names())


@pytest.mark.parametrize("name", device_profile.device_names())
def test_each_number_of_a_shipped_device_has_a_source(name: str) -> None:
    device = device_profile.load(name, FOLDER)
    uncited_paths = [
        path
        for path in device_profile.stated_numbers_by_path(device)
        if len(citations.find_citation(device.sources, path) or "") < 20
    ]
    assert uncited_paths == []


@pytest.mark.parametrize("name", device_profile.device_names())
def test_each_shipped_device_is_consistent(name: str) -> None:
    device = device_profile.load(name, FOLDER)
    memory = device.system.memory
    for kind, total in (("ram", memory.ram), ("flash", memory.flash)):
        banks = [bank.size for bank in memory.banks if bank.kind == kind]
        assert not banks or (total is not None and max(banks) <= total <= sum(banks)), f"{kind} of {name}"
    for metric_source in (device.latency, device.ram, device.flash):
        assert (metric_source.evidence is Evidence.UNAVAILABLE) == (len(metric_source.reason or "") > 30)


def test_parts_are_abstract_and_each_is_used() -> None:
    folder = shipped_folder("devices")
    files = {file.relative_to(folder).with_suffix("").as_posix(): file.read_text() for file in folder.rglob("*.yaml")}
    part_names = {name for name in files if "/" in name}
    assert [name for name in part_names if "\nabstract: true\n" not in f"\n{files[name]}"] == []
    used_names = {name for name in part_names if any(name in text for text in files.values())}
    used_names |= {
        name for name in part_names if any(f"inherit: {name.split('/')[1]}\n" in text for text in files.values())
    }
    assert used_names == part_names


def test_show_gives_each_number_its_source(profile_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(profile_folder, "system: {clock: 40 MHz}\n")
    monkeypatch.chdir(profile_folder)
    (table,) = devices.tables("mine.yaml")
    rows = {label.strip(): (text, citation) for label, text, citation in table.rows}
    assert table.columns == ("property", "value", "source")
    assert rows["clock"] == ("40 MHz", devices.NO_SOURCE)
    assert rows["RAM"] == ("128.0 KiB", "board sheet")
    assert rows["cache"] == ("1.0 KiB cache", "core manual")
    assert rows["threads"] == ("2", "release notes")
    assert rows["operators"] == ("all", "")
