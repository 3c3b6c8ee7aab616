"""Deploys a model to one device: staged, read back, proved, and only then switched to.

The sequence is `deploy` below. Until the last rename nothing that runs on the device is touched, and that rename is
atomic; an interruption anywhere leaves a `.part` folder at most, which the next deployment removes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from edgepipe.core import interrupts
from edgepipe.core.errors import InputError
from edgepipe.core.references import installed_version
from edgepipe.deploy import staging, versions
from edgepipe.deploy.device import VERSIONS_FOLDER, Device
from edgepipe.deploy.device_lock import locked
from edgepipe.deploy.health_check import HealthReport
from edgepipe.deploy.proof import DeploymentOptions, Package, prove
from edgepipe.deploy.transport import DeviceError, LostConnectionError
from edgepipe.deploy.versions import (
    DIGEST_CHARACTERS,
    MANIFEST_FILE,
    MANIFEST_SCHEMA,
    PART_SUFFIX,
    Manifest,
)


@dataclass(frozen=True)
class Deployment:
    """What a deployment came to. `version` is None if the model failed its proof and was removed again."""

    version: str | None
    switched: bool
    previous: str | None
    health: HealthReport | None
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def deploy(device: Device, package: Package, options: DeploymentOptions, notify: Callable[[str], None]) -> Deployment:
    """Stage `package`, prove it on the device, and switch to it.

    Args:
        device: connected, with the folder of the deployment.
        package: the model and its golden vectors.
        options: how.
        notify: called with what a user should know while it runs.

    Raises:
        DeviceError: the device cannot do it; what ran before still runs.
    """
    device.create_folders()
    with locked(device, options.wait_seconds, notify):
        version_list = versions.list_versions(device)
        versions.remove_leftovers(device, version_list)
        name = f"{version_list.next_number:04d}-{sha256(package.content).hexdigest()[:DIGEST_CHARACTERS]}"
        part = f"{VERSIONS_FOLDER}/{name}{PART_SUFFIX}"
        files = package.files(device.transport.runs_python)
        staging.push(device, part, files)
        health = prove(device, part, package, options, notify)
        if not health.healthy:
            device.change("cannot remove what failed its proof", 'rm -rf "$1"', part)
            return Deployment(None, False, version_list.current, health)
        _complete(device, name, part, _build_manifest(package, files, health))
        if options.stage_only:
            return Deployment(name, False, version_list.current, health)
        interrupts.check()
        _switch(device, name)
        removed, notes = _prune(device, options.keep)
        return Deployment(name, True, version_list.current, health, removed, notes)


def _switch(device: Device, name: str) -> None:
    try:
        versions.switch(device, name)
    except LostConnectionError as error:
        raise DeviceError(f"{error}, while it switched to {name}; `edgepipe deploy --list` tells which runs") from None


def _prune(device: Device, keep: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The versions that were removed; the device has switched, so a failure is no more than a note."""
    try:
        return versions.prune(device, keep), ()
    except DeviceError as error:
        return (), (f"old versions were not removed: {error}",)


def _build_manifest(package: Package, files: dict[str, bytes], health: HealthReport) -> bytes:
    evidence = f"{package.golden.provenance}: {health.parity.text()}" if health.parity else "digest only"
    manifest = Manifest(
        model=package.source,
        created=versions.format_now(),
        edgepipe=installed_version("edgepipe"),
        digests=staging.compute_digests(files),
        evidence=evidence,
    )
    return (json.dumps({"schema": MANIFEST_SCHEMA, **manifest.model_dump()}, indent=2) + "\n").encode()


def _complete(device: Device, name: str, part: str, manifest: bytes) -> None:
    """Write the manifest and give the folder its name: from now on it is a complete version."""
    device.put(f"{part}/{MANIFEST_FILE}", manifest)
    device.make_durable(f"{part}/{MANIFEST_FILE}", part)
    staging.check_digests(device, part, staging.compute_digests({MANIFEST_FILE: manifest}))
    versions.complete(device, part, name)


def switch_to(
    device: Device, name: str | None, options: DeploymentOptions, notify: Callable[[str], None]
) -> Deployment:
    """Switch to a version that is on the device: `name`, or with None the one that ran before, as a rollback.

    Raises:
        DeviceError: the version is damaged, or there is nothing to go back to.
        InputError: no such version.
    """
    if not device.has_folder():
        raise InputError(f"{device.name}: nothing was ever deployed to {device.folder}")
    with locked(device, options.wait_seconds, notify):
        version_list = versions.list_versions(device)
        target = version_list.find(name) if name is not None else version_list.rollback_version
        if target is None:
            raise InputError(f"{device.name}: no version ran in {device.folder} before {version_list.current or 'any'}")
        versions.verify_version(device, target.name)
        _switch(device, target.name)
        if name is None and version_list.current is not None:
            versions.withdraw(device, version_list.current)
    return Deployment(target.name, True, version_list.current, None)
