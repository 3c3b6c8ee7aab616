"""The metrics of a .tflite on a device, each with its evidence, and whether it fits and runs there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.budget import UNIT_BY_DEVICE_METRIC
from edgepipe.core.cache import Cache
from edgepipe.core.metric import Evidence, Finding, Limit, Metric, exact_metric, judge, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.devices import edgetpu_compiler, estimate_limits, memory_estimate, memory_fit, memory_placement
from edgepipe.devices.calibration import calibrated_latency
from edgepipe.devices.compiled_metrics import compiled_metric
from edgepipe.devices.device_profile import Device, MetricMethod, MetricSource, RuntimeProfile
from edgepipe.devices.latency import latency_estimate
from edgepipe.devices.latency.latency_estimate import FitTransfer
from edgepipe.devices.latency.latency_record import LatencyFit
from edgepipe.devices.operator_placement import OperatorPlacement, Processor
from edgepipe.devices.placement import npu_share_bounds, place_operators
from edgepipe.devices.runtime_answer import INSTALLED_TFLM, RunState, RuntimeAnswer, ask_runtime
from edgepipe.devices.support_check import check_support
from edgepipe.devices.vela import vela_metrics
from edgepipe.tflite import host_latency, tflm_memory, tflm_runtime
from edgepipe.tflite.child_process import ChildError
from edgepipe.tflite.compiled_file import read_compiled_file
from edgepipe.tflite.compressed_size import measure_compression
from edgepipe.tflite.model import Model

NPU_SHARE_METRIC = "npu_operators"
FALLBACK_RULE_NAME = "npu-fallback"
MAX_OPEN_LABELS = 5  # operators that the explanation of an estimated share names
LIST_RULE_NAMES = ("operator", "dtype")  # of findings that say by the profile's lists that the model does not run


@dataclass(frozen=True)
class DeviceMetrics:
    """The metrics, findings and operator placements of a model on one or more devices."""

    metrics: tuple[Metric, ...]
    findings_by_device: dict[str, tuple[Finding, ...]]
    notes: tuple[str, ...]
    placements_by_device: dict[str, tuple[OperatorPlacement, ...]]
    seconds_by_device: dict[str, dict[str, float]]  # by device, then operator; where known

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All rule violations, device by device."""
        return tuple(finding for device_findings in self.findings_by_device.values() for finding in device_findings)


def gather(
    model: Model, devices: list[Device], limits: list[Limit] | None = None, cache: Cache | None = None
) -> DeviceMetrics:
    """Latency, RAM and flash of `model` on each of `devices`, and every rule it violates there.

    Measuring runs the model on this host in a child process; TFLite Micro's allocator runs at most once. An operator
    that falls back from the NPU is a finding; if a limit on `npu_operators` allows that many, it is a note instead.

    Args:
        model: the model to evaluate.
        devices: resolved device profiles.
        limits: the budget, in base units; None: no limits.
        cache: keeps Vela's output, so that Vela runs once per accelerator; None: the default cache.

    Raises:
        InputError: a profile has settings that Vela rejects.
    """
    collector = _MetricCollector(model, cache)
    metrics = [collector.metric(name, device) for device in devices for name in _metric_names(device)]
    tolerant_device_names = {device.name for device in devices if _allows_fallback(limits or [], metrics, device)}
    fallbacks_by_device = {device.name: collector.fallback_findings(device) for device in devices}
    placements = {device.name: memory_placement.placement_findings(device, metrics, limits or []) for device in devices}
    findings_by_device = {
        device.name: tuple(
            finding.model_copy(update={"device": device.name})
            for finding in (
                *collector.rule_findings(device),
                *(fallbacks_by_device[device.name] if device.name not in tolerant_device_names else ()),
                *memory_fit.memory_findings(device, metrics, model),
                *placements[device.name].findings,
            )
        )
        for device in devices
    }
    notes = [
        f"{finding}; the budget allows it" for name in tolerant_device_names for finding in fallbacks_by_device[name]
    ]
    return DeviceMetrics(
        tuple(metrics),
        findings_by_device,
        (
            *notes,
            *(note for placement in placements.values() for note in placement.notes),
            *dict.fromkeys(
                analysis.cache_note for analysis in collector.vela_analysis_by_device.values() if analysis.cache_note
            ),
        ),
        {device.name: collector.placements(device) for device in devices},
        {device.name: collector.seconds_by_operator(device) for device in devices},
    )


def _metric_names(device: Device) -> list[str]:
    return [name for name in UNIT_BY_DEVICE_METRIC if name != NPU_SHARE_METRIC or device.system.npu is not None]


def _allows_fallback(limits: list[Limit], metrics: list[Metric], device: Device) -> bool:
    device_limits = [limit for limit in limits if limit.metric == NPU_SHARE_METRIC and limit.device == device.name]
    return bool(device_limits) and all(judge(limit, metrics).met for limit in device_limits)


