"""Predicts the latency of a model from a device's calibration, with an interval and what lies outside the fit."""

from dataclasses import dataclass

from edgepipe.core.metric import Evidence, Metric
from edgepipe.core.units import Dimension
from edgepipe.devices.calibration.calibration_record import Calibration
from edgepipe.devices.calibration.cost_terms import Part, parts, total
from edgepipe.tflite.host_fingerprint import fingerprint
from edgepipe.tflite.model import Model

BEYOND = 1.5  # times the largest of the suite is outside the fitted range
MATTERS = 0.1  # of the operator's time: terms below it may lie anywhere
OVERHEADS = ("call", "call_matrix", "change")
NAMED = 4  # reasons that a metric spells out
WIDER = 2.0  # times the interval's distance from 1, when something lies outside
LIKE = {"uint8": "int8"}  # types whose kernels do nearly the same work
GENERAL = "add"  # stands for an operator that the suite does not have: a pass over its bytes


@dataclass(frozen=True)
class Predicted:
    """The seconds of one operator, and why they are no more than a guess (empty if they are)."""

    part: Part
    seconds: float
    outside: str


@dataclass(frozen=True)
class Estimate:
    """The latency in seconds with its 90 % interval, by operator, and what lies outside the fitted range."""

    seconds: float
    low: float
    high: float
    operators: tuple[Predicted, ...]
    outside: tuple[str, ...]


def estimate(calibration: Calibration, model: Model) -> Estimate:
    """Predict one inference of `model`; every operator that the suite does not cover is named in `outside`."""
    found = parts(model)
    operators = tuple(_predict(calibration, part) for part in found)
    overhead = _overhead(calibration, found)
    outside = tuple(dict.fromkeys(operator.outside for operator in operators if operator.outside))
    seconds = overhead + sum(operator.seconds for operator in operators)
    low, high = calibration.interval
    if outside:
        low, high = low**WIDER, high**WIDER
    return Estimate(seconds, seconds * low, seconds * high, operators, outside)


def metric(calibration: Calibration, model: Model, device: str) -> Metric:
    """The metric `latency` of `device`, estimated."""
    found = estimate(calibration, model)
    about, error = calibration.measured, calibration.across
    how = (
        f"estimated from {about.models} models measured on {about.runtime}, {about.threads} thread(s), {about.at}; "
        f"held-out composites: median error {error.median:.1%}, 90th percentile {error.p90:.1%}; 90 % interval"
    )
    named = [*found.outside[:NAMED], *([f"{len(found.outside) - NAMED} more"] if len(found.outside) > NAMED else [])]
    if found.outside:
        how += f"; extrapolates, interval widened: {'; '.join(named)}"
    if fingerprint().digest != about.host_digest:
        how += f"; calibrated on another machine: {about.host}"
    return Metric(
        name="latency",
        value=found.seconds,
        unit=Dimension.SECONDS,
        evidence=Evidence.ESTIMATED,
        device=device,
        how=how,
        interval=(found.low, found.high),
        details={
            "threads": about.threads,
            "version": about.runtime,
            "measured_at": about.at,
            "host": about.host,
            "host_digest": about.host_digest,
            "error_median": error.median,
            "error_p90": error.p90,
            "extrapolates": "; ".join(found.outside) or "no",
        },
    )


def _predict(calibration: Calibration, part: Part) -> Predicted:
    kind, outside = part.kind, ""
    if kind not in calibration.largest:
        kind = _nearest(calibration, part.kind)
        outside = f"{part.place}: '{part.kind}' is not in the suite; taken for '{kind}'"
    prices = {name: calibration.seconds.get(f"{kind}.{name}", 0.0) * value for name, value in part.terms.items()}
    seconds, largest = sum(prices.values()), calibration.largest.get(kind, {})
    for name, value in part.terms.items():
        beyond = value > BEYOND * largest.get(name, 0.0) and prices[name] > MATTERS * seconds
        if beyond and not outside:
            most = f"the suite has up to {largest.get(name, 0.0):.3g}"
            outside = f"{part.place}: {name.replace('_', ' ')} of {kind} is {value:.3g}, {most}"
    return Predicted(part, seconds, outside)


def _nearest(calibration: Calibration, kind: str) -> str:
    """The fitted kind whose work is most alike: the same operator on int8, else a pass over the bytes."""
    base = kind.rsplit("_", 1)[0] if kind.rsplit("_", 1)[-1] in LIKE else kind
    return base if base in calibration.largest else GENERAL


def _overhead(calibration: Calibration, found: list[Part]) -> float:
    totals = total(found)
    return sum(calibration.seconds.get(name, 0.0) * totals.get(name, 0.0) for name in OVERHEADS)
