"""Predicts the latency of a model from a device's calibration, with an interval and reasons for extrapolation."""

from dataclasses import dataclass

from edgepipe.core.metric import Evidence, Metric
from edgepipe.core.units import Dimension, plural
from edgepipe.devices.calibration.calibration_record import DeviceCalibration
from edgepipe.devices.calibration.cost_terms import OperatorCost, operator_costs, sum_terms
from edgepipe.tflite.host_fingerprint import fingerprint
from edgepipe.tflite.model import Model

EXTRAPOLATION_FACTOR = 1.5  # times the largest amount in the suite: beyond it the fit extrapolates
NOTABLE_SHARE = 0.1  # of the operator's time: extrapolated terms below it are ignored
OVERHEAD_TERMS = ("call", "call_matrix", "change")
MAX_NAMED_REASONS = 4  # reasons listed in a metric
WIDENING_EXPONENT = 2.0  # the interval's bounds are raised to it when the fit extrapolates
EQUIVALENT_DTYPES = {"uint8": "int8"}  # types whose kernels do nearly the same work as those of another
FALLBACK_KIND = "add"  # used for operators that are not in the suite: one pass over the bytes


@dataclass(frozen=True)
class OperatorEstimate:
    """The seconds of one operator, and why they are extrapolated (empty if they are not)."""

    cost: OperatorCost
    seconds: float
    extrapolation_reason: str


@dataclass(frozen=True)
class CalibratedEstimate:
    """The latency in seconds with its 90 % interval, per operator, and the reasons for extrapolation."""

    seconds: float
    low_seconds: float
    high_seconds: float
    operators: tuple[OperatorEstimate, ...]
    extrapolation_reasons: tuple[str, ...]


def estimate(calibration: DeviceCalibration, model: Model) -> CalibratedEstimate:
    """Predict one inference of `model`; `extrapolation_reasons` names every operator that the suite does not cover."""
    costs = operator_costs(model)
    operators = tuple(_estimate_operator(calibration, cost) for cost in costs)
    overhead_seconds = _overhead_seconds(calibration, costs)
    reasons = tuple(
        dict.fromkeys(operator.extrapolation_reason for operator in operators if operator.extrapolation_reason)
    )
    seconds = overhead_seconds + sum(operator.seconds for operator in operators)
    low, high = calibration.interval
    if reasons:
        low, high = low**WIDENING_EXPONENT, high**WIDENING_EXPONENT
    return CalibratedEstimate(seconds, seconds * low, seconds * high, operators, reasons)


def metric(calibration: DeviceCalibration, model: Model, device: str) -> Metric:
    """The metric `latency` of `device`, estimated."""
    latency = estimate(calibration, model)
    run, error = calibration.measured, calibration.across
    method_text = (
        f"estimated from {plural(run.models, 'model')} measured on {run.runtime}, {plural(run.threads, 'thread')}, "
        f"{run.at}; "
        f"held-out composites: median error {error.median:.1%}, 90th percentile {error.p90:.1%}; 90 % interval"
    )
    named_reasons = list(latency.extrapolation_reasons[:MAX_NAMED_REASONS])
    if len(latency.extrapolation_reasons) > MAX_NAMED_REASONS:
        named_reasons.append(f"{len(latency.extrapolation_reasons) - MAX_NAMED_REASONS} more")
    if latency.extrapolation_reasons:
        method_text += f"; extrapolates, interval widened: {'; '.join(named_reasons)}"
    if fingerprint().digest != run.host_digest:
        method_text += f"; calibrated on another machine: {run.host}"
    return Metric(
        name="latency",
        value=latency.seconds,
        unit=Dimension.SECONDS,
        evidence=Evidence.ESTIMATED,
        device=device,
        how=method_text,
        interval=(latency.low_seconds, latency.high_seconds),
        details={
            "threads": run.threads,
            "version": run.runtime,
            "measured_at": run.at,
            "host": run.host,
            "host_digest": run.host_digest,
            "error_median": error.median,
            "error_p90": error.p90,
            "extrapolates": "; ".join(latency.extrapolation_reasons) or "no",
        },
    )


def _estimate_operator(calibration: DeviceCalibration, cost: OperatorCost) -> OperatorEstimate:
    kind, reason = cost.kind, ""
    if kind not in calibration.largest:
        kind = _nearest_kind(calibration, cost.kind)
        reason = f"{cost.operator_label}: '{cost.kind}' is not in the suite; estimated as '{kind}'"
    term_seconds = {
        name: calibration.seconds.get(f"{kind}.{name}", 0.0) * amount for name, amount in cost.terms.items()
    }
    seconds, largest_amounts = sum(term_seconds.values()), calibration.largest.get(kind, {})
    for name, amount in cost.terms.items():
        exceeds_suite = (
            amount > EXTRAPOLATION_FACTOR * largest_amounts.get(name, 0.0)
            and term_seconds[name] > NOTABLE_SHARE * seconds
        )
        if exceeds_suite and not reason:
            suite_limit = f"the suite has up to {largest_amounts.get(name, 0.0):.3g}"
            reason = f"{cost.operator_label}: {name.replace('_', ' ')} of {kind} is {amount:.3g}, {suite_limit}"
    return OperatorEstimate(cost, seconds, reason)


def _nearest_kind(calibration: DeviceCalibration, kind: str) -> str:
    """The fitted kind with the most similar work: the same operator on int8, otherwise a pass over the bytes."""
    base_kind = kind.rsplit("_", 1)[0] if kind.rsplit("_", 1)[-1] in EQUIVALENT_DTYPES else kind
    return base_kind if base_kind in calibration.largest else FALLBACK_KIND


def _overhead_seconds(calibration: DeviceCalibration, costs: list[OperatorCost]) -> float:
    totals = sum_terms(costs)
    return sum(calibration.seconds.get(name, 0.0) * totals.get(name, 0.0) for name in OVERHEAD_TERMS)
