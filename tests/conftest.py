"""What the tests of several floors share: the `edgepipe` command, in this process and in one of its own."""

import os
import subprocess
import sys
from typing import Any

import pytest
from commands import Command, Ended
from hypothesis import settings

from edgepipe import cli

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# One change is tested with the same examples everywhere; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `edgepipe ARGUMENTS` through its entry point, in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["edgepipe", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        return Ended(int(code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def process() -> Command:
    """Runs `python -m edgepipe ARGUMENTS` in a process of its own; keyword arguments go to `subprocess.run`."""

    def run(*arguments: object, **options: Any) -> Ended:
        line = [sys.executable, "-m", "edgepipe", *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        done = subprocess.run(line, text=True, check=False, **streams)
        return Ended(done.returncode, done.stdout or "", done.stderr or "")

    return run
