"""What re-runs when something changes, and that nothing else does."""

import shutil
from pathlib import Path

import pytest

from .conftest import ROOT, TINY, Workplace

pytestmark = pytest.mark.slow
ORDER = ["model", "train", "convert", "validate"]
SHORT = TINY[: TINY.index("  - prune")] + TINY[TINY.index("  - convert") :].replace("[host, DEVICE]", "[DEVICE]")


def _expect(statuses: dict[str, str], first_to_run: str | None) -> None:
    number = ORDER.index(first_to_run) if first_to_run else len(ORDER)
    assert statuses == {name: "cached" if index < number else "ran" for index, name in enumerate(ORDER)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = Workplace(tmp_path_factory.mktemp("cache"), SHORT)
    first = made.run()
    assert first.code == 0, first.stderr
    _expect(first.statuses(), "model")
    return made


def test_an_option_of_convert(place: Workplace) -> None:
    _expect(place.run("--set", "stages.convert.output=uint8").statuses(), "convert")


def test_a_device_profile(place: Workplace) -> None:
    text = place.device.read_text()
    try:
        place.device.write_text(text + "system: {memory: {ram: 320 KiB, banks: []}}\n")
        _expect(place.run().statuses(), "validate")
    finally:
        place.device.write_text(text)


def test_a_comment_in_a_device_profile_changes_nothing(place: Workplace) -> None:
    text = place.device.read_text()
    place.device.write_text(text + "# a comment\n")
    _expect(place.run().statuses(), None)


def test_the_source_of_a_stage(place: Workplace, tmp_path: Path) -> None:
    copy = _copied(tmp_path)
    source = copy / "edgepipe" / "stages" / "convert" / "__init__.py"
    source.write_text(source.read_text() + "\n# changed\n")
    ended = place.run_process(package=copy)
    assert ended.code == 0, ended.stderr
    _expect(ended.statuses(), "convert")


def test_a_copy_of_the_package_elsewhere_hits(place: Workplace, tmp_path: Path) -> None:
    _expect(place.run_process(package=_copied(tmp_path)).statuses(), None)


def test_a_damaged_entry_is_said_and_made_again(place: Workplace) -> None:
    digests = place.run().digests()
    for damaged in place.cache.glob("entries/*/files/model.tflite"):
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    ended = place.run()
    assert "is not what was stored; it was removed and the stage runs again" in ended.stderr
    assert ended.code == 0
    assert ended.digests() == digests


def _copied(folder: Path) -> Path:
    shutil.copytree(ROOT / "edgepipe", folder / "edgepipe", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "devices", folder / "devices")
    return folder
