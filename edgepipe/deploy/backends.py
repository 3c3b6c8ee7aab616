"""Opens the connection that a device's address asks for."""

from dataclasses import dataclass

from edgepipe.deploy.adb_transport import open_adb
from edgepipe.deploy.device import Device
from edgepipe.deploy.host_transport import HostTransport
from edgepipe.deploy.target_url import TargetUrl
from edgepipe.deploy.transport import Transport


@dataclass(frozen=True)
class ConnectionOptions:
    """`python`: the interpreter on the device; `accept_new_host_key`: trust a host that is met for the first time."""

    python: str = "python3"
    accept_new_host_key: bool = False


def connect(url: TargetUrl, options: ConnectionOptions) -> Device:
    """The device at `url`, connected; close its transport in the end.

    Raises:
        DeviceError: it cannot be reached, or is not what it was.
    """
    return Device(_open_transport(url, options), url.folder, python=options.python)


def _open_transport(url: TargetUrl, options: ConnectionOptions) -> Transport:
    if url.scheme == "host":
        return HostTransport()
    if url.scheme == "adb":
        return open_adb(url)
    from edgepipe.deploy.ssh_transport import open_ssh

    return open_ssh(url, options.accept_new_host_key)
