"""What is deployed and how, and the proof of it on the device, by whatever the device has."""

from collections.abc import Callable
from dataclasses import dataclass, field

from edgepipe.core.metric import Limit
from edgepipe.deploy import android_proof, health_check
from edgepipe.deploy.android_proof import AndroidOptions
from edgepipe.deploy.device import Device
from edgepipe.deploy.device_lock import DEFAULT_WAIT_SECONDS
from edgepipe.deploy.device_runtime import prepare_runtime
from edgepipe.deploy.golden_vectors import GoldenVectors
from edgepipe.deploy.health_check import (
    GOLDEN_FILE,
    RUNNER_FILE,
    HealthReport,
    MeasurementOptions,
    runner_source,
)
from edgepipe.deploy.versions import MODEL_FILE
from edgepipe.devices.device_profile import Device as DeviceProfile

DEFAULT_KEEP = 5


@dataclass(frozen=True)
class Package:
    """What is deployed: the model, its golden vectors, and where it comes from."""

    source: str
    content: bytes
    golden: GoldenVectors

    def files(self, runs_python: bool) -> dict[str, bytes]:
        """The files of a version, by name, but for its manifest; without Python the model alone."""
        if not runs_python:
            return {MODEL_FILE: self.content}
        return {
            MODEL_FILE: self.content,
            GOLDEN_FILE: self.golden.to_bytes(),
            RUNNER_FILE: runner_source(),
        }


@dataclass(frozen=True)
class DeploymentOptions:
    """How to deploy. `keep`: complete versions that stay on the device; `wait_seconds`: for its lock."""

    stage_only: bool = False
    keep: int = DEFAULT_KEEP
    wait_seconds: float = DEFAULT_WAIT_SECONDS
    install: bool = False
    limits: tuple[Limit, ...] = ()
    profile: DeviceProfile | None = None  # what metrics and limits are for; None: for the device by its address
    measurement: MeasurementOptions = field(default_factory=MeasurementOptions)
    android: AndroidOptions = field(default_factory=AndroidOptions)


def prove(
    device: Device, folder: str, package: Package, options: DeploymentOptions, notify: Callable[[str], None]
) -> HealthReport:
    """Run the model in `folder` on the device, and judge what it computes and how fast.

    Args:
        device: connected, with the lock held.
        folder: of the files, relative to the device's.
        package: what was put there.
        options: limits, profile, threads and runs, and what to install.
        notify: called with what a user should know while it runs.

    Raises:
        DeviceError: the device cannot run it.
    """
    if not device.transport.runs_python:
        name = options.profile.name if options.profile else device.name
        return android_proof.prove(device, folder, options.android, options.measurement, options.limits, name)
    prepare_runtime(device, options.install, notify)
    document = health_check.run_on_device(device, folder, options.measurement, MODEL_FILE)
    return health_check.check_health(document, package.golden, options.limits, device.name, options.profile)
