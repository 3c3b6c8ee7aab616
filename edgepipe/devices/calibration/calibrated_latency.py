"""Predicts the latency of a model from a device's calibration, with an interval and reasons for extrapolation."""

from dataclasses import dataclass

from edgepipe.core.metric import Evidence, Metric
from edgepipe.core.units import Dimension, plural
from edgepipe.devices.calibration.calibration_record import DeviceCalibration
from edgepipe.devices.calibration.cost_terms import OperatorCost, compute_operator_costs, sum_terms
from edgepipe.tflite.host_fingerprint import fingerprint
from edgepipe.tflite.model import Model

EXTRAPOLATION_FACTOR = 1.5  # times the largest amount in the suite: beyond it the fit extrapolates
NOTABLE_SHARE = 0.1  # of the operator's time: extrapolated terms below it are ignored
OVERHEAD_TERM_NAMES = ("call", "call_matrix", "change")
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
    operator_estimates: tuple[OperatorEstimate, ...]
    extrapolation_reasons: tuple[str, ...]


def estimate(calibration: DeviceCalibration, model: Model) -> CalibratedEstimate:
    """Predict one inference of `model`; `extrapolation_reasons` names every operator that the suite does not cover."""
    operator_costs = compute_operator_costs(model)
    operator_estimates = tuple(_estimate_operator(calibration, cost) for cost in operator_costs)
    overhead_seconds = _overhead_seconds(calibration, operator_costs)
    extrapolation_reasons = tuple(
        dict.fromkeys(operator.extrapolation_reason for operator in operator_estimates if operator.extrapolation_reason)
    )
    seconds = overhead_seconds + sum(operator.seconds for operator in operator_estimates)
    low_factor, high_factor = calibration.interval
    if extrapolation_reasons:
        low_factor, high_factor = low_factor**WIDENING_EXPONENT, high_factor**WIDENING_EXPONENT
    return CalibratedEstimate(
        seconds, seconds * low_factor, seconds * high_factor, operator_estimates, extrapolation_reasons
    )


def metric(calibration: DeviceCalibration, model: Model, device: str) -> Metric:
    """The metric `latency` of `device`, estimated."""
    latency_estimate = estimate(calibration, model)
    suite_measurement, composite_errors = calibration.measured, calibration.across
    method_text = (
        f"estimated from {plural(suite_measurement.models, 'model')} measured on {suite_measurement.runtime}, "
        f"{plural(suite_measurement.threads, 'thread')}, {suite_measurement.at}; "
        f"held-out composites: median error {composite_errors.median:.1%}, "
        f"90th percentile {composite_errors.p90:.1%}; 90 % interval"
    )
    named_reasons = list(latency_estimate.extrapolation_reasons[:MAX_NAMED_REASONS])
    if len(latency_estimate.extrapolation_reasons) > MAX_NAMED_REASONS:
        named_reasons.append(f"{len(latency_estimate.extrapolation_reasons) - MAX_NAMED_REASONS} more")
    if latency_estimate.extrapolation_reasons:
        method_text += f"; extrapolates, interval widened: {'; '.join(named_reasons)}"
    if fingerprint().digest != suite_measurement.host_digest:
        method_text += f"; calibrated on another machine: {suite_measurement.host}"
    return Metric(
        name="latency",
        value=latency_estimate.seconds,
        unit=Dimension.SECONDS,
        evidence=Evidence.ESTIMATED,
        device=device,
        how=method_text,
        interval=(latency_estimate.low_seconds, latency_estimate.high_seconds),
        details={
            "threads": suite_measurement.threads,
            "version": suite_measurement.runtime,
            "measured_at": suite_measurement.at,
            "host": suite_measurement.host,
            "host_digest": suite_measurement.host_digest,
            "error_median": composite_errors.median,
            "error_p90": composite_errors.p90,
            "extrapolates": "; ".join(latency_estimate.extrapolation_reasons) or "no",
        },
    )


def _estimate_operator(calibration: DeviceCalibration, cost: OperatorCost) -> OperatorEstimate:
    kind, reason = cost.kind, ""
    if kind not in calibration.largest:
        kind = _nearest_kind(calibration, cost.kind)
        reason = f"{cost.operator_label}: '{cost.kind}' is not in the suite; estimated as '{kind}'"
    seconds_by_term = {
        name: calibration.seconds.get(f"{kind}.{name}", 0.0) * amount for name, amount in cost.term_amounts.items()
    }
    seconds, largest_amounts = sum(seconds_by_term.values()), calibration.largest.get(kind, {})
    for name, amount in cost.term_amounts.items():
        exceeds_suite = (
            amount > EXTRAPOLATION_FACTOR * largest_amounts.get(name, 0.0)
            and seconds_by_term[name] > NOTABLE_SHARE * seconds
        )
        if exceeds_suite and not reason:
            suite_limit = f"the suite has up to {largest_amounts.get(name, 0.0):.3g}"
            reason = f"{cost.operator_label}: {name.replace('_', ' ')} of {kind} is {amount:.3g}, {suite_limit}"
    return OperatorEstimate(cost, seconds, reason)


def _nearest_kind(calibration: DeviceCalibration, kind: str) -> str:
    """The fitted kind with the most similar work: the same operator on int8, otherwise a pass over the bytes."""
    base_kind = kind.rsplit("_", 1)[0] if kind.rsplit("_", 1)[-1] in EQUIVALENT_DTYPES else kind
    return base_kind if base_kind in calibration.largest else FALLBACK_KIND


def _overhead_seconds(calibration: DeviceCalibration, operator_costs: list[OperatorCost]) -> float:
    amount_by_term = sum_terms(operator_costs)
    return sum(calibration.seconds.get(name, 0.0) * amount_by_term.get(name, 0.0) for name in OVERHEAD_TERM_NAMES)
