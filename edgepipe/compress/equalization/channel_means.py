"""The mean of every channel of a folded model, estimated without samples from its batch norms.

The output of a convolution with a folded batch norm is assumed normal with mean beta and deviation |gamma| (Nagel et
al. 2019, arXiv 1906.04721, section 4.2.1), and propagated through the following layers. Zero padding is ignored,
summands are assumed independent, and the output of an activation normal again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from scipy.special import ndtr

from edgepipe.compress.equalization.batch_norm_folding import FoldedModel
from edgepipe.compress.equalization.weighted_layers import (
    as_channel_pairs,
    is_weighted_layer,
    read_bias,
    read_kernel,
    spread_input_ids,
)
from edgepipe.compress.layer_calls import walk_layer_calls
from edgepipe.core.arrays import Array

K = tf_keras.layers


@dataclass(frozen=True)
class Moments:
    """Mean of each index of the last axis, and the deviation if known."""

    mean: Array
    deviation: Array | None = None


@dataclass(frozen=True)
class UnknownMean:
    """Why a tensor's mean is not known."""

    reason: str


MaybeMoments = Moments | UnknownMean


def clipped_moments(mean: Array, deviation: Array, limit: float | None) -> tuple[Array, Array]:
    """Mean and standard deviation of min(max(x, 0), limit) for normal x, limit None for no limit.

    With a = -mean / deviation, b = (limit - mean) / deviation, phi and Phi the normal density and distribution
    (arXiv 1906.04721, appendix C): E = mean (Phi(b) - Phi(a)) + deviation (phi(a) - phi(b)) + limit (1 - Phi(b)), and
    the second moment likewise.
    """
    mean, spread = np.asarray(mean, np.float64), np.maximum(np.asarray(deviation, np.float64), 1e-12)
    a = -mean / spread
    b = np.full_like(a, np.inf) if limit is None else (limit - mean) / spread
    upper_limit = 0.0 if limit is None else limit
    inside_share, above_share = ndtr(b) - ndtr(a), ndtr(-b)
    clipped_mean = mean * inside_share + spread * (_density(a) - _density(b)) + upper_limit * above_share
    edges = spread * (mean * _density(a) - (mean + upper_limit) * _density(b))
    second_moment = (mean**2 + spread**2) * inside_share + edges + upper_limit**2 * above_share
    return clipped_mean, np.sqrt(np.maximum(second_moment - clipped_mean**2, 0.0))


