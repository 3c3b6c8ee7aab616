"""`edgepipe deploy`: a model, or the last .tflite of a run, to devices; what is on them, and the way back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.errors import EdgepipeError, ExitCode
from edgepipe.deploy import deployment, versions
from edgepipe.deploy.backends import ConnectionOptions, connect
from edgepipe.deploy.fleet import DeviceOutcome, FleetOptions, work_on_all, worst_exit_code
from edgepipe.deploy.golden_vectors import GoldenOptions, GoldenVectors, build_golden_vectors
from edgepipe.deploy.proof import DeploymentOptions, Package
from edgepipe.deploy.target_url import TargetUrl, parse_url
from edgepipe.deploy.versions import Manifest, Version
from edgepipe.tflite import reader


@dataclass(frozen=True)
class FleetDeployment:
    """What was deployed, and how every device came out. `golden` is None of a rollback or a switch."""

    source: str
    outcomes: tuple[DeviceOutcome, ...]
    golden: GoldenVectors | None = None
    notes: tuple[str, ...] = ()

    @property
    def sole_error(self) -> EdgepipeError | None:
        """The error of the only device."""
        return self.outcomes[0].error if len(self.outcomes) == 1 else None

    @property
    def exit_code(self) -> ExitCode:
        """What the process ends with."""
        return worst_exit_code(self.outcomes)


@dataclass(frozen=True)
class ListedVersion:
    """A version on a device, and what its manifest says."""

    version: Version
    manifest: Manifest
    is_current: bool


@dataclass(frozen=True)
class DeviceListing:
    """The versions on one device, or why they are not known."""

    url: TargetUrl
    versions: tuple[ListedVersion, ...] = ()
    error: EdgepipeError | None = None


def deploy(
    model_path: Path,
    urls: Sequence[str],
    golden_options: GoldenOptions,
    options: DeploymentOptions,
    connection: ConnectionOptions,
    fleet: FleetOptions,
    notify: Callable[[str], None],
) -> FleetDeployment:
    """Deploy the .tflite at `model_path` to every device.

    Args:
        model_path: a .tflite.
        urls: addresses of devices.
        golden_options: the vectors that are compared.
        options: of the deployment on each device.
        connection: how to connect.
        fleet: canary, parallel devices and failures.
        notify: called with what a user should know while it runs.

    Raises:
        InputError: no .tflite, one that does not run here, samples that do not fit, or a malformed address.
    """
    targets = [parse_url(url) for url in urls]
    model = reader.read(model_path)
    golden = build_golden_vectors(model, golden_options)
    package = Package(model_path.name, model_path.read_bytes(), golden)
    outcomes = work_on_all(
        targets, lambda device, _: deployment.deploy(device, package, options, notify), connection, fleet, notify
    )
    return FleetDeployment(str(model_path), tuple(outcomes), golden, golden.notes)


def switch(
    urls: Sequence[str],
    version: str | None,
    options: DeploymentOptions,
    connection: ConnectionOptions,
    fleet: FleetOptions,
    notify: Callable[[str], None],
) -> FleetDeployment:
    """Switch every device to a version that it has; None goes back to the one that ran before.

    Args:
        urls: addresses of devices.
        version: its name; None for a rollback.
        options: how long to wait for the lock.
        connection: how to connect.
        fleet: canary, parallel devices and failures.
        notify: called with what a user should know while it runs.
    """
    targets = [parse_url(url) for url in urls]
    outcomes = work_on_all(
        targets, lambda device, _: deployment.switch_to(device, version, options, notify), connection, fleet, notify
    )
    return FleetDeployment(version or "rollback", tuple(outcomes))


def list_devices(urls: Sequence[str], connection: ConnectionOptions) -> list[DeviceListing]:
    """The versions on each device; one that cannot be reached hides no other.

    Raises:
        InputError: a malformed address.
    """
    return [_list_device(target, connection) for target in [parse_url(url) for url in urls]]


def _list_device(target: TargetUrl, connection: ConnectionOptions) -> DeviceListing:
    try:
        return _read_versions(target, connection)
    except EdgepipeError as error:
        return DeviceListing(target, error=error)


def _read_versions(target: TargetUrl, connection: ConnectionOptions) -> DeviceListing:
    device = connect(target, connection)
    try:
        if not device.has_folder():
            return DeviceListing(target)
        version_list = versions.list_versions(device)
        return DeviceListing(
            target,
            tuple(
                ListedVersion(v, versions.read_manifest(device, v.name), v.name == version_list.current)
                for v in version_list.versions
            ),
        )
    finally:
        device.transport.close()