class _MetricCollector:
    """Collects the metrics of one model; whatever does not depend on the device is computed once."""

    def __init__(self, model: Model, cache: Cache | None) -> None:
        self.model = model
        self.path = model.path
        self.cache = cache
        self.answer_by_runtime: dict[tuple[str, str, str | None], RuntimeAnswer] = {}
        self.measurement_by_threads: dict[int, host_latency.LatencyMeasurement] = {}
        self.vela_analysis_by_device: dict[str, vela_metrics.VelaAnalysis] = {}

    def metric(self, name: str, device: Device) -> Metric:
        if name == NPU_SHARE_METRIC:
            return self._npu_share(device)
        metric_source: MetricSource = {"latency": device.latency, "ram": device.ram, "flash": device.flash}[name]
        reason = metric_source.reason or estimate_limits.uncovered_reason(metric_source.by, self.model)
        if reason or metric_source.by is None:
            return unavailable_metric(name, UNIT_BY_DEVICE_METRIC[name], str(reason), device.name)
        return memory_placement.locate(self._metric_function(metric_source.by)(name, device, metric_source), device)

    def _metric_function(self, method: MetricMethod) -> "Callable[[str, Device, MetricSource], Metric]":
        function_by_method: dict[MetricMethod, Callable[[str, Device, MetricSource], Metric]] = {
            "host": lambda name, device, _: self._host_metric(name, device),
            "vela": lambda name, device, _: self._vela_metric(device, name),
            "tflite-micro": lambda _, device, __: self._arena_metric(device),
            "file": lambda name, device, _: file_size_metric(name, self.path, device.name),
            "program": lambda _, device, source: memory_estimate.estimate_program(
                source, self.model, device.runtime, device.name
            ),
            "fit": lambda _, device, __: estimate_latency(device, self.model, self._off_chip_reasons(device)),
            "transfer": lambda _, device, __: estimate_latency(device, self.model, self._off_chip_reasons(device)),
            "calibration": lambda _, device, __: self._calibrated_metric(device),
            "plan": lambda _, device, source: memory_estimate.estimate_ram(source, self.model, device.name),
            "weights": lambda _, device, source: memory_estimate.estimate_flash(source, self.model, device.name),
        }
        return function_by_method[method]

    def _off_chip_reasons(self, device: Device) -> list[str]:
        """Why on-chip memory does not hold the model: nothing says which of the fitted models were off-chip."""
        metrics = [self.metric(name, device) for name in self._placed_metric_names(device)]
        reasons = [memory_placement.crossing_reason(metric, device) for metric in metrics]
        return [f"{reason}, which the fit does not know" for reason in reasons if reason]

    def _placed_metric_names(self, device: Device) -> tuple[str, ...]:
        fit = resolve_fit(device)[0] if device.latency.by in ("fit", "transfer") else None
        knows_off_chip_weights = fit is not None and fit.on_chip is not None
        return ("ram",) if knows_off_chip_weights else ("ram", "flash")

    def rule_findings(self, device: Device) -> list[Finding]:
        """The rules that the model violates on `device`, without the operators that fall back."""
        analysis = self._vela_analysis(device)
        findings = [finding for finding in check_support(device, self.model) if finding.rule != FALLBACK_RULE_NAME]
        if analysis is not None and analysis.refusal_finding is not None:
            findings.append(analysis.refusal_finding)
        answer = self._runtime_answer(device)
        return findings + (answer.findings(self.model) if answer is not None else [])

    def _runtime_answer(self, device: Device) -> RuntimeAnswer | None:
        """What the runtime of `device` does with the model; None if its lists forbid the model anyway."""
        if any(finding.rule in LIST_RULE_NAMES for finding in check_support(device, self.model)):
            return None
        return self._ask(device.runtime)

    def _ask(self, runtime: RuntimeProfile) -> RuntimeAnswer:
        key = (runtime.name, runtime.version, runtime.kernels)
        if key not in self.answer_by_runtime:
            self.answer_by_runtime[key] = ask_runtime(runtime, self.model)
        return self.answer_by_runtime[key]

    def fallback_findings(self, device: Device) -> list[Finding]:
        """The operators that the NPU leaves to the core, from Vela if available, otherwise from the profile's list."""
        analysis = self._vela_analysis(device)
        if analysis is not None and analysis.compilation is not None:
            return analysis.fallback_findings
        return [finding for finding in check_support(device, self.model) if finding.rule == FALLBACK_RULE_NAME]

    def placements(self, device: Device) -> tuple[OperatorPlacement, ...]:
        """Where each operator runs, from Vela if available, otherwise from the profile."""
        analysis = self._vela_analysis(device)
        profile_placements = place_operators(device, self.model)
        if analysis is None or analysis.compilation is None:
            return profile_placements
        suggestion_by_operator = {placement.operator_label: placement.suggestion for placement in profile_placements}
        return tuple(
            OperatorPlacement(
                vela_placement.place,
                Processor(vela_placement.runs_on),
                vela_placement.reason,
                suggestion_by_operator.get(vela_placement.place, ""),
                evidence=Evidence.EXACT,
                basis=f"as Vela {analysis.compilation.version} compiles the model",
            )
            for vela_placement in analysis.compilation.placements
        )

    def seconds_by_operator(self, device: Device) -> dict[str, float]:
        """Seconds per operator, from a fit, a calibration or Vela; empty if none of them applies."""
        analysis = self._vela_analysis(device)
        if analysis is not None and analysis.compilation is not None:
            return analysis.seconds_by_operator()
        if device.latency.calibration is not None:
            calibrated_estimate = calibrated_latency.estimate(device.latency.calibration, self.model)
            return {
                operator.cost.operator_label: operator.seconds for operator in calibrated_estimate.operator_estimates
            }
        if device.latency.by in ("fit", "transfer"):
            fit, transfer = resolve_fit(device)
            return dict(latency_estimate.estimate(fit, self.model, transfer).operator_seconds)
        return {}

    def _vela_analysis(self, device: Device) -> "vela_metrics.VelaAnalysis | None":
        if device.system.npu is None or device.system.npu.vela is None:
            return None
        if device.name not in self.vela_analysis_by_device:
            self.vela_analysis_by_device[device.name] = vela_metrics.analyze(self.model, device, self.cache)
        return self.vela_analysis_by_device[device.name]

    def _vela_metric(self, device: Device, name: str) -> Metric:
        analysis = self._vela_analysis(device)
        if analysis is None:
            reason = "the profile says `by: vela` but has no `system.npu.vela` to say for which accelerator"
            return unavailable_metric(name, UNIT_BY_DEVICE_METRIC[name], reason, device.name)
        return analysis.metric(name)

    def _npu_share(self, device: Device) -> Metric:
        analysis = self._vela_analysis(device)
        if analysis is not None:
            return analysis.metric(NPU_SHARE_METRIC)
        compiled_file = read_compiled_file(self.model)
        if compiled_file is not None and compiled_file.code in device.custom_operators:
            return compiled_metric(NPU_SHARE_METRIC, compiled_file, self.model, device)
        if device.runtime.name == "edgetpu":
            if edgetpu_compiler.is_available():
                return edgetpu_compiler.npu_share_metric(self.path, device.name)
            return estimate_npu_share(device, self.model)
        reason = (
            "only the NPU's own compiler knows, and edgepipe does not run it; the rule npu-fallback uses the "
            "profile's operator list"
        )
        return unavailable_metric(NPU_SHARE_METRIC, UNIT_BY_DEVICE_METRIC[NPU_SHARE_METRIC], reason, device.name)

    def _arena_metric(self, device: Device) -> Metric:
        is_own_runtime = device.runtime.name == INSTALLED_TFLM.name
        answer = self._runtime_answer(device) if is_own_runtime else self._ask(INSTALLED_TFLM)
        return arena_metric(self.model, answer, device.name, is_32_bit=device.system.is_32_bit)

    def _calibrated_metric(self, device: Device) -> Metric:
        assert device.latency.calibration is not None, "required by the profile's schema"
        if reasons := self._off_chip_reasons(device):
            return unavailable_metric("latency", Dimension.SECONDS, "; ".join(reasons), device.name)
        return calibrated_latency.metric(device.latency.calibration, self.model, device.name)

    def _host_metric(self, name: str, device: Device) -> Metric:
        if reason := self._unmeasured_reason(device):
            return unavailable_metric(name, UNIT_BY_DEVICE_METRIC[name], reason, device.name)
        threads = device.runtime.threads
        if threads not in self.measurement_by_threads:
            try:
                self.measurement_by_threads[threads] = host_latency.measure(self.path, threads=threads)
            except ChildError as error:
                return unavailable_metric(name, UNIT_BY_DEVICE_METRIC[name], str(error), device.name)
        return next(
            m for m in host_latency.build_metrics(self.measurement_by_threads[threads], device.name) if m.name == name
        )

    def _unmeasured_reason(self, device: Device) -> str:
        """Why the model is not run for a measurement; empty if it is."""
        answer = self._runtime_answer(device)
        if answer is None:
            return "not run: the model has what the profile does not list, see the broken rules"
        return answer.reason if answer.state is not RunState.RUNS else ""


