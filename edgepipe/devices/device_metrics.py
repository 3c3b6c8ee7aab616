"""The metrics of a .tflite on a device, each with its evidence, and whether it fits and runs there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core import units
from edgepipe.core.budget import DEVICE_METRICS
from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Limit, Metric, judge, unavailable
from edgepipe.core.metric import exact as _exact
from edgepipe.core.units import Dimension
from edgepipe.devices import edgetpu_compiler, memory_estimate
from edgepipe.devices.calibration import calibrated_latency as calibrated
from edgepipe.devices.device_profile import Device, Obtained, Way
from edgepipe.devices.latency import latency_estimate
from edgepipe.devices.latency.latency_estimate import Transfer
from edgepipe.devices.latency.latency_record import Fit
from edgepipe.devices.placement import Placed, Where, placement
from edgepipe.devices.support_check import check
from edgepipe.devices.vela import vela_metrics as vela
from edgepipe.tflite import host_latency, tflm_runtime
from edgepipe.tflite.arena_plan import plan
from edgepipe.tflite.compressed_size import compressed
from edgepipe.tflite.model import Model

NPU_SHARE = "npu_operators"
FALLBACK = "npu-fallback"


@dataclass(frozen=True)
class OnDevice:
    """What was found out about a model on one device."""

    metrics: tuple[Metric, ...]
    broken: dict[str, tuple[Finding, ...]]  # by device
    notes: tuple[str, ...]
    placed: dict[str, tuple[Placed, ...]]  # by device
    seconds: dict[str, dict[str, float]]  # by device and operator, where they are known

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every rule that is broken, device by device."""
        return tuple(finding for found in self.broken.values() for finding in found)


def gather(
    model: Model, devices: list[Device], limits: list[Limit] | None = None, cache: Cache | None = None
) -> OnDevice:
    """Latency, RAM and flash of `model` on each of `devices`, and every rule it breaks there.

    Measuring runs the model on this host in a child process; TFLite Micro's allocator runs at most once; Vela runs once
    for each accelerator unless `cache` (None: the default one) has its result. An operator that falls back from the NPU
    is a finding, unless one of `limits` on `npu_operators` allows that many: then it is a note.
    """
    bench = _Bench(model, cache)
    metrics = [bench.metric(name, device) for device in devices for name in _names(device)]
    allowed = {device.name for device in devices if _allows_fallback(limits or [], metrics, device)}
    fallbacks = {device.name: bench.fallbacks(device) for device in devices}
    broken = {
        device.name: (*bench.broken(device), *(fallbacks[device.name] if device.name not in allowed else ()),
                      *_fits(device, metrics, model))
        for device in devices
    }  # fmt: skip
    notes = [f"{finding}; the budget allows it" for name in allowed for finding in fallbacks[name]]
    return OnDevice(
        tuple(metrics),
        broken,
        (*notes, *dict.fromkeys(told.note for told in bench.told.values() if told.note)),
        {device.name: bench.placed(device) for device in devices},
        {device.name: bench.seconds(device) for device in devices},
    )


def _names(device: Device) -> list[str]:
    return [name for name in DEVICE_METRICS if name != NPU_SHARE or device.system.npu is not None]


def _allows_fallback(limits: list[Limit], metrics: list[Metric], device: Device) -> bool:
    own = [limit for limit in limits if limit.metric == NPU_SHARE and limit.device == device.name]
    return bool(own) and all(judge(limit, metrics).met for limit in own)


