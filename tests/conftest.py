"""What the tests of several layers share: the `edgepipe` command, and how tests are spread over workers."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import Command, CommandResult
from hypothesis import settings

from edgepipe import cli

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# One change is tested with the same examples everywhere; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread tests over the workers one by one (`--dist loadgroup`), but keep together those that share a fixture of
    their file. Slow tests go first, so that no worker ends with a long one.
    """
    for item in items:
        if _uses_fixture_of_its_file(item):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _uses_fixture_of_its_file(item: pytest.Item) -> bool:
    """Whether a fixture is made once for the whole file; one of the session is made once by each worker."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = [each[-1] for each in info.name2fixturedefs.values()] if info is not None else []
    return any(definition.scope in ("module", "class", "package") for definition in definitions)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of edgepipe for the whole test run, on all workers: what one has trained, others find."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trained_digits(shared_cache: Path) -> Path:
    """The shared cache, with pipelines/digits.yaml in it: it is run once, under a lock, by whoever needs it first."""
    pipeline = Path(__file__).resolve().parents[1] / "pipelines" / "digits.yaml"
    folder = shared_cache.parent / "shared-digits"
    with _lock(shared_cache.parent / "digits.lock"):
        if not (folder / "report.json").exists():
            line = [sys.executable, "-m", "edgepipe", "run", str(pipeline), "--output-dir", str(folder)]
            subprocess.run([*line, "--cache-dir", str(shared_cache)], check=True, capture_output=True, text=True)
    return shared_cache


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `edgepipe ARGUMENTS` through its entry point, in this process."""

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["edgepipe", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        return CommandResult(int(code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def process() -> Command:
    """Runs `python -m edgepipe ARGUMENTS` in a process of its own; keyword arguments go to `subprocess.run`."""

    def run(*arguments: object, **options: Any) -> CommandResult:
        line = [sys.executable, "-m", "edgepipe", *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        done = subprocess.run(line, text=True, check=False, **streams)
        return CommandResult(done.returncode, done.stdout or "", done.stderr or "")

    return run
