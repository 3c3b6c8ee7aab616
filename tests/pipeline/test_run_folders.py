"""Runs side by side, `latest`, and the commands that list, compare and remove them."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from commands import Command

import edgepipe
from edgepipe.core.errors import InputError, StorageError
from edgepipe.devices.calibration.network_builder import NetworkBuilder
from edgepipe.pipeline.run_folders import create_run_folder, find_latest, find_report, list_run_folders, run_folder_name
from edgepipe.pipeline.run_record import RunDefinition, RunInput

NAME = "20261128-091546-1a2b3c4d"


def _write(folder: Path) -> None:
    (folder / "report.json").write_text(folder.name)


def test_the_name_says_when_and_what() -> None:
    started = datetime(2026, 11, 28, 9, 15, 46, tzinfo=UTC)
    definition = RunDefinition(pipeline={"name": "p"}, text="name: p", folder="/a")
    name = run_folder_name(started, definition)
    assert name.startswith("20261128-091546-")
    elsewhere = definition.model_copy(update={"folder": "/b", "text": "name: p # the same", "command": ("x",)})
    assert run_folder_name(started, elsewhere) == name
    changed = RunInput(role="data", name="x.npz", digest="ab" * 32)
    assert run_folder_name(started, definition.model_copy(update={"inputs": (changed,)})) != name


def test_equal_names_get_numbers_and_latest_is_the_last(tmp_path: Path) -> None:
    folders = [create_run_folder(tmp_path, NAME, _write) for _ in range(11)]
    assert [folder.name for folder in folders[:2]] == [NAME, f"{NAME}-2"]
    assert (tmp_path / "latest" / "report.json").read_text() == NAME  # as each was staged under its own name
    assert find_latest(tmp_path) == folders[-1]
    assert list_run_folders(tmp_path) == folders[::-1]  # number 10 comes after 9


def test_a_run_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        _write(folder)
        raise StorageError("full")

    first = create_run_folder(tmp_path, NAME, _write)
    with pytest.raises(StorageError, match="full"):
        create_run_folder(tmp_path, NAME, fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "latest"]
    assert find_latest(tmp_path) == first


def test_runs_at_the_same_time_never_mix(tmp_path: Path) -> None:
    """Each folder holds one run's files only, and `latest` is always a whole run."""

    def write(mark: str) -> None:
        def fill(folder: Path) -> None:
            for name in ("report.json", "a", "b"):
                (folder / name).write_text(mark)

        create_run_folder(tmp_path, NAME, fill)
        assert len({file.read_text() for file in (tmp_path / "latest").resolve().iterdir()}) == 1

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = [{file.read_text() for file in folder.iterdir()} for folder in list_run_folders(tmp_path)]
    assert sorted(contents, key=str) == sorted(({str(number)} for number in range(12)), key=str)
    assert find_latest(tmp_path) in list_run_folders(tmp_path)


def test_without_links_latest_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    create_run_folder(tmp_path, NAME, _write)  # a link, which the file then replaces
    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = create_run_folder(tmp_path, NAME, _write)
    assert (tmp_path / "latest").read_text() == f"{folder.name}\n"
    assert find_latest(tmp_path) == folder
    assert find_report(tmp_path) == find_report(tmp_path / "latest") == folder / "report.json"


def _point(tmp_path: Path, name: str) -> None:
    (tmp_path / "latest").symlink_to(name)


BROKEN = {
    "gone": (lambda p: _point(p, NAME), f"latest: points to {NAME}, which does not exist; give another run of"),
    "elsewhere": (lambda p: _point(p, "../other"), "latest: points to '../other', which is not the name of a run"),
    "not a name": (lambda p: (p / "latest").write_bytes(b"\xff" * 9000), "which is not the name of a run folder"),
    "empty": (lambda p: (p / "latest").touch(), "latest: points to '', which is not the name of a run folder"),
    "nothing": (lambda p: None, "holds no report.json; give the folder of a run that has ended"),
    "both": (
        lambda p: (_write(p), create_run_folder(p, NAME, _write)),
        r"holds a report.json of its own and runs; give .*/report\.json or .*/latest",
    ),
}


