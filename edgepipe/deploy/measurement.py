"""Measures a model on a device without deploying it: pushed to a folder of its own, run, and removed again."""

from collections.abc import Callable

from edgepipe.deploy import staging
from edgepipe.deploy.device import STATE_FOLDER, Device
from edgepipe.deploy.device_lock import locked
from edgepipe.deploy.health_check import HealthReport
from edgepipe.deploy.proof import DeploymentOptions, Package, prove

TRIAL_FOLDER = f"{STATE_FOLDER}/trial"


def measure(
    device: Device, package: Package, options: DeploymentOptions, notify: Callable[[str], None]
) -> HealthReport:
    """What the model computes on the device, how fast, and in how much memory; no version is touched.

    Args:
        device: connected; its folder keeps the lock, and the files while it runs.
        package: the model and its golden vectors.
        options: as of a deployment.
        notify: called with what a user should know while it runs.

    Raises:
        DeviceError: the device cannot be used.
    """
    device.create_folders()
    with locked(device, options.wait_seconds, notify):
        device.change("cannot remove an earlier trial", 'rm -rf "$1"', TRIAL_FOLDER)
        try:
            staging.push(device, TRIAL_FOLDER, package.files(device.transport.runs_python))
            return prove(device, TRIAL_FOLDER, package, options, notify)
        finally:
            device.change("cannot remove the trial", 'rm -rf "$1"', TRIAL_FOLDER)