def estimate_npu_share(device: Device, model: Model) -> Metric:
    """The share of operators that the compiler likely maps, and the least and the most that it may map."""
    likely, low, high = npu_share_bounds(device, model)
    operator_count = len(model.operators)
    open_labels = [placement.operator_label for placement in place_operators(device, model) if placement.is_open]
    explanation = (
        f"likely {round(likely * operator_count)} of {operator_count} operators, between {round(low * operator_count)} "
        f"and {round(high * operator_count)}, by the profile's lists and what Coral's published pairs of models show"
    )
    if open_labels:
        explanation += f"; open: {', '.join(open_labels[:MAX_OPEN_LABELS])}"
        explanation += f" and {len(open_labels) - MAX_OPEN_LABELS} more" if len(open_labels) > MAX_OPEN_LABELS else ""
    return Metric(
        name=NPU_SHARE_METRIC,
        value=likely,
        unit=UNIT_BY_DEVICE_METRIC[NPU_SHARE_METRIC],
        evidence=Evidence.ESTIMATED,
        device=device.name,
        how=f"{explanation}; {edgetpu_compiler.INSTALL_HINT}",
        interval=(low, high),
    )


def arena_metric(
    model: Model, answer: RuntimeAnswer | None, device: str | None = None, *, is_32_bit: bool = False
) -> Metric:
    """The arena as TensorFlow Lite Micro records it, or, where it ran nothing to the end, as it is planned.

    On a 32-bit device it is the least arena there; without a device what is recorded on this host.

    `answer` is that of TensorFlow Lite Micro; None if it was not asked, because the device does not list all operators.
    """
    if answer is not None and answer.arena_record is not None:
        if is_32_bit:
            return tflm_memory.arena_32_bit(model, answer.arena_record, device)
        return tflm_runtime.arena_metric(answer.arena_record, device)
    if answer is not None and answer.state is RunState.REFUSES:
        return unavailable_metric("ram", Dimension.BYTES, answer.reason, device)
    reason = answer.reason if answer is not None else "the model has what the profile does not list"
    estimate = tflm_memory.estimate_arena_32_bit(model, device)
    return estimate.model_copy(update={"how": f"{estimate.how}; not measured: {reason}"})


