"""The metrics of a .tflite on a device, each with its evidence, and whether it fits and runs there."""

from dataclasses import dataclass
from pathlib import Path

from edgepipe import units
from edgepipe.budget import DEVICE_METRICS
from edgepipe.devices import memory
from edgepipe.devices.check import check
from edgepipe.devices.profile import Device, Obtained
from edgepipe.metric import Finding, Metric, unavailable
from edgepipe.metric import exact as _exact
from edgepipe.tflite import latency, micro
from edgepipe.tflite.compressed import compressed
from edgepipe.tflite.model import Model
from edgepipe.units import Dimension


@dataclass(frozen=True)
class OnDevice:
    """What was found out about a model on one device."""

    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]


def gather(model: Model, devices: list[Device]) -> OnDevice:
    """Latency, RAM and flash of `model` on each of `devices`, and every rule it breaks there.

    Measuring runs the model on this host in a child process; TFLite Micro's allocator runs at most once.
    """
    bench = _Bench(model)
    metrics = [bench.metric(name, device) for device in devices for name in DEVICE_METRICS]
    findings = [finding for device in devices for finding in check(device, model)]
    findings += [finding for device in devices for finding in _fits(device, metrics, model)]
    return OnDevice(tuple(metrics), tuple(findings))


class _Bench:
    """Takes metrics of one model; what does not depend on the device is taken once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.path = model.path
        self.arena: Metric | None = None
        self.measured: dict[int, latency.Measurement] = {}

    def metric(self, name: str, device: Device) -> Metric:
        obtained: Obtained = {"latency": device.latency, "ram": device.ram, "flash": device.flash}[name]
        if obtained.by is None:
            return unavailable(name, DEVICE_METRICS[name], str(obtained.reason), device.name)
        if obtained.by == "file":
            return file_bytes(name, self.path, device.name)
        if obtained.by == "plan":
            return memory.ram(obtained, self.model, memory.peak(self.model).bytes, device.name)
        if obtained.by == "weights":
            return memory.flash(obtained, self.model, device.name)
        if obtained.by == "tflite-micro":
            return self._arena().model_copy(update={"device": device.name})
        return next(m for m in self._host(device.runtime.threads, device.name) if m.name == name)

    def _arena(self) -> Metric:
        if self.arena is None:
            self.arena = micro.arena(self.path)
        return self.arena

    def _host(self, threads: int, device: str) -> list[Metric]:
        if threads not in self.measured:
            self.measured[threads] = latency.measure(self.path, threads=threads)
        return latency.metrics(self.measured[threads], device)


def file_bytes(name: str, path: Path, device: str | None = None) -> Metric:
    """The size of the .tflite, as the metric `name`."""
    how = "bytes of the .tflite; the runtime's own code is not in it"
    return _exact(name, path.stat().st_size, Dimension.BYTES, how, device)


def _fits(device: Device, metrics: list[Metric], model: Model) -> list[Finding]:
    limits = {"ram": device.system.memory.ram, "flash": device.system.memory.flash}
    return [
        Finding(
            rule=f"fits-{metric.name}",
            place=device.name,
            observed=f"{metric.text()} of {metric.name} needed, the device has {units.show(limit, Dimension.BYTES)}"
            + (_at_peak(model) if metric.name == "ram" else ""),
            suggestion="make the model smaller: fewer filters, a smaller input, pruned channels",
        )
        for metric in metrics
        if metric.device == device.name and (limit := limits.get(metric.name)) and (metric.value or 0) > limit
    ]


def _at_peak(model: Model) -> str:
    found = memory.peak(model)
    place = found.operator.place if found.operator else "the inputs"
    return f"; most of it at {place}, where {units.show(found.bytes, Dimension.BYTES)} of tensors live at once"


def counts(model: Model) -> list[Metric]:
    """What is counted from the file alone: size, as it is and compressed, parameters, those that are not zero, MACs."""
    left_out = f"; not counted: {', '.join(model.uncounted)}" if model.uncounted else ""
    return [
        _exact("size", model.bytes, Dimension.BYTES, "bytes of the .tflite"),
        *(_exact(f"size_{name}", found.size, Dimension.BYTES, f"bytes of the .tflite compressed by {found.by}")
          for name, found in compressed(model.content).items()),
        _exact("parameters", model.parameters, Dimension.COUNT, "elements of all weights and biases in the .tflite"),
        _exact("nonzero_parameters", model.parameters - model.zero_parameters, Dimension.COUNT,
               "elements of all weights and biases that differ from their zero point"),
        _exact("macs", model.macs, Dimension.COUNT, f"multiply-accumulates of one inference{left_out}"),
    ]  # fmt: skip
