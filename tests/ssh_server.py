"""A real OpenSSH server on loopback, as an ordinary process with throw-away keys, and a user who may log in there."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd",) if Path(p).exists()), None)
MISSING = "needs the program sshd (Debian: openssh-server)"


@dataclass
class Sshd:
    """One server. `folder` has its keys; `home` is that of the user whose ssh files edgepipe reads."""

    folder: Path
    home: Path
    port: int
    process: subprocess.Popen[bytes]

    def url(self, folder: Path | str, port: int | None = None) -> str:
        """The address of a folder on it."""
        return f"ssh://127.0.0.1:{port or self.port}{folder}"

    def trust(self, port: int | None = None) -> None:
        """Make its host key known, also as that of a proxy on another port."""
        key = (self.folder / "host_key.pub").read_text().split()
        with (self.home / ".ssh" / "known_hosts").open("a") as stream:
            stream.write(f"[127.0.0.1]:{port or self.port} {key[0]} {key[1]}\n")

    def sessions(self) -> list[int]:
        """The processes below the server: one for each connection, and what they run."""
        return _descendants(self.process.pid)

    def kill_sessions(self) -> None:
        """End every connection and all that runs in it at once, as a power cut would."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


@contextlib.contextmanager
def running(
    folder: Path,
    home: Path,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    trusted: bool = True,
) -> Iterator[Sshd]:
    """A server that lets the key in `home` in; there `folder` is the home, and `python3` the tests' own Python."""
    folder.mkdir(parents=True, exist_ok=True)
    make_user(home)
    _make_key(folder / "host_key")
    shutil.copy(home / ".ssh" / "id_ed25519.pub", folder / "authorized_keys")
    (folder / "authorized_keys").chmod(0o600)
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    if not (bin_folder / "python3").exists():
        (bin_folder / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (bin_folder / "python3").chmod(0o755)
    port = free_port()
    settings = {"HOME": str(folder), "PATH": f"{bin_folder}:/usr/bin:/bin", **(environment or {})}
    lines = [
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host_key", f"PidFile {folder}/pid", "UsePAM no",
        "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin yes",
        f"AuthorizedKeysFile {folder}/authorized_keys", "Subsystem sftp none", "MaxStartups 100", *options,
        "SetEnv " + " ".join(f'{name}="{value}"' for name, value in settings.items()),
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    with (folder / "log").open("wb") as log:
        command = [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    server = Sshd(folder, home, port, process)
    try:
        _wait_until_listening(server)
        if trusted:
            server.trust()
        yield server
    finally:
        server.kill_sessions()
        process.kill()
        process.wait()


def make_user(home: Path) -> None:
    """A home folder with a key."""
    (home / ".ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_key(home / ".ssh" / "id_ed25519")


def _make_key(path: Path) -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_listening(server: Sshd) -> None:
    for _ in range(200):
        if server.process.poll() is not None:
            pytest.fail(f"sshd has ended: {(server.folder / 'log').read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")
