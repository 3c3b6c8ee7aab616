"""Puts files into a new folder on a device, durably, and reads them back."""

from collections.abc import Mapping
from hashlib import sha256

from edgepipe.core import interrupts
from edgepipe.deploy.device import Device
from edgepipe.deploy.transport import DeviceError

SPARE_BYTES = 1 << 20  # besides the files themselves: folders, and what the file system rounds up


def push(device: Device, folder: str, files: Mapping[str, bytes]) -> None:
    """Write `files` into the new `folder`, make them durable, and compare their digests as the device reads them.

    Raises:
        DeviceError: the disk is full, or a file is not what was sent.
    """
    _check_space(device, files)
    device.change("cannot create a folder", 'mkdir "$1"', folder)
    for name, content in files.items():
        interrupts.check()
        device.put(f"{folder}/{name}", content)
    device.make_durable(*(f"{folder}/{name}" for name in files), folder)
    check_digests(device, folder, compute_digests(files))


def compute_digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    return {name: sha256(content).hexdigest() for name, content in files.items()}


def check_digests(device: Device, folder: str, expected: Mapping[str, str]) -> None:
    """Compare the digests of files as the device reads them.

    Raises:
        DeviceError: a file is missing or differs.
    """
    observed = device.digests(folder)
    damaged_files = sorted(name for name, digest in expected.items() if observed.get(name) != digest)
    if damaged_files:
        raise DeviceError(
            f"{device.name}: {', '.join(damaged_files)} in {folder} is not what was sent (digest differs); "
            "the medium or the connection is faulty"
        )


def _check_space(device: Device, files: Mapping[str, bytes]) -> None:
    """Refuse early what the disk cannot hold; where it does not say, the upload finds out."""
    result = device.run("df -Pk . | tail -n 1")
    fields = result.output.split()
    free_text = fields[3] if result.status == 0 and len(fields) >= 6 else ""
    needed = sum(map(len, files.values())) + SPARE_BYTES
    if free_text.isdigit() and int(free_text) * 1024 < needed:
        raise DeviceError(
            f"{device.name}: the disk of {device.folder} has {int(free_text):,} KiB free, and {needed // 1024:,} KiB "
            "are needed; free some space or deploy to another folder"
        )
