"""What a .tflite costs on devices before it is flashed: latency, RAM, flash, and where each of its operators runs."""

import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from pydantic import Field

from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric, Record
from edgepipe.devices import device_metrics, device_profile
from edgepipe.devices.device_metrics import OnDevice
from edgepipe.devices.device_profile import Device
from edgepipe.devices.placement import Placed
from edgepipe.tflite import interpreter, reader
from edgepipe.tflite.model import Model


class OperatorOnDevice(Record):
    """One operator on one device."""

    operator: str = Field(description="for example CONV_2D #3")
    runs_on: str = Field(description="NPU, GPU, CPU or unsupported")
    seconds: float | None = Field(description="by the same evidence as the latency; null: not known by operator")
    reason: str = Field(default="", description="why it does not run where it should")
    suggestion: str = Field(default="", description="the change that would bring it there")


class OnOneDevice(Record):
    """A model on one device."""

    device: str
    description: str
    runtime: str
    metrics: tuple[Metric, ...]
    operators: tuple[OperatorOnDevice, ...]
    findings: tuple[Finding, ...]

    @property
    def placed(self) -> dict[str, int]:
        """How many operators run where."""
        return dict(Counter(operator.runs_on for operator in self.operators))


class Profiled(Record):
    """A model on several devices."""

    path: str
    devices: tuple[OnOneDevice, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float] = Field(description="what profiling itself took: estimates, Vela, the rest")


def run(path: Path, devices: Collection[str] = (), cache: Cache | None = None, base: Path | None = None) -> Profiled:
    """Profile the .tflite at `path` on `devices`, by name or path to a profile; none of them means all there are.

    Estimates come first, then Vela, then what runs the model here; a rule that is broken is a finding, not an error.

    Raises:
        InputError: no .tflite, a damaged one, or an unknown device.
    """
    folder = base or Path.cwd()
    profiles = [device_profile.load(name, folder) for name in dict.fromkeys(devices or device_profile.names())]
    _check_names(profiles)
    model = reader.read(path)
    interpreter.check_runs(path)
    took: dict[str, float] = {}
    told = [_gather(model, part, cache, took, name) for name, part in _parts(profiles).items() if part]
    by_name = {device.name: found for part, found in told for device in part}
    return Profiled(
        path=str(path),
        devices=tuple(_on_one(device, by_name[device.name]) for device in profiles),
        notes=tuple(dict.fromkeys(note for _, found in told for note in found.notes)),
        seconds=took,
    )


def _check_names(profiles: list[Device]) -> None:
    twice = [name for name, count in Counter(device.name for device in profiles).items() if count > 1]
    if twice:
        raise InputError(f"two of the devices are called '{twice[0]}'; give one of them another name")


def _parts(profiles: list[Device]) -> dict[str, list[Device]]:
    """The devices by what has to run for them: nothing but arithmetic, Vela, or the model itself."""
    found: dict[str, list[Device]] = {"estimates": [], "Vela": [], "runs": []}
    for device in profiles:
        ways = {device.latency.by, device.ram.by}
        compiled = device.system.npu is not None and device.system.npu.vela is not None
        kind = "Vela" if compiled else "runs" if ways & {"host", "tflite-micro"} else "estimates"
        found[kind].append(device)
    return found


def _gather(
    model: Model, part: list[Device], cache: Cache | None, took: dict[str, float], name: str
) -> tuple[list[Device], OnDevice]:
    begin = time.perf_counter()
    found = device_metrics.gather(model, part, cache=cache)
    took[name] = time.perf_counter() - begin
    return part, found


def _on_one(device: Device, found: OnDevice) -> OnOneDevice:
    seconds = found.seconds[device.name]
    threads = f", {device.runtime.threads} threads" if device.runtime.threads > 1 else ""
    return OnOneDevice(
        device=device.name,
        description=device.description,
        runtime=f"{device.runtime.name} {device.runtime.version}{threads}",
        metrics=tuple(metric for metric in found.metrics if metric.device == device.name),
        operators=tuple(_operator(placed, seconds) for placed in found.placed[device.name]),
        findings=found.broken[device.name],
    )


def _operator(placed: Placed, seconds: dict[str, float]) -> OperatorOnDevice:
    return OperatorOnDevice(
        operator=placed.operator,
        runs_on=placed.where,
        seconds=seconds.get(placed.operator),
        reason=placed.reason,
        suggestion=placed.suggestion,
    )
