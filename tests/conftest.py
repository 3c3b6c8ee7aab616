"""What the tests of several layers share: the `edgepipe` command, and how tests are spread over workers."""

import fcntl
import functools
import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import Command, CommandResult
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from edgepipe import cli

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.pop("COLUMNS", None)  # tables are as wide as they are in a pipe, unless a test says otherwise

# One change is tested with the same examples everywhere; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests go first, so that no worker ends with a long one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Keeps TensorFlow's million objects out of garbage collection, which took a fifth of the CPU time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


class SharedFixtureScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed for subclasses
    """Spreads tests over the workers one by one; a file whose fixtures are made once stays on one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if _has_fixture_of_its_own(ROOT / file) else nodeid


@functools.cache
def _has_fixture_of_its_own(file: Path) -> bool:
    return 'scope="module"' in file.read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)  # absent where xdist is not installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedFixtureScheduling:
    """The scheduler of `pytest -n`."""
    return SharedFixtureScheduling(config, log)


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
    pipeline = ROOT / "pipelines" / "digits.yaml"
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


@contextmanager
def _file_limit(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Makes this process fail on files larger than so many bytes, as a full disk does."""
    return _file_limit


@pytest.fixture(scope="session")
def process() -> Command:
    """Runs `python -m edgepipe ARGUMENTS` in a process of its own; keyword arguments go to `subprocess.run`."""

    def run(*arguments: object, **options: Any) -> CommandResult:
        line = [sys.executable, "-m", "edgepipe", *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        done = subprocess.run(line, text=True, check=False, **streams)
        return CommandResult(done.returncode, done.stdout or "", done.stderr or "")

    return run
