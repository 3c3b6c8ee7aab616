"""Android devices through the adb client: every command is an `adb shell` of its own."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import ClassVar, final

from edgepipe.deploy.local_process import HeldProcess, run_process, start_process
from edgepipe.deploy.target_url import TargetUrl
from edgepipe.deploy.transport import DeviceError, LostConnectionError, RunLimits

INSTALL_HINT = "install adb (Debian: adb; Android SDK: platform-tools), or pip install 'edgepipe[deploy]'"
ADB_SECONDS = 30.0
READY = "device"
REMEDIES = {
    "unauthorized": "unlock it and accept this computer's key in the dialog on its screen",
    "offline": "unplug it and plug it in again, or `adb reconnect`",
    "no permissions": "add a udev rule for it (Debian: apt-get install android-sdk-platform-tools-common)",
    "connecting": "try again in a moment",
    "recovery": "let it boot into Android",
    "sideload": "let it boot into Android",
    "bootloader": "let it boot into Android",
}


@final
@dataclass(frozen=True)
class AdbTransport:
    """One device, by its serial number."""

    name: str
    client: str
    serial: str
    notes: tuple[str, ...] = ()
    runs_python: ClassVar[bool] = False

    def run(self, command: str, input_bytes: bytes, limits: RunLimits) -> bytes:
        """See `Transport.run`."""
        output = run_process(self.name, self._shell_arguments(command), input_bytes, limits)
        if output.startswith((b"error:", b"adb: ")):  # the client's own words
            raise LostConnectionError(f"{self.name}: {output.decode(errors='replace').strip().splitlines()[0]}")
        return output

    def hold(self, command: str) -> HeldProcess:
        """See `Transport.hold`."""
        return HeldProcess(self.name, start_process(self._shell_arguments(command)))

    def _shell_arguments(self, command: str) -> list[str]:
        return [self.client, "-s", self.serial, "shell", command]

    def close(self) -> None:
        """Nothing stays open but adb's own server."""


def open_adb(url: TargetUrl) -> AdbTransport:
    """The device of the serial number in `url`, or without one the only device.

    Raises:
        DeviceError: there is no adb, no such device, more than one, or it is not ready.
    """
    client = find_client(url)
    if ":" in url.host and _state(client, url) != READY:
        _run_client(client, url, "connect", url.host)  # a device in the network, which adb does not look for itself
        time.sleep(0.1)
    states = _list_states(client, url)
    serial = url.host or _only_serial(url, states)
    state = states.get(serial)
    if state is None:
        found_text = ", ".join(states) or "none"
        raise DeviceError(f"{url.name}: no device '{serial}' is attached; adb sees: {found_text}")
    if state != READY:
        remedy = next((text for word, text in REMEDIES.items() if state.startswith(word)), "see `adb devices`")
        raise DeviceError(f"{url.name}: {serial} is {state}: {remedy}")
    return AdbTransport(f"adb://{serial}", client, serial)


def find_client(url: TargetUrl) -> str:
    """The adb program: the user's own, else the one that adbutils brings.

    Raises:
        DeviceError: there is none.
    """
    client = shutil.which("adb")
    if client is not None:
        return client
    try:
        import adbutils
    except ImportError:
        raise DeviceError(f"{url.name}: there is no adb; {INSTALL_HINT}") from None
    return str(adbutils.adb_path())


def _only_serial(url: TargetUrl, states: dict[str, str]) -> str:
    if not states:
        raise DeviceError(
            f"{url.name}: no Android device is attached; switch USB debugging on in its developer options"
        )
    if len(states) > 1:
        raise DeviceError(
            f"{url.name}: {len(states)} devices are attached ({', '.join(states)}); name one: adb://SERIAL"
        )
    return next(iter(states))


def _state(client: str, url: TargetUrl) -> str | None:
    return _list_states(client, url).get(url.host)


def _list_states(client: str, url: TargetUrl) -> dict[str, str]:
    """The state of each attached device by its serial number."""
    lines = _run_client(client, url, "devices").splitlines()
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    return {serial: state.strip() for serial, state in pairs}


def _run_client(client: str, url: TargetUrl, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [client, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=ADB_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{url.name}: adb does not answer; `adb kill-server`, then try again") from None
    except OSError as error:
        raise DeviceError(f"{url.name}: {client} cannot be run: {error.strerror}") from None
    return done.stdout
