"""`--install`: the runtime goes into an environment of the deployment's folder, or the message says what is missing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ssh_server
from aarch64_board import CACHE, ENVIRONMENT
from commands import Command
from ssh_server import Sshd

from edgepipe.core.errors import ExitCode
from edgepipe.core.references import installed_version

PACKAGES = tuple(f"{name}=={installed_version(name)}" for name in ("ai-edge-litert", "numpy"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels() -> Path:
    """The wheels of the runtime for this machine, downloaded once."""
    folder = CACHE / "edgepipe-tests" / f"wheels-{'-'.join(PACKAGES)}-{sys.version_info.minor}"
    if not (folder / "complete").exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "-d", str(folder)]
        done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if done.returncode:
            pytest.skip(f"the wheels cannot be downloaded here: {done.stderr.strip()[-200:]}")
        (folder / "complete").touch()
    return folder


@pytest.fixture(scope="module", params=["with wheels", "without"])
def bare_board(
    request: pytest.FixtureRequest, wheels: Path, tmp_path_factory: pytest.TempPathFactory, user_home: Path
) -> Iterator[tuple[Sshd, bool]]:
    """A board whose Python has no packages, and whether a package index has them."""
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    has_wheels = request.param == "with wheels"
    folder = tmp_path_factory.mktemp("bare")
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    index = wheels if has_wheels else folder
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PYTHONNOUSERSITE": "1"}
    with ssh_server.running(folder, user_home, environment=environment) as server:
        yield server, has_wheels


def test_the_runtime_is_installed_once_or_nothing_is_left(
    command: Command, bare_board: tuple[Sshd, bool], model: Path, tmp_path: Path
) -> None:
    server, has_wheels = bare_board
    url, state = server.url(tmp_path / "app"), tmp_path / "app" / ".edgepipe"
    python = subprocess.run([f"{server.folder}/bin/python3", "-c", "import ai_edge_litert"], capture_output=True)
    if python.returncode == 0:
        pytest.skip("the Python below this environment has the runtime itself")
    missing = command("deploy", model, "--to", url, "--samples", 2)
    assert (missing.code, "--install" in missing.err) == (ExitCode.UNREACHABLE, True)
    installed = command("deploy", model, "--to", url, "--samples", 2, "--install")
    if not has_wheels:
        assert (installed.code, "--install failed" in installed.err) == (ExitCode.UNREACHABLE, True)
        assert not (state / "venv").exists()
        assert not (state / "venv.part").exists()
        return
    assert installed.code == 0, installed.err
    assert "installs numpy and ai-edge-litert" in installed.err
    again = command("deploy", model, "--to", url, "--samples", 2, "--install")
    assert (again.code, "installs" in again.err) == (0, False)
