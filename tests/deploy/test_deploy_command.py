"""`edgepipe deploy` on a real ssh server: deployed, listed, switched, rolled back, pruned, refused."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ssh_server
from commands import Command
from deploy_models import classifier
from deploying import running_version
from ssh_server import Sshd

from edgepipe.core.errors import ExitCode

pytestmark = pytest.mark.slow


def _document(command: Command, *arguments: object) -> dict[str, Any]:
    result = command("deploy", *arguments, "--json")
    loaded: dict[str, Any] = json.loads(result.out)
    return {**loaded, "code": result.code}


def test_from_the_first_deployment_to_the_rollback(command: Command, board: Sshd, model: Path, tmp_path: Path) -> None:
    url, folder = board.url(tmp_path / "app"), tmp_path / "app"
    first = _document(command, model, "--to", url, "--samples", 30)
    (device,) = first["devices"]
    assert (first["code"], device["status"], device["previous"]) == (0, "deployed", None)
    assert device["version"] == running_version(folder)
    health = device["health"]
    assert health["parity"]["samples"] == first["golden"]["count"] == 30
    (latency,) = [metric for metric in health["metrics"] if metric["name"] == "latency"]
    assert latency["evidence"] == "measured"
    assert {"p5", "p50", "p95", "host_digest", "measured_at", "threads", "first"} <= set(latency["details"])

    staged = _document(command, classifier(tmp_path / "b.tflite", seed=1), "--to", url, "--stage-only")["devices"][0]
    assert (staged["status"], running_version(folder)) == ("staged", device["version"])
    assert _document(command, "--switch", staged["version"], "--to", url)["code"] == 0
    assert running_version(folder) == staged["version"]

    listed = _document(command, "--list", "--to", url)["devices"][0]["versions"]
    assert [(v["name"], v["current"]) for v in listed] == [(device["version"], False), (staged["version"], True)]

    rolled_back = _document(command, "--rollback", "--to", url)["devices"][0]
    assert (rolled_back["version"], rolled_back["previous"]) == (device["version"], staged["version"])
    assert running_version(folder) == device["version"]
    # What a rollback has left is not gone back to, even from a later version.
    third = _document(command, classifier(tmp_path / "c.tflite", seed=2), "--to", url)["devices"][0]
    assert running_version(folder) == third["version"]
    assert _document(command, "--rollback", "--to", url)["devices"][0]["version"] == device["version"]


def test_a_device_that_cannot_be_listed_hides_no_other(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    addresses = (f"ssh://127.0.0.1:{ssh_server.free_port()}/x", f"host://{tmp_path}/app")
    result = command("deploy", "--list", *(word for address in addresses for word in ("--to", address)), "--json")
    down, empty = json.loads(result.out)["devices"]
    assert (result.code, "does not answer" in down["error"], empty["error"]) == (ExitCode.UNREACHABLE, True, None)
    assert len(result.err.strip().splitlines()) == 1
    both = command("deploy", "--list", "--to", addresses[0], "--to", f"ssh://127.0.0.1:{ssh_server.free_port()}/y")
    assert (both.code, both.err.count("does not answer")) == (ExitCode.UNREACHABLE, 2)


def test_old_versions_are_pruned_but_never_those_that_run_or_are_gone_back_to(command: Command, tmp_path: Path) -> None:
    url, folder = f"host://{tmp_path}/app", tmp_path / "app"
    names = []
    for seed in range(4):
        content = classifier(tmp_path / f"{seed}.tflite", seed=seed)
        names.append(_document(command, content, "--to", url, "--samples", 2, "--keep", 2)["devices"][0]["version"])
    assert sorted(path.name for path in (folder / "versions").iterdir()) == names[-2:]
    assert _document(command, "--rollback", "--to", url)["devices"][0]["version"] == names[-2]
    assert _document(command, "--rollback", "--to", url)["code"] == ExitCode.BAD_INPUT


def test_a_model_that_is_too_slow_or_differs_is_not_switched_to(
    command: Command, board: Sshd, model: Path, tmp_path: Path
) -> None:
    url, folder = board.url(tmp_path / "app"), tmp_path / "app"
    assert command("deploy", model, "--to", url, "--samples", 5).code == 0
    before = running_version(folder)
    slow = command("deploy", model, "--to", url, "--samples", 5, "--max", "latency=1ns")
    assert (slow.code, "is over the limit" in slow.out, "refused" in slow.out) == (ExitCode.NOT_MET, True, True)
    other = command("deploy", classifier(tmp_path / "b.tflite", seed=5), "--to", url, "--tolerance", 0)
    assert (other.code, "golden-vectors" in other.out) == (ExitCode.NOT_MET, True)
    assert running_version(folder) == before
    assert [path.name for path in (folder / "versions").iterdir()] == [before]


BAD_ADDRESSES = {
    "ftp://pi/x": "unknown scheme 'ftp'",
    "shh://pi/x": "did you mean 'ssh'",
    "pi@raspberrypi": "no scheme",
    "ssh:///x": "no host",
    "ssh://pi:geheim@board/x": "an address never holds a password",
    "ssh://pi:gehe/im@board/x": "not an address",
    "ssh://board:x/y": "not an address",
    "ssh://board:99999/y": "not an address",
    "ssh://-oProxyCommand=x/y": "would be read as an option",
    "ssh://board/a/../b": "without '..'",
    "ssh://board/a%0Ab": "no control characters",
    "ssh://board/a\nb": "no control characters",
    "ssh://board/x?y": "%3F",
    "host://board/x": "takes a folder only",
    "host:///": "name a folder",
}


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_a_bad_address_is_refused_without_its_password(command: Command, model: Path, address: str) -> None:
    result = command("deploy", model, "--to", address)
    assert (result.code, result.out) == (ExitCode.BAD_INPUT, "")
    assert BAD_ADDRESSES[address] in result.err
    assert "gehe" not in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "host:///tmp/x"], "give one of MODEL, --rollback, --switch VERSION and --list; found none"),
        (["m.tflite", "--rollback", "--to", "host:///tmp/x"], "found MODEL, --rollback"),
        (["missing.tflite", "--to", "host:///tmp/x"], "missing.tflite"),
        (["--rollback", "--to", "host:///tmp/edgepipe-none"], "nothing was ever deployed"),
        (["MODEL", "--to", "host:///tmp/x", "--to", "host:///tmp/x"], "is given twice"),
        (["MODEL", "--to", "host:///tmp/x", "--device", "nucleo-l4r5zi"], "is a microcontroller"),
        (["MODEL", "--to", "host:///tmp/x", "--device", "raspberry-pi-5x"], "unknown device"),
        (["MODEL", "--to", "host:///tmp/x", "--max", "flash=1KiB"], "only latency and ram"),
        (["MODEL", "--to", "host:///tmp/x", "--max", "latency=1"], "has no unit"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(command: Command, model: Path, arguments: list[str], message: str) -> None:
    result = command("deploy", *(model if word == "MODEL" else word for word in arguments))
    assert (result.code, message in result.err) == (ExitCode.BAD_INPUT, True), result.err
    assert len(result.err.strip().splitlines()) == 1


def _refusal(command: Command, model: Path, url: str, *options: object) -> str:
    """The message of a deployment that cannot reach or use its device."""
    result = command("deploy", model, "--to", url, "--samples", 2, *options)
    assert (result.code, result.out) == (ExitCode.UNREACHABLE, ""), result.out + result.err
    (line,) = result.err.strip().splitlines()
    return line


def test_an_unknown_host_is_refused_until_it_is_accepted(
    command: Command, board: Sshd, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    for name in ("id_ed25519", "id_ed25519.pub"):
        (home / ".ssh" / name).write_bytes((board.home / ".ssh" / name).read_bytes())
    monkeypatch.setenv("HOME", str(home))
    url = board.url(tmp_path / "app")
    message = _refusal(command, model, url)
    assert "is not known" in message
    assert "--accept-new-host-key" in message
    assert "SHA256:" in message
    assert not (home / ".ssh" / "known_hosts").exists()
    accepted = command("deploy", model, "--to", url, "--samples", 2, "--accept-new-host-key")
    assert (accepted.code, "accepted its host key" in accepted.err) == (0, True)
    assert command("deploy", "--list", "--to", url).code == 0


def test_a_changed_host_key_is_never_accepted(
    command: Command, board: Sshd, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh_server.make_user(tmp_path / "stranger")
    key = (tmp_path / "stranger" / ".ssh" / "id_ed25519.pub").read_text().split()
    monkeypatch.setenv("HOME", str(tmp_path / "stranger"))
    known_hosts = tmp_path / "stranger" / ".ssh" / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{board.port} {key[0]} {key[1]}\n")
    message = _refusal(command, model, board.url(tmp_path / "app"), "--accept-new-host-key")
    assert "has CHANGED" in message
    assert "ssh-keygen -R" in message
    host_key = (board.folder / "host_key.pub").read_text().split()
    known_hosts.write_text(
        f"[127.0.0.1]:{board.port} {host_key[0]} {host_key[1]}\n@revoked * {host_key[0]} {host_key[1]}\n"
    )
    assert "revoked" in _refusal(command, model, board.url(tmp_path / "app"))


def test_a_key_that_the_device_does_not_know_is_refused(
    command: Command, board: Sshd, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh_server.make_user(tmp_path / "stranger")
    (tmp_path / "stranger" / ".ssh" / "known_hosts").write_bytes((board.home / ".ssh" / "known_hosts").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path / "stranger"))
    message = _refusal(command, model, board.url(tmp_path / "app"))
    assert "was refused with every key" in message
    assert "ssh-copy-id" in message
    key_file = tmp_path / "stranger" / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "geheim", "-f", str(key_file)], check=True)
    assert "ssh-add" in _refusal(command, model, board.url(tmp_path / "app"))
    key_file.unlink()
    assert "ssh-keygen" in _refusal(command, model, board.url(tmp_path / "app"))


@contextmanager
def _answering(greeting: bytes) -> Iterator[int]:
    """A server that sends `greeting` to whoever connects and closes, or without one says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            if greeting:
                connection.sendall(greeting)
                connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        for connection in connections:
            connection.close()


