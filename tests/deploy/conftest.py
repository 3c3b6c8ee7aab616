"""One sshd for the tests of a worker, a small model, and a user of their own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ssh_server
from deploy_models import classifier
from ssh_server import Sshd


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "model.tflite")


@pytest.fixture(scope="session")
def user_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of whoever runs edgepipe: it has a key and knows the servers."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory, user_home: Path) -> Iterator[Sshd]:
    """A Linux board that is reached over ssh."""
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    with ssh_server.running(tmp_path_factory.mktemp("board"), user_home) as server:
        yield server


@pytest.fixture(autouse=True)
def _own_home(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the ssh files of whoever runs the tests."""
    ssh_server.make_user(user_home)
    monkeypatch.setenv("HOME", str(user_home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    python_path = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([python_path, os.environ["PATH"]]))
