"""`edgepipe measure`: what a model computes on a device, how fast, and in how much memory, without deploying it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepipe.deploy import measurement
from edgepipe.deploy.backends import ConnectionOptions, connect
from edgepipe.deploy.golden_vectors import GoldenOptions, GoldenVectors, build_golden_vectors
from edgepipe.deploy.health_check import HealthReport
from edgepipe.deploy.proof import DeploymentOptions, Package
from edgepipe.deploy.target_url import TargetUrl, parse_url
from edgepipe.tflite import reader


@dataclass(frozen=True)
class DeviceMeasurement:
    """A model on one device."""

    path: Path
    url: TargetUrl
    golden: GoldenVectors
    health: HealthReport


def measure(
    model_path: Path,
    url: str,
    golden_options: GoldenOptions,
    options: DeploymentOptions,
    connection: ConnectionOptions,
    notify: Callable[[str], None],
) -> DeviceMeasurement:
    """Run the .tflite at `model_path` on the device at `url`.

    Args:
        model_path: a .tflite.
        url: the address of the device.
        golden_options: the vectors that are compared.
        options: limits, threads and runs; those of versions do not matter.
        connection: how to connect.
        notify: called with what a user should know while it runs.

    Raises:
        InputError: no .tflite, one that does not run here, samples that do not fit, or a malformed address.
        DeviceError: the device cannot be reached or used.
    """
    target = parse_url(url)
    golden = build_golden_vectors(reader.read(model_path), golden_options)
    package = Package(model_path.name, model_path.read_bytes(), golden)
    device = connect(target, connection)
    try:
        for note in device.transport.notes:
            notify(note)
        health = measurement.measure(device, package, options, notify)
    finally:
        device.transport.close()
    return DeviceMeasurement(model_path, target, golden, health)