def estimate_latency(device: Device, model: Model, outside_reasons: Sequence[str] = ()) -> Metric:
    """The latency of `model` from the fit of `device`, or from a fit transferred from another device.

    Args:
        device: a device whose latency is by `fit` or `transfer`.
        model: the model to estimate.
        outside_reasons: why the fit does not cover the model, besides its operators.
    """
    fit, transfer = resolve_fit(device)
    return latency_estimate.metric(fit, model, device.name, transfer, outside_reasons)


def resolve_fit(device: Device) -> tuple[LatencyFit, FitTransfer | None]:
    """The fit behind a device's estimated latency, and its transfer if the fit is of another device."""
    if device.latency.fit is not None:
        return device.latency.fit, None
    transfer = device.latency.transfer
    assert transfer is not None, "an estimate needs a fit or a transfer"
    assert transfer.fit is not None, "filled in by device_profile.load"
    assert device.system.clock is not None, "checked by device_profile.load"
    return transfer.fit, FitTransfer(
        transfer.device, device.system.clock, transfer.scale, transfer.error, transfer.source
    )


def file_size_metric(name: str, path: Path, device: str | None = None) -> Metric:
    """The size of the .tflite as the metric `name`."""
    explanation = "bytes of the .tflite; the runtime's own code is not in it"
    return exact_metric(name, path.stat().st_size, Dimension.BYTES, explanation, device)


def file_metrics(model: Model) -> list[Metric]:
    """Metrics counted from the file alone: size, compressed sizes, parameters, nonzero parameters, MACs."""
    return [
        exact_metric("size", model.bytes, Dimension.BYTES, "bytes of the .tflite"),
        *(
            exact_metric(
                f"size_{name}",
                archive.size,
                Dimension.BYTES,
                f"bytes of the .tflite compressed by {archive.compressor}",
            )
            for name, archive in measure_compression(model.content).items()
        ),
        exact_metric(
            "parameters", model.parameters, Dimension.COUNT, "elements of all weights and biases in the .tflite"
        ),
        exact_metric(
            "nonzero_parameters",
            model.parameters - model.zero_parameters,
            Dimension.COUNT,
            "elements of all weights and biases that differ from their zero point",
        ),
        _macs_metric(model),
    ]


def _macs_metric(model: Model) -> Metric:
    if model.open_size_reason:
        return unavailable_metric("macs", Dimension.COUNT, estimate_limits.describe_open_sizes(model))
    uncounted_note = (
        f"; not counted: {', '.join(model.uncounted_operator_names)}" if model.uncounted_operator_names else ""
    )
    return exact_metric("macs", model.macs, Dimension.COUNT, f"multiply-accumulates of one inference{uncounted_note}")
