"""What the user's OpenSSH configuration says about a host: address, user, keys, jumps, known hosts."""

import getpass
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.deploy.target_url import TargetUrl
from edgepipe.deploy.transport import DeviceError

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
DEFAULT_PORT = 22


@dataclass(frozen=True)
class SshSettings:
    """One hop. `host_key_name` is what the host is listed as in the files of known hosts, the user's first."""

    address: str
    port: int
    user: str
    key_files: tuple[str, ...]
    only_these_keys: bool
    host_key_name: str
    known_hosts: tuple[Path, ...]
    proxy_command: str | None
    jumps: tuple[str, ...]

    @property
    def server_name(self) -> str:
        """What paramiko looks the host key up as."""
        return self.address if self.port == DEFAULT_PORT else f"[{self.address}]:{self.port}"


def read_settings(url: TargetUrl) -> SshSettings:
    """The settings of a host or of an alias; what the address itself says counts more.

    Raises:
        DeviceError: the configuration cannot be read.
    """
    options = _load_config().lookup(url.host)
    port = url.port or _read_port(url, options.get("port"))
    address = options.get("hostname", url.host)
    proxy_jump, proxy_command = options.get("proxyjump", "none"), options.get("proxycommand")
    return SshSettings(
        address=address,
        port=port,
        user=url.user or options.get("user") or getpass.getuser(),
        key_files=tuple(str(Path(name).expanduser()) for name in options.get("identityfile", [])),
        only_these_keys=options.get("identitiesonly", "no").lower() == "yes",
        host_key_name=_host_key_name(options.get("hostkeyalias", address), port, "hostkeyalias" in options),
        known_hosts=_known_hosts_files(options.get("userknownhostsfile")),
        proxy_command=proxy_command if proxy_command not in (None, "none") else None,
        jumps=tuple(jump.strip() for jump in proxy_jump.split(",")) if proxy_jump.lower() != "none" else (),
    )


def _load_config() -> Any:
    import paramiko

    config = paramiko.SSHConfig()
    for path in (Path.home() / ".ssh" / "config", SYSTEM_CONFIG):
        if path.is_file():
            try:
                config.parse(path.read_text(encoding="utf-8").splitlines())
            except (OSError, ValueError, paramiko.SSHException) as error:
                raise DeviceError(f"{path}: cannot be read as an ssh configuration: {error}") from None
    return config


def _read_port(url: TargetUrl, text: str | None) -> int:
    if text is not None and not text.isdigit():
        raise DeviceError(f"{url.name}: the ssh configuration says port '{text}', which is no number")
    return int(text) if text else DEFAULT_PORT


def _host_key_name(name: str, port: int, is_alias: bool) -> str:
    return name if is_alias or port == DEFAULT_PORT else f"[{name}]:{port}"


def _known_hosts_files(text: str | None) -> tuple[Path, ...]:
    names = text.split() if text else ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"]
    # Python's home folder is $HOME, OpenSSH's that of the account; they differ in containers and tests.
    return (*(Path(name).expanduser() for name in names if name != "none"), SYSTEM_KNOWN_HOSTS)
