"""`edgepipe profile`: latency, RAM and flash of a .tflite on devices, and where each of its operators runs."""

import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from pydantic import Field

from edgepipe.commands.tflite_input import read_tflite
from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Metric, Record
from edgepipe.deploy.health_check import HealthReport
from edgepipe.devices import device_metrics, device_profile
from edgepipe.devices.device_metrics import DeviceMetrics
from edgepipe.devices.device_profile import Device
from edgepipe.devices.operator_placement import OperatorPlacement
from edgepipe.devices.runtime_answer import is_installed
from edgepipe.tflite.model import Model


class OperatorProfile(Record):
    """One operator on one device."""

    operator: str = Field(description="for example CONV_2D #3")
    runs_on: str = Field(description="NPU, GPU, CPU or unsupported")
    seconds: float | None = Field(description="with the same evidence as the latency; null: not known by operator")
    reason: str = Field(default="", description="why it does not run where it should")
    suggestion: str = Field(default="", description="the change that would bring it there")
    evidence: Evidence = Field(
        default=Evidence.ESTIMATED, description="of the placement: `exact` if a compiler or the file says it"
    )
    basis: str = Field(default="", description="what the placement is known from")
    is_open: bool = Field(default=False, description="nothing known settles the placement; `runs_on` is the likelier")


class DeviceProfileResult(Record):
    """A model on one device."""

    device: str
    description: str
    runtime: str
    metrics: tuple[Metric, ...]
    operators: tuple[OperatorProfile, ...]
    findings: tuple[Finding, ...]

    @property
    def operator_counts(self) -> dict[str, int]:
        """The number of operators by where they run."""
        return dict(Counter(operator.runs_on for operator in self.operators))


class ModelProfile(Record):
    """A model on several devices."""

    path: str
    devices: tuple[DeviceProfileResult, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float] = Field(description="what profiling itself took: estimates, Vela, the rest")


def profile_model(
    path: Path,
    devices: Collection[str] = (),
    cache: Cache | None = None,
    base: Path | None = None,
    measured: HealthReport | None = None,
) -> ModelProfile:
    """Profile the .tflite at `path` on `devices`.

    Estimates come first, then Vela, then measurements on this host; a broken rule is a finding, not an error.

    Args:
        path: the .tflite.
        devices: names or paths of profiles; none for all that come with edgepipe.
        cache: of Vela's results; None for the default one.
        base: the folder that paths of profiles are relative to; None for the current one.
        measured: what the board of the only device measured, in the place of what the profile says; None for none.

    Raises:
        InputError: no .tflite, a damaged one, or an unknown device.
    """
    folder = base or Path.cwd()
    loaded_devices = [
        device_profile.load(name, folder) for name in dict.fromkeys(devices or device_profile.device_names())
    ]
    _check_names(loaded_devices)
    model = read_tflite(path)
    seconds_by_method: dict[str, float] = {}
    metrics_of_groups = [
        _gather_metrics(model, group, cache, seconds_by_method, name)
        for name, group in _group_devices(loaded_devices).items()
        if group
    ]
    metrics_by_device = {device.name: metrics for group, metrics in metrics_of_groups for device in group}
    results = (_device_result(device, metrics_by_device[device.name]) for device in loaded_devices)
    notes = [note for _, metrics in metrics_of_groups for note in metrics.notes]
    return ModelProfile(
        path=str(path),
        devices=tuple(results if measured is None else (_with_measured(result, measured) for result in results)),
        notes=tuple(dict.fromkeys([*notes, *(measured.notes if measured is not None else ())])),
        seconds=seconds_by_method,
    )


def _with_measured(result: DeviceProfileResult, measured: HealthReport) -> DeviceProfileResult:
    """`result` with what was measured on the board, and what speaks against the model there."""
    metric_by_name = {metric.name: metric for metric in measured.metrics}
    return result.model_copy(
        update={
            "metrics": tuple(metric_by_name.get(metric.name, metric) for metric in result.metrics),
            "findings": (*result.findings, *measured.findings),
        }
    )


def _check_names(devices: list[Device]) -> None:
    duplicates = [name for name, count in Counter(device.name for device in devices).items() if count > 1]
    if duplicates:
        raise InputError(f"two devices are named '{duplicates[0]}'; rename one")


def _group_devices(devices: list[Device]) -> dict[str, list[Device]]:
    """The devices by what they need: estimates only, Vela, or a run of the model on this host."""
    devices_by_method: dict[str, list[Device]] = {"estimates": [], "Vela": [], "runs": []}
    for device in devices:
        has_vela = device.system.npu is not None and device.system.npu.vela is not None
        method = "Vela" if has_vela else "runs" if is_installed(device.runtime) else "estimates"
        devices_by_method[method].append(device)
    return devices_by_method


def _gather_metrics(
    model: Model, devices: list[Device], cache: Cache | None, seconds_by_method: dict[str, float], method: str
) -> tuple[list[Device], DeviceMetrics]:
    start = time.perf_counter()
    metrics = device_metrics.gather(model, devices, cache=cache)
    seconds_by_method[method] = time.perf_counter() - start
    return devices, metrics


def _device_result(device: Device, gathered_metrics: DeviceMetrics) -> DeviceProfileResult:
    seconds_by_operator = gathered_metrics.seconds_by_device[device.name]
    threads_text = f", {device.runtime.threads} threads" if device.runtime.threads > 1 else ""
    return DeviceProfileResult(
        device=device.name,
        description=device.description,
        runtime=f"{device.runtime.name} {device.runtime.version}{threads_text}",
        metrics=tuple(metric for metric in gathered_metrics.metrics if metric.device == device.name),
        operators=tuple(
            _operator_profile(placement, seconds_by_operator)
            for placement in gathered_metrics.placements_by_device[device.name]
        ),
        findings=gathered_metrics.findings_by_device[device.name],
    )


def _operator_profile(placement: OperatorPlacement, seconds_by_operator: dict[str, float]) -> OperatorProfile:
    return OperatorProfile(
        operator=placement.operator_label,
        runs_on=placement.runs_on,
        seconds=seconds_by_operator.get(placement.operator_label),
        reason=placement.reason,
        suggestion=placement.suggestion,
        evidence=placement.evidence,
        basis=placement.basis,
        is_open=placement.is_open,
    )
