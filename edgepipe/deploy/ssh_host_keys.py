"""Strict checks of host keys: a host must be known, and be what it was."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import paramiko

from edgepipe.core.artifact import wrap_storage_errors
from edgepipe.deploy.ssh_settings import SshSettings
from edgepipe.deploy.transport import DeviceError

REVOKED_MARK = "@revoked"


class StrictPolicy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko is not typed
    """Refuses a host that is not known, or on request remembers it."""

    def __init__(self, name: str, settings: SshSettings, accepts_new: bool) -> None:
        self.name, self.settings, self.accepts_new = name, settings, accepts_new
        self.note = ""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Called by paramiko for a host that has no key in any of the files, before anything is sent to it."""
        if key.get_base64() in _revoked_keys(self.name, self.settings.known_hosts):
            raise DeviceError(
                f"{self.name}: its host key {fingerprint(key)} is marked as revoked in a file of known hosts"
            )
        if not self.accepts_new:
            raise DeviceError(
                f"{self.name}: its host key {fingerprint(key)} is not known; compare it with the device's own "
                "(`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), then connect once with `ssh`, or add "
                "--accept-new-host-key"
            )
        file = self.settings.known_hosts[0]
        _remember(file, self.settings.host_key_name, key)
        self.note = f"{self.name}: accepted its host key {fingerprint(key)}, and added it to {file}"


def fingerprint(key: Any) -> str:
    """As OpenSSH prints it: type and SHA-256."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def changed_key_error(name: str, error: paramiko.BadHostKeyException, files: tuple[Path, ...]) -> DeviceError:
    """The error of a host that has another key than the known one."""
    return DeviceError(
        f"{name}: its host key has CHANGED to {fingerprint(error.key)}; known is {fingerprint(error.expected_key)}. "
        "Either the device was set up anew, or someone is in between. If you know why, remove the old key "
        f"(`ssh-keygen -R`, {', '.join(str(file) for file in files if file.exists())}) and connect again"
    )


def load_known_hosts(client: paramiko.SSHClient, name: str, settings: SshSettings) -> list[str]:
    """Give `client` the known keys of the host, by whatever name it is listed; notes on lines that cannot be read.

    Not by paramiko's own reader, which gives up on a file with `@revoked` or `@cert-authority` in it.

    Raises:
        DeviceError: a file cannot be read.
    """
    notes: list[str] = []
    known_keys = paramiko.HostKeys()
    revoked_keys = _revoked_keys(name, settings.known_hosts)
    for file in settings.known_hosts:
        for number, line in enumerate(_read_lines(name, file), 1):
            if not line.strip() or line.startswith(("#", "@")):
                continue
            entry = _parse_line(line)
            if entry is None:
                notes.append(f"{name}: {file}:{number} is not a known host that can be read; it is passed over")
                continue
            for hostname in entry.hostnames if entry.key.get_base64() not in revoked_keys else ():
                known_keys.add(hostname, entry.key.get_name(), entry.key)
    for key_type, key in (known_keys.lookup(settings.host_key_name) or {}).items():
        client.get_host_keys().add(settings.server_name, key_type, key)
    return notes


def _parse_line(line: str) -> Any:
    try:
        return paramiko.hostkeys.HostKeyEntry.from_line(line)
    except (ValueError, paramiko.SSHException, paramiko.hostkeys.InvalidHostKey):
        return None


def _read_lines(name: str, file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    except OSError as error:
        raise DeviceError(f"{name}: {file} cannot be read: {error.strerror}") from None


def _revoked_keys(name: str, files: tuple[Path, ...]) -> set[str]:
    lines = [line.split() for file in files for line in _read_lines(name, file) if line.startswith(REVOKED_MARK)]
    return {words[3] for words in lines if len(words) > 3}


def _remember(file: Path, hostname: str, key: Any) -> None:
    with wrap_storage_errors(str(file)):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as stream:
            is_open_line = file.stat().st_size and not file.read_bytes().endswith(b"\n")
            prefix = "\n" if is_open_line else ""
            stream.write(f"{prefix}{hostname} {key.get_name()} {key.get_base64()}\n")
