"""What an ordinary user may not read or write is one line. Root may do anything, so the tests drop its rights."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Command, CommandResult

from edgepipe import cli

NOBODY = 65534
PIPELINE = "name: p\nmodel: {path: m.tflite}\nstages:\n  - validate: {devices: [nucleo-l4r5zi]}\n"


def _run_forked(arguments: list[str], out: Path, err: Path) -> None:
    """In a fork, with the modules that this process has loaded, since Python itself may be in a folder of root's."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    sys.argv, code = ["edgepipe", *arguments], 1
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture
def user(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs a command as an ordinary user."""
    folder = tmp_path_factory.mktemp("streams")

    def run(*arguments: object) -> CommandResult:
        pid = os.fork()
        if not pid:
            _run_forked([*map(str, arguments)], folder / "out", folder / "err")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return CommandResult(code, (folder / "out").read_text(), (folder / "err").read_text())

    return run


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody reaches and may write to; its parents may belong to root alone."""
    folder = tmp_path_factory.mktemp("place")
    for parent in (folder, *folder.parents):
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            parent.chmod(0o777 if parent == folder else parent.stat().st_mode | 0o055)
    (folder / "m.tflite").write_bytes((models / "int8.tflite").read_bytes())
    (folder / "p.yaml").write_text(PIPELINE)
    monkeypatch.chdir(folder)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)


UNREADABLE: dict[str, tuple[list[str], str]] = {  # arguments, the file without a right to read it
    "inspect": (["inspect", "m.tflite"], "m.tflite"),
    "profile": (["profile", "m.tflite", "--device", "./d.yaml"], "d.yaml"),
    "verify": (["verify", "m.tflite"], "m.tflite"),
    "check": (["check", "p.yaml"], "p.yaml"),
    "check, model": (["check", "p.yaml"], "m.tflite"),
    "run": (["run", "p.yaml", "--cache-dir", "c"], "p.yaml"),
    "report": (["report", "r.json"], "r.json"),
    "data": (["data", "{npz: d.npz}"], "d.npz"),
    "convert": (["convert", "m.keras"], "m.keras"),
    "device show": (["device", "show", "./d.yaml"], "d.yaml"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_may_not_be_read(case: str, user: Command, command: Command, place: Path) -> None:
    arguments, name = UNREADABLE[case]
    (place / name).touch()
    (place / name).chmod(0)
    command(*arguments)  # loads what the fork needs
    ended = user(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Permission denied" in ended.err or "is not readable" in ended.err
    assert name in ended.err


def test_a_file_below_a_folder_that_may_not_be_entered(user: Command, command: Command, place: Path) -> None:
    (place / "closed").mkdir(mode=0)
    for arguments in (["inspect", "closed/m.tflite"], ["check", "closed/p.yaml"], ["report", "closed/run"]):
        command(*arguments)
        ended = user(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert "Permission denied" in ended.err


@pytest.mark.slow
def test_a_cache_that_is_only_read_suffices_if_it_holds_all_stages(
    user: Command, command: Command, place: Path
) -> None:
    arguments = ["run", "p.yaml", "--cache-dir", "c", "--output-dir", "out"]
    assert command(*arguments).code == 0
    made = (place / "out" / "report.json").read_bytes()
    for path in (place / "c", *(place / "c").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (place / "out").rename(place / "former")
    ended = user(*arguments)
    assert ended.code == 0, ended.err
    assert ended.err.count("cached") == 2
    assert len((place / "out" / "report.json").read_bytes()) == len(made.replace(b'"ran"', b'"cached"'))
    refused = user(*arguments, "--set", "seed=5")
    assert refused.code == 2
    assert "cache c: cannot be written: Permission denied" in refused.err


OUTPUTS: dict[str, Callable[[Path], list[str]]] = {
    "run": lambda _: ["run", "p.yaml", "--cache-dir", "c", "--output-dir", "closed/out"],
    "run, cache": lambda _: ["run", "p.yaml", "--cache-dir", "closed/c", "--output-dir", "out"],
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_folder_that_may_not_be_written(case: str, user: Command, command: Command, place: Path) -> None:
    command("check", "p.yaml")
    (place / "closed").mkdir(mode=0o555)
    (place / "closed").chmod(0o555)
    arguments = OUTPUTS[case](place)
    from edgepipe.pipeline import runner  # noqa: F401
    from edgepipe.render import report_files  # noqa: F401

    ended = user(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].endswith("cannot be written: Permission denied")
    assert list((place / "closed").iterdir()) == []
