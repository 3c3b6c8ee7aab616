"""The mean of every channel of a folded model without samples, from what its batch norms have learned.

The output of a convolution that a batch norm was folded into is taken as normal with mean beta and deviation |gamma|
(Nagel et al. 2019, arXiv 1906.04721, section 4.2.1), and followed through what comes next. Padding with zeros is not
counted, summands are taken as independent, and what comes out of an activation as normal again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from scipy.special import ndtr

from edgepipe.compress.equalization.batch_norm_folding import Folded
from edgepipe.compress.equalization.weighted_layers import bias, kernel, pairs, read_by, weighted
from edgepipe.compress.layer_calls import walk
from edgepipe.core.arrays import Array

K = tf_keras.layers


@dataclass(frozen=True)
class Moments:
    """Mean of each index of the last axis, and the deviation where it is known."""

    mean: Array
    deviation: Array | None = None


@dataclass(frozen=True)
class Unknown:
    """Why nothing is known of a tensor."""

    why: str


Known = Moments | Unknown


def clipped(mean: Array, deviation: Array, limit: float | None) -> tuple[Array, Array]:
    """Mean and standard deviation of min(max(x, 0), limit) for normal x, limit None for no limit.

    With a = -mean / deviation, b = (limit - mean) / deviation, phi and Phi the normal density and distribution
    (arXiv 1906.04721, appendix C): E = mean (Phi(b) - Phi(a)) + deviation (phi(a) - phi(b)) + limit (1 - Phi(b)), and
    the second moment alike.
    """
    mean, spread = np.asarray(mean, np.float64), np.maximum(np.asarray(deviation, np.float64), 1e-12)
    a = -mean / spread
    b = np.full_like(a, np.inf) if limit is None else (limit - mean) / spread
    top = 0.0 if limit is None else limit
    inside, above = ndtr(b) - ndtr(a), ndtr(-b)
    first = mean * inside + spread * (_density(a) - _density(b)) + top * above
    edges = spread * (mean * _density(a) - (mean + top) * _density(b))
    second = (mean**2 + spread**2) * inside + edges + top**2 * above
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def _density(x: Array) -> Array:
    return np.asarray(np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def expected(folded: Folded) -> dict[str, Known]:
    """What each weighted layer reads, by its name; the last call's of a shared one."""
    found: dict[str, Known] = {}

    def step(layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        values = [part for part in tf.nest.flatten([args, kwargs]) if isinstance(part, (Moments, Unknown))]
        given = tf.nest.flatten(outputs)
        if weighted(layer):
            found[layer.name] = values[0]
        return [_after(folded, layer, values, given[0]) if len(given) == 1 else _lost(layer)] * len(given)

    names = folded.model.input_names
    walk(folded.model, [Unknown(f"the mean of the input '{name}' is not known") for name in names], step)
    return found


def _after(folded: Folded, layer: Any, values: list[Known], tensor: Any) -> Known:
    """The moments of the output of `layer`."""
    known = folded.statistics.get(layer.name)
    if known is not None:
        return Moments(known.mean, known.deviation)
    unknown = [value for value in values if isinstance(value, Unknown)]
    if unknown:
        return unknown[0]
    moments = [value for value in values if isinstance(value, Moments)]
    if weighted(layer):
        return Moments(through(layer, kernel(layer), moments[0].mean) + bias(layer))
    rule = None if layer.name in folded.whole else _RULES.get(type(layer))
    return _lost(layer) if rule is None else rule(layer, moments, tensor)


def _lost(layer: Any) -> Unknown:
    return Unknown(f"the mean behind '{layer.name}' ({type(layer).__name__}) is not known")


def through(layer: Any, values: Array, mean: Array) -> Array:
    """What a kernel of the weighted `layer` gives for the mean of each of its input channels: (outputs,)."""
    table = pairs(layer, values)
    terms = table.reshape(-1, *table.shape[-2:]).sum(axis=0) * mean[read_by(layer, np.arange(len(mean)))]
    return np.asarray(terms.ravel() if isinstance(layer, K.DepthwiseConv2D) else terms.sum(axis=0))


def _rectified(layer: Any, values: list[Moments], tensor: Any) -> Known:
    """relu(x) - slope relu(-x), of which the two are never both other than zero."""
    mean, deviation, slope = values[0].mean, values[0].deviation, _slope(layer)
    if deviation is None:
        return Unknown(f"'{layer.name}' needs a deviation, and none is known where no batch norm stands before it")
    if slope is None:
        return _lost(layer)
    limit = getattr(layer, "max_value", None)
    above, spread = clipped(mean, deviation, None if limit is None else float(limit))
    below, other = clipped(-mean, deviation, None)
    both = above - slope * below
    second = spread**2 + above**2 + slope**2 * (other**2 + below**2)
    return Moments(both, np.sqrt(np.maximum(second - both**2, 0.0)))


def _slope(layer: Any) -> Array | None:
    """Below zero; None where it is not one for each channel."""
    if isinstance(layer, K.PReLU):
        alpha = np.asarray(layer.alpha)
        return alpha.ravel() if alpha.size in (1, alpha.shape[-1]) else None
    if isinstance(layer, K.ReLU):
        return np.zeros(1) if not layer.threshold and not layer.negative_slope else None
    return np.asarray(layer.alpha).reshape(1)


def _same(layer: Any, values: list[Moments], tensor: Any) -> Known:
    return values[0]


def _averaged(layer: Any, values: list[Moments], tensor: Any) -> Known:
    return Moments(values[0].mean)


def _deviations(values: list[Moments]) -> list[Array] | None:
    found = [value.deviation for value in values if value.deviation is not None]
    return found if len(found) == len(values) else None


def _summed(layer: Any, values: list[Moments], tensor: Any) -> Known:
    if any(value.mean.shape != (tensor.shape[-1],) for value in values):
        return _lost(layer)
    spreads = _deviations(values)
    deviation = None if spreads is None else np.sqrt(np.square(spreads).sum(axis=0))
    return Moments(np.sum([value.mean for value in values], axis=0), deviation)


def _joined(layer: Any, values: list[Moments], tensor: Any) -> Known:
    if layer.axis % len(tensor.shape) != len(tensor.shape) - 1:
        return _lost(layer)
    spreads = _deviations(values)
    means = np.concatenate([value.mean for value in values])
    return Moments(means, None if spreads is None else np.concatenate(spreads))


def _reshaped(layer: Any, values: list[Moments], tensor: Any) -> Known:
    """Elements keep their order, so that a last axis of a multiple of the channels repeats them."""
    (value,), size = values, tensor.shape[-1] or 0
    times, rest = divmod(size, len(value.mean))
    if rest or not times:
        return _lost(layer)
    return Moments(np.tile(value.mean, times), None if value.deviation is None else np.tile(value.deviation, times))


_RULES: dict[Any, Callable[[Any, list[Moments], Any], Known]] = {
    **dict.fromkeys((K.ReLU, K.LeakyReLU, K.PReLU), _rectified),
    **dict.fromkeys((K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D, K.ActivityRegularization, K.ZeroPadding1D,
                     K.ZeroPadding2D, K.Cropping1D, K.Cropping2D, K.UpSampling1D), _same),
    **dict.fromkeys((K.AveragePooling1D, K.AveragePooling2D, K.GlobalAveragePooling1D,
                     K.GlobalAveragePooling2D), _averaged),
    **dict.fromkeys((K.Flatten, K.Reshape), _reshaped),
    K.Add: _summed,
    K.Concatenate: _joined,
}  # fmt: skip
