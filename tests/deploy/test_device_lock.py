"""One deployment at a time on a device; a holder that is dead, or silent, does not keep the others out."""

import threading
from pathlib import Path

import pytest
from deploy_models import classifier
from deploying import deploy_once, open_device, package, printed_by_runner, recorded_python, running_version
from ssh_server import Sshd

from edgepipe.deploy import device_lock, versions
from edgepipe.deploy.device import Device
from edgepipe.deploy.proof import Package
from edgepipe.deploy.transport import DeviceError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package(classifier(tmp_path_factory.mktemp("content") / "a.tflite"))


@pytest.fixture
def prepared(board: Sshd, tmp_path: Path) -> Device:
    device = open_device(board.url(tmp_path / "app"))
    device.create_folders()
    return device


def _hold(device: Device, wait_seconds: float = 0.0) -> list[str]:
    """Hold the lock for a moment; what was told meanwhile."""
    told: list[str] = []
    with device_lock.locked(device, wait_seconds, told.append):
        device.change("test", "true")
    return told


@pytest.mark.parametrize("scheme", ["ssh", "host"])
def test_a_lock_that_is_held_is_waited_for_and_then_named(board: Sshd, tmp_path: Path, scheme: str) -> None:
    url = board.url(tmp_path / "app") if scheme == "ssh" else f"host://{tmp_path}/app"
    first, second = open_device(url), open_device(url)
    first.create_folders()
    with device_lock.locked(first, 0.0, lambda _: None), pytest.raises(DeviceError, match=r"is locked by .* process"):
        _hold(second)
    assert _hold(second) == []
    first.transport.close()
    second.transport.close()


def test_two_deployments_at_once_follow_each_other(board: Sshd, content: Package, tmp_path: Path) -> None:
    url, folder = board.url(tmp_path / "app"), tmp_path / "app"
    other = package(classifier(tmp_path / "b.tflite", seed=3))
    results = {}
    threads = [
        threading.Thread(target=lambda name=name, c=c: results.update({name: deploy_once(url, c)}))  # type: ignore[misc]
        for name, c in (("a", content), ("b", other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(str(result.version) for result in results.values())
    assert [name[:4] for name in names] == ["0001", "0002"]
    assert running_version(folder) == names[-1]
    assert sorted(path.name for path in (folder / "versions").iterdir()) == names


def test_a_holder_whose_connection_ends_gives_the_lock_up(prepared: Device, board: Sshd, tmp_path: Path) -> None:
    holder = open_device(board.url(tmp_path / "app"))
    manager = device_lock.locked(holder, 0.0, lambda _: None)
    manager.__enter__()
    holder.transport.close()
    _hold(prepared, 10.0)
    with pytest.raises(DeviceError, match="connection"):
        holder.change("test", "true")
    manager.__exit__(None, None, None)


def test_a_silent_holder_is_ended_and_can_change_nothing_any_more(
    prepared: Device, board: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = open_device(board.url(tmp_path / "app"))
    monkeypatch.setattr(device_lock, "BEAT_SECONDS", 1000.0)  # as of a machine that was switched off
    monkeypatch.setattr(device_lock, "SILENCE_SECONDS", 1.0)
    with device_lock.locked(holder, 0.0, lambda _: None):
        told = _hold(prepared, 20.0)
        assert [text.partition("takes over the lock of")[1] != "" for text in told] == [False, True]
        with pytest.raises(DeviceError, match="has taken over"):
            versions.switch(holder, "0001-00000000")


def test_a_holder_that_beats_is_left_alone(
    prepared: Device, board: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = open_device(board.url(tmp_path / "app"))
    monkeypatch.setattr(device_lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(device_lock, "SILENCE_SECONDS", 1.5)
    with device_lock.locked(holder, 0.0, lambda _: None), pytest.raises(DeviceError, match="waited 3 s"):
        _hold(prepared, 3.0)


def test_without_the_program_flock_python_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sh", "cat", "mkdir", "test", "python3"):
        source = next(p for p in (Path("/usr/bin") / name, Path("/bin") / name) if p.exists() or name == "python3")
        (tmp_path / name).symlink_to(source)
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = open_device(f"host://{tmp_path}/app"), open_device(f"host://{tmp_path}/app")
    first.create_folders()
    with device_lock.locked(first, 0.0, lambda _: None), pytest.raises(DeviceError, match="is locked by"):
        _hold(second)
    (tmp_path / "python3").unlink()
    with pytest.raises(DeviceError, match="neither `flock` nor python3"):
        _hold(second)


def test_a_file_system_without_links_has_a_pointer_file(content: Package, board: Sshd, tmp_path: Path) -> None:
    url, folder = board.url(tmp_path / "app"), tmp_path / "app"
    deploy_once(url, content)
    printed = printed_by_runner(url, content)
    (folder / "current").unlink()
    (folder / "current").write_text("versions/" + next((folder / "versions").iterdir()).name + "\n")
    deployed = deploy_once(url, content, recorded_python(tmp_path / "bin", printed))
    assert not (folder / "current").is_symlink()
    assert (folder / "current").read_text() == f"versions/{deployed.version}\n"
    device = open_device(url)
    assert versions.list_versions(device).current == deployed.version
    device.transport.close()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc", "is not edgepipe's"),
        ("versions/0009-00000000", "is not there"),
        ("versions/../..", "is not edgepipe's"),
    ],
)
def test_a_current_that_leads_elsewhere_is_not_replaced(
    prepared: Device, tmp_path: Path, target: str, message: str
) -> None:
    (tmp_path / "app" / "current").symlink_to(target)
    with pytest.raises(DeviceError, match=message):
        versions.list_versions(prepared)
    assert str((tmp_path / "app" / "current").readlink()) == target
