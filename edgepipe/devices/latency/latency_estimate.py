"""Predicts latency from a fit: interval, seconds per operator, and whether the model is outside the fitted domain."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.metric import Evidence, Metric, unavailable_metric
from edgepipe.core.units import Dimension, plural, show
from edgepipe.devices.latency import operator_features
from edgepipe.devices.latency.fit_domain import FitDomain
from edgepipe.devices.latency.latency_fit import Rates
from edgepipe.devices.latency.latency_record import LatencyFit
from edgepipe.devices.latency.layer_shapes import FittedLayers, build_layer
from edgepipe.devices.latency.processor_kinds import PROCESSOR_KINDS
from edgepipe.tflite.model import HANDLE_TYPES, Model

OUTSIDE_FACTOR = 2.0  # widens the interval where something besides the operators is outside of the fit
FIT_DTYPE_BY_DTYPE = {"int8": "int8", "uint8": "int8", "float32": "float32"}


@dataclass(frozen=True)
class LatencyEstimate:
    """Seconds of one inference, with interval, and of each operator."""

    seconds: float
    low_seconds: float
    high_seconds: float
    operator_seconds: tuple[tuple[str, float], ...]  # location and seconds, of operators with a cost
    extrapolation_reasons: tuple[str, ...]  # why the model is outside the fitted domain; empty: inside


@dataclass(frozen=True)
class FitTransfer:
    """Transfers a fit to another device of the same kind, by clock and one measured factor."""

    fitted_device_name: str
    target_clock: float  # of the other device, hertz
    scale: float = 1.0
    deviation: float = 0.0  # additional standard deviation of the logarithm
    source: str = ""  # where scale and deviation come from

    def latency_factor(self, fit: LatencyFit) -> float:
        """The factor from the fitted device's latency to that of the other device."""
        return fit.clock / self.target_clock * self.scale


def estimate(
    fit: LatencyFit, model: Model, transfer: FitTransfer | None = None, outside_reasons: Sequence[str] = ()
) -> LatencyEstimate:
    """The latency of `model` by `fit`; `outside_reasons` are why it is outside of the fit besides its operators."""
    processor_kind = PROCESSOR_KINDS[fit.kind]
    rates = Rates(
        processor_kind.feature_names, np.array(list(fit.rates.values())), _symmetric_covariance(fit), fit.noise
    )
    operators_and_layers = [
        (operator, build_layer(operator, amounts))
        for operator, amounts in operator_features.iter_features(model, processor_kind.tile, fit.on_chip)
    ]
    layers = [layer for _, layer in operators_and_layers]
    layer_seconds = rates.predict_layers(layers)
    domain = FitDomain(frozenset(fit.operators), fit.largest, fit.seconds, FittedLayers.from_texts(fit.layers))
    total_features = operator_features.sum_features(model, processor_kind.tile, fit.on_chip)
    seconds, deviation = rates.predict(total_features, domain.layers.novelty(layers, layer_seconds))
    operator_names = {operator.name for operator, _ in operators_and_layers}
    extrapolation_reasons = (
        *domain.extrapolation_reasons(total_features, fit.rates, operator_names),
        *outside_reasons,
    )
    deviation = math.hypot(deviation, transfer.deviation if transfer else 0.0)
    interval_factor = math.exp(deviation * fit.factor * (OUTSIDE_FACTOR if outside_reasons else 1.0))
    latency_factor = transfer.latency_factor(fit) if transfer else 1.0
    operator_seconds = tuple(
        (operator.location, latency_factor * float(seconds))
        for (operator, _), seconds in zip(operators_and_layers, layer_seconds, strict=True)
    )
    return LatencyEstimate(
        latency_factor * seconds,
        latency_factor * seconds / interval_factor,
        latency_factor * seconds * interval_factor,
        operator_seconds,
        extrapolation_reasons,
    )


def _symmetric_covariance(fit: LatencyFit) -> Array:
    rate_count = len(fit.covariance)
    lower_triangle = np.zeros((rate_count, rate_count))
    for i, row in enumerate(fit.covariance):
        lower_triangle[i, : i + 1] = row
    return np.asarray(lower_triangle + lower_triangle.T - np.diag(np.diag(lower_triangle)))


def metric(
    fit: LatencyFit,
    model: Model,
    device: str,
    transfer: FitTransfer | None = None,
    outside_reasons: Sequence[str] = (),
) -> Metric:
    """The metric `latency` of `device`: estimated, or unavailable for a dtype that the fit does not cover.

    Args:
        fit: the fitted rates.
        model: the model to estimate.
        device: the name of the device.
        transfer: if the fit is of another device; None: it is of this one.
        outside_reasons: why the model is outside of the fit besides its operators, such as off-chip activations.
    """
    dtype = find_compute_dtype(model)
    if FIT_DTYPE_BY_DTYPE.get(dtype) != fit.dtype:
        reason = f"the fit is for {fit.dtype} models, this one computes in {dtype}; convert it, or measure it"
        return unavailable_metric("latency", Dimension.SECONDS, reason, device)
    latency_estimate = estimate(fit, model, transfer, outside_reasons)
    return Metric(
        name="latency",
        value=latency_estimate.seconds,
        unit=Dimension.SECONDS,
        evidence=Evidence.ESTIMATED,
        device=device,
        how=_method_text(fit, latency_estimate, transfer),
        interval=(latency_estimate.low_seconds, latency_estimate.high_seconds),
        details=_metric_details(fit, latency_estimate),
    )


def find_compute_dtype(model: Model) -> str:
    """The most common dtype of inputs to operators with MACs, or of all inputs if there are none."""
    mac_operators = [operator for operator in model.operators if operator.macs] or list(model.operators)
    dtype_counts = Counter(
        tensor.dtype
        for operator in mac_operators
        if (tensor := operator.input(0)) is not None and tensor.dtype not in HANDLE_TYPES
    )
    return dtype_counts.most_common(1)[0][0] if dtype_counts else "nothing"


def _method_text(fit: LatencyFit, latency_estimate: LatencyEstimate, transfer: FitTransfer | None) -> str:
    text = f"fitted to {plural(fit.points, 'measurement')} ({fit.source})"
    if fit.error is None:
        text += "; a single model family, none could be held out: the interval is from the prior of the processor kind"
    else:
        median, p90 = (show(share, Dimension.FRACTION) for share in (fit.error.median, fit.error.p90))
        text += f"; error on model families not used in the fit: median {median}, 90 % within {p90}"
    if transfer is not None:
        text += f"; transferred from {transfer.fitted_device_name} by clock and a factor of {transfer.scale:.3g}"
        text += f" ({transfer.source})" if transfer.source else ""
    if latency_estimate.extrapolation_reasons:
        text += f"; EXTRAPOLATES: {'; '.join(latency_estimate.extrapolation_reasons)}"
    return text


def _metric_details(fit: LatencyFit, latency_estimate: LatencyEstimate) -> dict[str, float | int | str]:
    details: dict[str, float | int | str] = {"rate": fit.rate, "points": fit.points, "source": fit.source}
    if fit.error is not None:
        details |= {"held_out_median": fit.error.median, "held_out_p90": fit.error.p90}
    if latency_estimate.extrapolation_reasons:
        details["extrapolates"] = "; ".join(latency_estimate.extrapolation_reasons)
    return details
