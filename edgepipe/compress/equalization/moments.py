"""The mean of every channel of a folded model without samples, from what its batch norms have learned.

The output of a convolution that a batch norm was folded into is taken as normal with mean beta and deviation |gamma|
(Nagel et al. 2019, arXiv 1906.04721, section 4.2.1), and followed through what comes next. Padding with zeros is not
counted, and summands and neighbours are taken as independent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from scipy.special import ndtr

from edgepipe.arrays import Array
from edgepipe.compress.equalization.fold import Folded
from edgepipe.compress.equalization.kernels import bias, kernel, outputs, pairs, read_by_row, weighted
from edgepipe.compress.graph import walk

K = tf_keras.layers


@dataclass(frozen=True)
class Moments:
    """Mean of each index of the last axis, and the deviation where it is known; or why nothing is known."""

    mean: Array | None
    deviation: Array | None = None
    why: str = ""


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
    second = (mean**2 + spread**2) * inside + spread * (mean * _density(a) - (mean + top) * _density(b)) + top**2 * above
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def _density(x: Array) -> Array:
    return np.asarray(np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def expected(folded: Folded) -> dict[str, Moments]:
    """What each weighted layer that is called once reads, by its name."""
    found: dict[str, Moments] = {}

    def step(layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        values = [part for part in tf.nest.flatten([args, kwargs]) if isinstance(part, Moments)]
        given = tf.nest.flatten(outputs)
        if weighted(layer):
            found[layer.name] = values[0]
        result = _after(folded, layer, values, given[0]) if len(given) == 1 else _lost(layer)
        return [result] * len(given)

    names = folded.model.input_names
    walk(folded.model, [Moments(None, why=f"the mean of the input '{name}' is not known") for name in names], step)
    return found


def _after(folded: Folded, layer: Any, values: list[Moments], tensor: Any) -> Moments:
    """The moments of the output of `layer`."""
    known = folded.statistics.get(layer.name)
    if known is not None:
        return Moments(known.mean, known.deviation)
    for value in values:
        if value.mean is None:
            return value
    if layer.name in folded.whole:
        return _lost(layer)
    if weighted(layer):
        return Moments(through(layer, kernel(layer), values[0].mean) + bias(layer))
    rule = _RULES.get(type(layer))
    return rule(layer, values, tensor) if rule is not None else _lost(layer)


def _lost(layer: Any) -> Moments:
    return Moments(None, why=f"the mean behind '{layer.name}' ({type(layer).__name__}) is not known")


def through(layer: Any, values: Array, mean: Array | None) -> Array:
    """What a kernel of the weighted `layer` gives for the mean of each of its input channels: (outputs,)."""
    table = pairs(layer, values)
    table = table.reshape(-1, *table.shape[-2:]).sum(axis=0)
    terms = table * np.asarray(mean)[read_by_row(layer, np.arange(len(np.asarray(mean))))]
    return np.asarray(terms.ravel() if isinstance(layer, K.DepthwiseConv2D) else terms.sum(axis=0)).reshape(outputs(layer))


def _rectified(layer: Any, values: list[Moments], tensor: Any) -> Moments:
    """slope * -relu(-x) + relu(x), and a limit above where there is no slope."""
    (value,) = values
    if value.mean is None or value.deviation is None:
        return Moments(None, why=f"'{layer.name}' needs a deviation, and no batch norm stands before it")
    slope = _slope(layer)
    if slope is None:
        return _lost(layer)
    limit = getattr(layer, "max_value", None)
    mean, deviation = clipped(value.mean, value.deviation, None if limit is None else float(limit))
    below, spread = clipped(-value.mean, value.deviation, None)
    second = deviation**2 + mean**2 + slope**2 * (spread**2 + below**2)
    both = mean - slope * below
    return Moments(both, np.sqrt(np.maximum(second - both**2, 0.0)))


def _slope(layer: Any) -> Array | None:
    """Below zero; None where it is not one for each channel."""
    if isinstance(layer, K.PReLU):
        alpha = np.asarray(layer.alpha)
        return alpha.ravel() if alpha.size in (1, alpha.shape[-1]) else None
    if isinstance(layer, K.ReLU):
        return np.zeros(1) if not layer.threshold and not layer.negative_slope else None
    return np.asarray(layer.alpha).reshape(1)


def _same(layer: Any, values: list[Moments], tensor: Any) -> Moments:
    return values[0]


def _averaged(layer: Any, values: list[Moments], tensor: Any) -> Moments:
    return Moments(values[0].mean)


def _summed(layer: Any, values: list[Moments], tensor: Any) -> Moments:
    if any(np.shape(value.mean) != (tensor.shape[-1],) for value in values):
        return _lost(layer)
    spreads = [value.deviation for value in values if value.deviation is not None]
    deviation = np.sqrt(sum(np.square(spread) for spread in spreads)) if len(spreads) == len(values) else None
    return Moments(np.sum([value.mean for value in values], axis=0), deviation)


def _joined(layer: Any, values: list[Moments], tensor: Any) -> Moments:
    if layer.axis % len(tensor.shape) != len(tensor.shape) - 1:
        return _lost(layer)
    spreads = [value.deviation for value in values if value.deviation is not None]
    means = [value.mean for value in values if value.mean is not None]
    return Moments(np.concatenate(means), np.concatenate(spreads) if len(spreads) == len(values) else None)


def _reshaped(layer: Any, values: list[Moments], tensor: Any) -> Moments:
    """Channels last before; a multiple of them last after."""
    size, (value,) = tensor.shape[-1], values
    times = size // np.size(value.mean) if size else 0
    if not times or times * np.size(value.mean) != size:
        return _lost(layer)
    return Moments(*(None if part is None else np.tile(part, times) for part in (value.mean, value.deviation)))


_RULES = {
    **dict.fromkeys((K.ReLU, K.LeakyReLU, K.PReLU), _rectified),
    **dict.fromkeys((K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D, K.ActivityRegularization, K.Cropping2D,
                     K.Cropping1D, K.ZeroPadding1D, K.ZeroPadding2D, K.UpSampling2D), _same),
    **dict.fromkeys((K.AveragePooling1D, K.AveragePooling2D, K.GlobalAveragePooling1D, K.GlobalAveragePooling2D), _averaged),
    **dict.fromkeys((K.Flatten, K.Reshape), _reshaped),
    K.Add: _summed,
    K.Concatenate: _joined,
}  # fmt: skip