def _density(x: Array) -> Array:
    return np.asarray(np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def estimate_input_moments(folded_model: FoldedModel) -> dict[str, MaybeMoments]:
    """The input moments of each weighted layer, by name; of a shared layer those of its last call."""
    moments_by_layer: dict[str, MaybeMoments] = {}

    def record_moments(layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        inputs = [
            argument for argument in tf.nest.flatten([args, kwargs]) if isinstance(argument, (Moments, UnknownMean))
        ]
        output_tensors = tf.nest.flatten(outputs)
        if is_weighted_layer(layer):
            moments_by_layer[layer.name] = inputs[0]
        return [
            _output_moments(folded_model, layer, inputs, output_tensors[0])
            if len(output_tensors) == 1
            else _unknown_behind(layer)
        ] * len(output_tensors)

    names = folded_model.model.input_names
    walk_layer_calls(
        folded_model.model,
        [UnknownMean(f"the mean of the input '{name}' is not known") for name in names],
        record_moments,
    )
    return moments_by_layer


def _output_moments(folded_model: FoldedModel, layer: Any, inputs: list[MaybeMoments], tensor: Any) -> MaybeMoments:
    """The moments of the output of `layer`."""
    statistics = folded_model.statistics.get(layer.name)
    if statistics is not None:
        return Moments(statistics.mean, statistics.deviation)
    unknown_inputs = [input_moments for input_moments in inputs if isinstance(input_moments, UnknownMean)]
    if unknown_inputs:
        return unknown_inputs[0]
    moments = [input_moments for input_moments in inputs if isinstance(input_moments, Moments)]
    if is_weighted_layer(layer):
        return Moments(propagate_mean(layer, read_kernel(layer), moments[0].mean) + read_bias(layer))
    rule = None if layer.name in folded_model.opaque_reasons else _RULES.get(type(layer))
    return _unknown_behind(layer) if rule is None else rule(layer, moments, tensor)


def _unknown_behind(layer: Any) -> UnknownMean:
    return UnknownMean(f"the mean behind '{layer.name}' ({type(layer).__name__}) is not known")


def propagate_mean(layer: Any, kernel_values: Array, mean: Array) -> Array:
    """The mean output, (outputs,), of the weighted `layer` with `kernel_values`, for input channels of `mean`."""
    paired_kernel = as_channel_pairs(layer, kernel_values)
    terms = (
        paired_kernel.reshape(-1, *paired_kernel.shape[-2:]).sum(axis=0)
        * mean[spread_input_ids(layer, np.arange(len(mean)))]
    )
    return np.asarray(terms.ravel() if isinstance(layer, K.DepthwiseConv2D) else terms.sum(axis=0))


def _relu_moments(layer: Any, inputs: list[Moments], tensor: Any) -> MaybeMoments:
    """Moments of relu(x) - slope relu(-x), whose terms are never both nonzero."""
    mean, deviation, slope = inputs[0].mean, inputs[0].deviation, _slope(layer)
    if deviation is None:
        return UnknownMean(f"'{layer.name}' needs a deviation, which is known only after a batch norm")
    if slope is None:
        return _unknown_behind(layer)
    limit = getattr(layer, "max_value", None)
    above_mean, above_spread = clipped_moments(mean, deviation, None if limit is None else float(limit))
    below_mean, below_spread = clipped_moments(-mean, deviation, None)
    total_mean = above_mean - slope * below_mean
    second_moment = above_spread**2 + above_mean**2 + slope**2 * (below_spread**2 + below_mean**2)
    return Moments(total_mean, np.sqrt(np.maximum(second_moment - total_mean**2, 0.0)))


def _slope(layer: Any) -> Array | None:
    """The slope below zero; None if it is not one value, or one per channel."""
    if isinstance(layer, K.PReLU):
        alpha = np.asarray(layer.alpha)
        return alpha.ravel() if alpha.size in (1, alpha.shape[-1]) else None
    if isinstance(layer, K.ReLU):
        return np.zeros(1) if not layer.threshold and not layer.negative_slope else None
    return np.asarray(layer.alpha).reshape(1)


def _identity_moments(layer: Any, inputs: list[Moments], tensor: Any) -> MaybeMoments:
    return inputs[0]


def _pooled_moments(layer: Any, inputs: list[Moments], tensor: Any) -> MaybeMoments:
    return Moments(inputs[0].mean)


def _collect_deviations(inputs: list[Moments]) -> list[Array] | None:
    deviations = [moments.deviation for moments in inputs if moments.deviation is not None]
    return deviations if len(deviations) == len(inputs) else None


def _sum_moments(layer: Any, inputs: list[Moments], tensor: Any) -> MaybeMoments:
    if any(moments.mean.shape != (tensor.shape[-1],) for moments in inputs):
        return _unknown_behind(layer)
    spreads = _collect_deviations(inputs)
    deviation = None if spreads is None else np.sqrt(np.square(spreads).sum(axis=0))
    return Moments(np.sum([moments.mean for moments in inputs], axis=0), deviation)


def _concatenated_moments(layer: Any, inputs: list[Moments], tensor: Any) -> MaybeMoments:
    if layer.axis % len(tensor.shape) != len(tensor.shape) - 1:
        return _unknown_behind(layer)
    spreads = _collect_deviations(inputs)
    means = np.concatenate([moments.mean for moments in inputs])
    return Moments(means, None if spreads is None else np.concatenate(spreads))


def _reshaped_moments(layer: Any, inputs: list[Moments], tensor: Any) -> MaybeMoments:
    """Elements keep their order, so a last axis that is a multiple of the channels repeats them."""
    (moments,), size = inputs, tensor.shape[-1] or 0
    repeats, remainder = divmod(size, len(moments.mean))
    if remainder or not repeats:
        return _unknown_behind(layer)
    return Moments(
        np.tile(moments.mean, repeats), None if moments.deviation is None else np.tile(moments.deviation, repeats)
    )


_RULES: dict[Any, Callable[[Any, list[Moments], Any], MaybeMoments]] = {
    **dict.fromkeys((K.ReLU, K.LeakyReLU, K.PReLU), _relu_moments),
    **dict.fromkeys((K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D, K.ActivityRegularization, K.ZeroPadding1D,
                     K.ZeroPadding2D, K.Cropping1D, K.Cropping2D, K.UpSampling1D), _identity_moments),
    **dict.fromkeys((K.AveragePooling1D, K.AveragePooling2D, K.GlobalAveragePooling1D,
                     K.GlobalAveragePooling2D), _pooled_moments),
    **dict.fromkeys((K.Flatten, K.Reshape), _reshaped_moments),
    K.Add: _sum_moments,
    K.Concatenate: _concatenated_moments,
}  # fmt: skip