def test_a_host_that_is_down_or_speaks_something_else_is_named(
    command: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not answer" in _refusal(command, model, f"ssh://127.0.0.1:{ssh_server.free_port()}/x")
    assert "no host 'no-such-board.invalid'" in _refusal(command, model, "ssh://no-such-board.invalid/x")
    with _answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "does not speak ssh" in _refusal(command, model, f"ssh://127.0.0.1:{port}/x")
    monkeypatch.setattr("edgepipe.deploy.ssh_transport.CONNECT_SECONDS", 0.5)
    with _answering(b"") as port:
        assert "does not speak ssh" in _refusal(command, model, f"ssh://127.0.0.1:{port}/x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a shell of the last connection may be in it


def test_a_full_disk_is_named_and_what_ran_before_still_runs(
    command: Command, board: Sshd, model: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepipe.deploy.staging.SPARE_BYTES", 0)
    url, folder = board.url(small_disk / "app"), small_disk / "app"
    assert command("deploy", model, "--to", url, "--samples", 2).code == 0
    before = running_version(folder)
    large = classifier(tmp_path / "large.tflite", width=4000)
    assert "KiB free" in _refusal(command, large, url)
    monkeypatch.setattr("edgepipe.deploy.staging._check_space", lambda *_: None)
    assert "disk is full" in _refusal(command, large, url)
    assert running_version(folder) == before