class _Bench:
    """Takes metrics of one model; what does not depend on the device is taken once."""

    def __init__(self, model: Model, cache: Cache | None) -> None:
        self.model = model
        self.path = model.path
        self.cache = cache
        self.arena: Metric | None = None
        self.measured: dict[int, host_latency.Measurement] = {}
        self.told: dict[str, vela.Told] = {}

    def metric(self, name: str, device: Device) -> Metric:
        if name == NPU_SHARE:
            return self._npu_share(device)
        obtained: Obtained = {"latency": device.latency, "ram": device.ram, "flash": device.flash}[name]
        if obtained.by is None:
            return unavailable(name, DEVICE_METRICS[name], str(obtained.reason), device.name)
        return self._taken(obtained.by)(name, device, obtained)

    def _taken(self, by: Way) -> "Callable[[str, Device, Obtained], Metric]":
        ways: dict[Way, Callable[[str, Device, Obtained], Metric]] = {
            "host": lambda name, device, _: self._host(name, device),
            "vela": lambda name, device, _: self._vela(device, name),
            "tflite-micro": lambda _, device, __: self._arena().model_copy(update={"device": device.name}),
            "file": lambda name, device, _: file_bytes(name, self.path, device.name),
            "fit": lambda _, device, __: estimated(device, self.model),
            "transfer": lambda _, device, __: estimated(device, self.model),
            "calibration": lambda _, device, __: self._calibrated(device),
            "plan": lambda _, device, how: memory_estimate.ram(how, self.model, device.name),
            "weights": lambda _, device, how: memory_estimate.flash(how, self.model, device.name),
        }
        return ways[by]

    def broken(self, device: Device) -> list[Finding]:
        """The rules that the model breaks on `device`, without the operators that fall back."""
        told = self._told(device)
        found = [finding for finding in check(device, self.model) if finding.rule != FALLBACK]
        return found + ([told.crashed] if told is not None and told.crashed is not None else [])

    def fallbacks(self, device: Device) -> list[Finding]:
        """The operators that the NPU leaves to the core: as Vela tells, else by the profile's list."""
        told = self._told(device)
        if told is not None and told.compiled is not None:
            return told.fallbacks
        return [finding for finding in check(device, self.model) if finding.rule == FALLBACK]

    def placed(self, device: Device) -> tuple[Placed, ...]:
        """Where each operator runs: as Vela tells, else by the profile."""
        told = self._told(device)
        by_profile = placement(device, self.model)
        if told is None or told.compiled is None:
            return by_profile
        advice = {placed.operator: placed.suggestion for placed in by_profile}
        return tuple(
            Placed(found.place, Where(found.runs_on), found.reason, advice.get(found.place, ""))
            for found in told.compiled.placements
        )

    def seconds(self, device: Device) -> dict[str, float]:
        """What each operator takes, where a fit, a calibration or Vela tells it."""
        told = self._told(device)
        if told is not None and told.compiled is not None:
            return told.seconds()
        if device.latency.calibration is not None:
            found = calibrated.estimate(device.latency.calibration, self.model)
            return {operator.part.place: operator.seconds for operator in found.operators}
        if device.latency.by in ("fit", "transfer"):
            fit, transfer = latency_fit(device)
            return dict(latency_estimate.estimate(fit, self.model, transfer).operators)
        return {}

    def _told(self, device: Device) -> "vela.Told | None":
        if device.system.npu is None or device.system.npu.vela is None:
            return None
        if device.name not in self.told:
            self.told[device.name] = vela.ask(self.model, device, self.cache)
        return self.told[device.name]

    def _vela(self, device: Device, name: str) -> Metric:
        told = self._told(device)
        if told is None:
            reason = (
                f"the profile says `by: vela` and has no `system.npu.vela`, which tells {name} of which accelerator"
            )
            return unavailable(name, DEVICE_METRICS[name], reason, device.name)
        return told.metric(name)

    def _npu_share(self, device: Device) -> Metric:
        told = self._told(device)
        if told is not None:
            return told.metric(NPU_SHARE)
        if device.runtime.name == "edgetpu":
            return edgetpu_compiler.share(self.path, device.name)
        reason = (
            "only the NPU's own compiler tells, and edgepipe runs none for it; the rule npu-fallback goes by the "
            "profile's list of operators"
        )
        return unavailable(NPU_SHARE, DEVICE_METRICS[NPU_SHARE], reason, device.name)

    def _arena(self) -> Metric:
        if self.arena is None:
            self.arena = tflm_runtime.arena(self.path)
        return self.arena

    def _calibrated(self, device: Device) -> Metric:
        assert device.latency.calibration is not None, "the profile's schema demands it"
        return calibrated.metric(device.latency.calibration, self.model, device.name)

    def _host(self, name: str, device: Device) -> Metric:
        threads = device.runtime.threads
        if threads not in self.measured:
            self.measured[threads] = host_latency.measure(self.path, threads=threads)
        return next(m for m in host_latency.metrics(self.measured[threads], device.name) if m.name == name)


def estimated(device: Device, model: Model) -> Metric:
    """The latency of `model` by the fit of `device`, or by that of the device its profile carries over from."""
    fit, transfer = latency_fit(device)
    return latency_estimate.metric(fit, model, device.name, transfer)


def latency_fit(device: Device) -> tuple[Fit, Transfer | None]:
    """The fit behind a device's estimated latency, and how it is carried over to it."""
    if device.latency.fit is not None:
        return device.latency.fit, None
    carried = device.latency.transfer
    assert carried is not None, "an estimate is by a fit or by a transfer"
    assert carried.fit is not None, "filled in by profile.load"
    assert device.system.clock is not None, "checked by profile.load"
    return carried.fit, Transfer(carried.device, device.system.clock, carried.scale, carried.error)


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
    try:
        found = plan(model)
    except InputError as error:
        return f"; where the peak is cannot be told: {error}"
    place = found.peak_operator.place if found.peak_operator else "the inputs"
    return f"; most of it at {place}, where {units.show(found.naive_peak, Dimension.BYTES)} of tensors live at once"


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