@pytest.mark.parametrize(("prepare", "message"), BROKEN.values(), ids=BROKEN)
def test_a_latest_that_is_none(prepare: object, message: str, tmp_path: Path) -> None:
    prepare(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        find_report(tmp_path)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A folder with three runs of one pipeline and one of another."""
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        network = NetworkBuilder(1)
        network.set_outputs(network.conv(network.input(4, 4, 2), 3, 1))
        Path("m.tflite").write_bytes(network.to_bytes())
        for name, limit in (("one", "64 KiB"), ("one", "100 B"), ("one", "64 KiB"), ("two", "64 KiB")):
            stages = [{"validate": {"budget": {"size": limit}}}]
            edgepipe.run({"name": name, "model": "m.tflite", "stages": stages}, cache_dir=shared_cache)
    return folder


@pytest.fixture(autouse=True)
def in_workshop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "workshop" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("workshop"))


def test_list(workshop: Path, command: Command) -> None:
    kept = edgepipe.list_runs()
    assert [run.folder.parent.name for run in kept] == ["one", "one", "one", "two"]
    assert [run.is_latest for run in kept] == [True, False, False, True]
    ended = command("runs", "list", "one")
    assert (ended.code, ended.err) == (0, "")
    assert all(run.name in ended.out for run in kept[:3])
    assert kept[3].name not in ended.out
    listed = json.loads(command("runs", "list", "--json").out)
    assert [(run["run"], run["met"]) for run in listed["runs"]] == [
        (run.name, limit) for run, limit in zip(kept, [True, False, True, True], strict=True)
    ]


def test_a_run_that_cannot_be_read_is_listed(workshop: Path, command: Command) -> None:
    damaged = Path("runs/broken") / NAME
    damaged.mkdir(parents=True)
    _write(damaged)
    ended = command("runs", "list", "broken")
    assert ended.code == 0
    assert f"broken/{NAME}" in ended.out
    assert "note: runs/broken/20261128-091546-1a2b3c4d/report.json: not JSON" in ended.out
    assert command("runs", "prune", "broken", "--keep", "1").out == "removed 0 runs\n"


def test_compare(workshop: Path, command: Command) -> None:
    newest, strict, _ = edgepipe.list_runs("one")
    ended = command("runs", "compare", newest.name, strict.folder)
    assert ended.code == 0, ended.err
    comparison = edgepipe.compare_runs("one", strict.folder)
    (difference,) = comparison.of("option")
    assert difference.aspect == "option"
    assert (difference.name, difference.first_text, difference.second_text) == (
        "stages.validate.budget.size", "64 KiB", "100 B",
    )  # fmt: skip
    assert all(text in ended.out for text in (difference.name, difference.first_text, difference.second_text))
    assert "the runs do not differ" in command("runs", "compare", "one", "one/latest").out
    differences = json.loads(command("runs", "compare", "one", "two", "--json").out)["differences"]
    assert {difference["aspect"] for difference in differences} <= {"metric"}  # the latency measured here


WRONG = [
    (["compare", "on", "two"], "on: no such run, neither a path nor below runs; did you mean 'one'?"),
    (["compare", "one", "one/2026"], "one/2026: no such run, neither a path nor below runs; allowed: "),
    (["list", "tow"], "runs: holds no run of 'tow'; did you mean 'two'?"),
    (["prune", "tow", "--keep", "1"], "runs: holds no run of 'tow'; did you mean 'two'?"),
    (["compare", "one", "m.tflite"], "m.tflite:1:10: not UTF-8 text"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_bad_names(arguments: list[str], message: str, workshop: Path, command: Command) -> None:
    ended = command("runs", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    assert edgepipe.list_runs() == []
    assert command("runs", "list").code == 0
    assert command("runs", "prune", "--keep", "3").out == "removed 0 runs\n"


def test_prune_removes_old_runs_and_nothing_else(workshop: Path, command: Command) -> None:
    """What edgepipe did not name stays, as does the run that `latest` points to."""
    own = Path("runs/one/mine")
    own.mkdir()
    _write(own)
    newest, middle, oldest = (run.folder for run in edgepipe.list_runs("one"))
    (Path("runs/one") / "latest").unlink()
    (Path("runs/one") / "latest").symlink_to(oldest.name)  # chosen by hand
    ended = command("runs", "prune", "one", "--keep", "1")
    assert ended.out == f"{middle}\nremoved 1 run\n"
    assert sorted(path.name for path in Path("runs/one").iterdir()) == sorted(
        [newest.name, oldest.name, "latest", "mine"]
    )
    assert len(edgepipe.list_runs("two")) == 1
    with pytest.raises(InputError, match="keep: found 0"):
        edgepipe.prune_runs(keep=0)
