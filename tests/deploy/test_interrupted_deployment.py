"""Whatever ends a deployment, and wherever: the device runs a complete and proved version."""

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deploy_models import classifier
from deploying import deploy_once, open_device, package, printed_by_runner, recorded_python, running_version
from ssh_server import Sshd
from tcp_proxy import forwarding

from edgepipe.core.errors import ToolError
from edgepipe.deploy import deployment
from edgepipe.deploy.health_check import MeasurementOptions, run_on_device
from edgepipe.deploy.proof import DeploymentOptions, Package

CUTS = 50


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    """Two versions of a model; one for the connection to be cut in the middle of."""
    folder = tmp_path_factory.mktemp("packages")
    return package(classifier(folder / "old.tflite")), package(classifier(folder / "new.tflite", seed=1))


@dataclass
class Interrupted:
    """A device that runs an old version, and a new one to interrupt the deployment of."""

    board: Sshd
    folder: Path
    python: str
    old: str
    new: Package

    @property
    def url(self) -> str:
        return self.board.url(self.folder)


@pytest.fixture
def interrupted(board: Sshd, packages: tuple[Package, Package], tmp_path: Path) -> Interrupted:
    folder, (old, new) = tmp_path / "app", packages
    deploy_once(board.url(folder), old)
    printed = printed_by_runner(board.url(folder), new)
    return Interrupted(board, folder, recorded_python(tmp_path / "bin", printed), running_version(folder), new)


def _bytes_of_a_deployment(case: Interrupted) -> int:
    with forwarding(case.board.port) as proxy:
        case.board.trust(proxy.port)
        deploy_once(case.board.url(case.folder, proxy.port), case.new, case.python)
        return proxy.forwarded


@pytest.mark.slow
def test_a_connection_that_is_cut_anywhere_leaves_a_complete_version(interrupted: Interrupted) -> None:
    total = _bytes_of_a_deployment(interrupted)
    rng = random.Random(7)
    # Half of them in the last tenth, where the version is completed and switched to.
    offsets = [rng.randrange(total) if index % 2 else rng.randrange(total * 9 // 10, total) for index in range(CUTS)]
    messages: list[str] = []
    for offset in offsets:
        before = running_version(interrupted.folder)
        with forwarding(interrupted.board.port, cut_after=offset) as proxy:
            interrupted.board.trust(proxy.port)
            try:
                deploy_once(interrupted.board.url(interrupted.folder, proxy.port), interrupted.new, interrupted.python)
            except ToolError as error:
                messages.append(str(error))
        assert running_version(interrupted.folder) >= before
    assert len(messages) > CUTS / 2
    assert [text for text in messages if "connection" not in text and "does not" not in text] == []
    finished = deploy_once(interrupted.url, interrupted.new, interrupted.python)
    assert running_version(interrupted.folder) == finished.version
    assert list((interrupted.folder / "versions").glob("*.part")) == []


@dataclass(frozen=True)
class CountedTransport:
    """Calls `before` ahead of each command."""

    transport: Any
    before: Callable[[], None]
    name: str = "counted"
    notes: tuple[str, ...] = ()
    runs_python: bool = True

    def run(self, *arguments: Any) -> bytes:
        self.before()
        return bytes(self.transport.run(*arguments))

    def hold(self, command: str) -> Any:
        self.before()
        return self.transport.hold(command)

    def close(self) -> None:
        self.transport.close()


def _deploy_and_kill_before(case: Interrupted, step: int) -> int:
    """Deploy; before command `step` everything on the device is killed. How many commands were sent."""
    device, sent = open_device(case.url, case.python), [0]

    def before() -> None:
        if sent[0] == step:
            case.board.kill_sessions()
        sent[0] += 1

    device.transport = CountedTransport(device.transport, before)
    try:
        deployment.deploy(device, case.new, DeploymentOptions(wait_seconds=20), lambda _: None)
    finally:
        device.transport.close()
    return sent[0]


@pytest.mark.slow
def test_a_device_that_loses_power_between_any_two_steps_runs_a_complete_version(interrupted: Interrupted) -> None:
    steps = _deploy_and_kill_before(interrupted, -1)
    assert steps > 10
    for step in range(steps):
        before = running_version(interrupted.folder)
        with pytest.raises(ToolError):
            _deploy_and_kill_before(interrupted, step)
        assert running_version(interrupted.folder) >= before
    _deploy_and_kill_before(interrupted, -1)
    assert list((interrupted.folder / "versions").glob("*.part")) == []


def test_the_runner_is_what_the_recorded_answer_stands_for(interrupted: Interrupted) -> None:
    device = open_device(interrupted.url, interrupted.python)
    with contextlib.closing(device.transport):
        document = run_on_device(device, "trial", MeasurementOptions(), "model.tflite")
    assert document.latency is not None
    assert document.latency.p50 > 0
