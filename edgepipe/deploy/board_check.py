"""Whether a device is the kind of board that a profile describes."""

import re
from pathlib import Path

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding
from edgepipe.deploy.runner_document import DeviceHost
from edgepipe.devices import device_profile
from edgepipe.devices.device_profile import Device

# what `uname -m` says where a profile has this architecture; a 64-bit board may run a 32-bit system
_MACHINES_BY_ARCHITECTURE = {
    r"Armv[89](\.\d+)?-A": ("aarch64", "arm64", "armv8l", "armv7l"),
    r"Armv7-A": ("armv7l", "armv8l", "aarch64"),
    r"Armv6": ("armv6l",),
    r"x86-64": ("x86_64", "amd64"),
}
_MICROCONTROLLER = re.compile(r"Armv\S*-M\b|Armv7E-M|Xtensa|RV32")


def load_board(name: str | None, base_folder: Path) -> Device | None:
    """The profile of a board that runs a system; None without a name.

    Raises:
        InputError: no such profile, or one of a microcontroller.
    """
    if name is None:
        return None
    profile = device_profile.load(name, base_folder)
    check_deployable(profile)
    return profile


def check_deployable(profile: Device) -> None:
    """Raise an `InputError` for a profile of a microcontroller: it has no system to deploy files to."""
    if _MICROCONTROLLER.match(profile.system.architecture):
        raise InputError(
            f"{profile.name} is a microcontroller ({profile.system.architecture}), which runs no system that a model "
            "can be copied to; a model is built into its firmware"
        )


def check_board(profile: Device, host: DeviceHost) -> list[Finding]:
    """A finding if the device's processor cannot be that of `profile`."""
    for pattern, machines in _MACHINES_BY_ARCHITECTURE.items():
        if re.match(pattern, profile.system.architecture) and host.machine not in machines:
            return [
                Finding(
                    rule="architecture",
                    place=host.cpu,
                    observed=f"is {host.machine}; {profile.name} is {profile.system.architecture}",
                    suggestion="name the profile of this board with --device, or none",
                    device=profile.name,
                )
            ]
    return []
