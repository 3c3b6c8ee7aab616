"""Latency that a fit predicts: its interval, each operator's part, and whether the model is like the fitted ones."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.metric import Evidence, Metric, unavailable
from edgepipe.core.units import Dimension, show
from edgepipe.devices.latency import operator_features
from edgepipe.devices.latency.fit_domain import WIDER, Known
from edgepipe.devices.latency.latency_fit import Rates
from edgepipe.devices.latency.latency_record import Fit
from edgepipe.devices.latency.processor_kinds import KINDS
from edgepipe.tflite.model import Model

TYPES = {"int8": "int8", "uint8": "int8", "float32": "float32"}


@dataclass(frozen=True)
class Estimate:
    """Seconds of one inference, their interval, and of each operator."""

    seconds: float
    low: float
    high: float
    operators: tuple[tuple[str, float], ...]  # place and seconds, of those that cost anything
    outside: tuple[str, ...]  # why the model is outside of what was fitted; empty: inside


@dataclass(frozen=True)
class Transfer:
    """From the fitted device to another one of its kind: by clock and one measured factor."""

    device: str  # the fitted one
    clock: float  # of the other device, hertz
    scale: float = 1.0
    error: float = 0.0  # standard deviation of the logarithm that this adds

    def stretch(self, fit: Fit) -> float:
        """What a fitted latency is multiplied by."""
        return fit.clock / self.clock * self.scale


def estimate(fit: Fit, model: Model, transfer: Transfer | None = None) -> Estimate:
    """The latency of `model` by `fit`."""
    kind = KINDS[fit.kind]
    rates = Rates(kind.features, np.array(list(fit.rates.values())), _square(fit), fit.noise)
    parts = [(operator, found) for operator, found in operator_features.of_operators(model, kind.tile, fit.on_chip)]
    total = operator_features.of_model(model, kind.tile, fit.on_chip)
    seconds, deviation = rates.predict(total)
    known = Known(frozenset(fit.operators), fit.largest, fit.seconds)
    outside = known.outside(total, fit.rates, {operator.name for operator, _ in parts})
    deviation = math.hypot(deviation, transfer.error if transfer else 0.0)
    reach = math.exp(deviation * fit.factor * (WIDER if outside else 1.0))
    stretch = transfer.stretch(fit) if transfer else 1.0
    places = tuple((operator.place, stretch * rates.predict(found)[0]) for operator, found in parts)
    return Estimate(stretch * seconds, stretch * seconds / reach, stretch * seconds * reach, places, outside)


def _square(fit: Fit) -> Array:
    size = len(fit.covariance)
    lower = np.zeros((size, size))
    for place, row in enumerate(fit.covariance):
        lower[place, : place + 1] = row
    return np.asarray(lower + lower.T - np.diag(np.diag(lower)))


def metric(fit: Fit, model: Model, device: str, transfer: Transfer | None = None) -> Metric:
    """The metric `latency` of `device`: estimated, or unavailable for a type that the fit does not hold for."""
    dtype = computing_type(model)
    if TYPES.get(dtype) != fit.dtype:
        reason = f"the fit holds for {fit.dtype} models, this one computes in {dtype}; convert it, or measure it"
        return unavailable("latency", Dimension.SECONDS, reason, device)
    found = estimate(fit, model, transfer)
    return Metric(
        name="latency",
        value=found.seconds,
        unit=Dimension.SECONDS,
        evidence=Evidence.ESTIMATED,
        device=device,
        how=_how(fit, found, transfer),
        interval=(found.low, found.high),
        details=_details(fit, found),
    )


def computing_type(model: Model) -> str:
    """The type of most activations that are multiplied, or of most inputs where nothing is."""
    products = [operator for operator in model.operators if operator.macs] or list(model.operators)
    types = Counter(first.dtype for operator in products if (first := operator.input(0)) is not None)
    return types.most_common(1)[0][0] if types else "nothing"


def _how(fit: Fit, found: Estimate, transfer: Transfer | None) -> str:
    said = f"fitted to {fit.points} {'measurement' if fit.points == 1 else 'measurements'} ({fit.source})"
    if fit.error is None:
        said += "; of one family, so that none could be held out: the interval rests on what the kind is known for"
    if fit.error is not None:
        median, p90 = (show(share, Dimension.FRACTION) for share in (fit.error.median, fit.error.p90))
        said += f"; families held out: median error {median}, 90 % within {p90}"
    if transfer is not None:
        said += f"; carried over from {transfer.device} by clock and a factor of {transfer.scale:.3g}"
    return said + (f"; EXTRAPOLATES: {'; '.join(found.outside)}" if found.outside else "")


def _details(fit: Fit, found: Estimate) -> dict[str, float | int | str]:
    details: dict[str, float | int | str] = {"rate": fit.rate, "points": fit.points, "source": fit.source}
    if fit.error is not None:
        details |= {"held_out_median": fit.error.median, "held_out_p90": fit.error.p90}
    return details | ({"extrapolates": "; ".join(found.outside)} if found.outside else {})
