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
    clipped_mean = mean * inside_share + spread * (_normal_density(a) - _normal_density(b)) + upper_limit * above_share
    boundary_terms = spread * (mean * _normal_density(a) - (mean + upper_limit) * _normal_density(b))
    second_moment = (mean**2 + spread**2) * inside_share + boundary_terms + upper_limit**2 * above_share
    return clipped_mean, np.sqrt(np.maximum(second_moment - clipped_mean**2, 0.0))


def _normal_density(x: Array) -> Array:
    return np.asarray(np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def estimate_input_moments(folded_model: FoldedModel) -> dict[str, MaybeMoments]:
    """The input moments of each weighted layer, by name; of a shared layer those of its last call."""
    moments_by_layer: dict[str, MaybeMoments] = {}

    def propagate_moments(layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        input_moments = [
            argument for argument in tf.nest.flatten([args, kwargs]) if isinstance(argument, (Moments, UnknownMean))
        ]
        output_tensors = tf.nest.flatten(outputs)
        if is_weighted_layer(layer):
            moments_by_layer[layer.name] = input_moments[0]
        return [
            _output_moments(folded_model, layer, input_moments, output_tensors[0])
            if len(output_tensors) == 1
            else _unknown_mean_behind(layer)
        ] * len(output_tensors)

    input_names = folded_model.model.input_names
    walk_layer_calls(
        folded_model.model,
        [UnknownMean(f"the mean of the input '{name}' is not known") for name in input_names],
        propagate_moments,
    )
    return moments_by_layer


def _output_moments(
    folded_model: FoldedModel, layer: Any, input_moments: list[MaybeMoments], output_tensor: Any
) -> MaybeMoments:
    """The moments of the output of `layer`."""
    statistics = folded_model.statistics.get(layer.name)
    if statistics is not None:
        return Moments(statistics.mean, statistics.deviation)
    unknown_means = [moments for moments in input_moments if isinstance(moments, UnknownMean)]
    if unknown_means:
        return unknown_means[0]
    known_moments = [candidate for candidate in input_moments if isinstance(candidate, Moments)]
    if is_weighted_layer(layer):
        return Moments(propagate_mean(layer, read_kernel(layer), known_moments[0].mean) + read_bias(layer))
    moments_rule = None if layer.name in folded_model.opaque_reasons else _MOMENTS_RULE_BY_CLASS.get(type(layer))
    return _unknown_mean_behind(layer) if moments_rule is None else moments_rule(layer, known_moments, output_tensor)


def _unknown_mean_behind(layer: Any) -> UnknownMean:
    return UnknownMean(f"the mean behind '{layer.name}' ({type(layer).__name__}) is not known")


def propagate_mean(layer: Any, kernel_values: Array, mean: Array) -> Array:
    """The mean output, (outputs,), of the weighted `layer` with `kernel_values`, for input channels of `mean`."""
    paired_kernel = as_channel_pairs(layer, kernel_values)
    terms = (
        paired_kernel.reshape(-1, *paired_kernel.shape[-2:]).sum(axis=0)
        * mean[spread_input_ids(layer, np.arange(len(mean)))]
    )
    return np.asarray(terms.ravel() if isinstance(layer, K.DepthwiseConv2D) else terms.sum(axis=0))


def _relu_moments(layer: Any, input_moments: list[Moments], output_tensor: Any) -> MaybeMoments:
    """Moments of relu(x) - slope relu(-x), whose terms are never both nonzero."""
    mean, deviation, slope = input_moments[0].mean, input_moments[0].deviation, _negative_slope(layer)
    if deviation is None:
        return UnknownMean(f"'{layer.name}' needs a deviation, which is known only after a batch norm")
    if slope is None:
        return _unknown_mean_behind(layer)
    limit = getattr(layer, "max_value", None)
    positive_mean, positive_deviation = clipped_moments(mean, deviation, None if limit is None else float(limit))
    negative_mean, negative_deviation = clipped_moments(-mean, deviation, None)
    total_mean = positive_mean - slope * negative_mean
    second_moment = positive_deviation**2 + positive_mean**2 + slope**2 * (negative_deviation**2 + negative_mean**2)
    return Moments(total_mean, np.sqrt(np.maximum(second_moment - total_mean**2, 0.0)))


def _negative_slope(layer: Any) -> Array | None:
    """The slope below zero; None if it is not one value, or one per channel."""
    if isinstance(layer, K.PReLU):
        alpha = np.asarray(layer.alpha)
        return alpha.ravel() if alpha.size in (1, alpha.shape[-1]) else None
    if isinstance(layer, K.ReLU):
        return np.zeros(1) if not layer.threshold and not layer.negative_slope else None
    return np.asarray(layer.alpha).reshape(1)


def _identity_moments(layer: Any, input_moments: list[Moments], output_tensor: Any) -> MaybeMoments:
    return input_moments[0]


def _pooled_moments(layer: Any, input_moments: list[Moments], output_tensor: Any) -> MaybeMoments:
    return Moments(input_moments[0].mean)


def _collect_deviations(input_moments: list[Moments]) -> list[Array] | None:
    deviations = [moments.deviation for moments in input_moments if moments.deviation is not None]
    return deviations if len(deviations) == len(input_moments) else None


def _sum_moments(layer: Any, input_moments: list[Moments], output_tensor: Any) -> MaybeMoments:
    if any(moments.mean.shape != (output_tensor.shape[-1],) for moments in input_moments):
        return _unknown_mean_behind(layer)
    deviations = _collect_deviations(input_moments)
    deviation = None if deviations is None else np.sqrt(np.square(deviations).sum(axis=0))
    return Moments(np.sum([moments.mean for moments in input_moments], axis=0), deviation)


def _concatenated_moments(layer: Any, input_moments: list[Moments], output_tensor: Any) -> MaybeMoments:
    if layer.axis % len(output_tensor.shape) != len(output_tensor.shape) - 1:
        return _unknown_mean_behind(layer)
    deviations = _collect_deviations(input_moments)
    means = np.concatenate([moments.mean for moments in input_moments])
    return Moments(means, None if deviations is None else np.concatenate(deviations))


def _reshaped_moments(layer: Any, input_moments: list[Moments], output_tensor: Any) -> MaybeMoments:
    """Elements keep their order, so a last axis that is a multiple of the channels repeats them."""
    (moments,), last_axis_size = input_moments, output_tensor.shape[-1] or 0
    repeats, remainder = divmod(last_axis_size, len(moments.mean))
    if remainder or not repeats:
        return _unknown_mean_behind(layer)
    return Moments(
        np.tile(moments.mean, repeats), None if moments.deviation is None else np.tile(moments.deviation, repeats)
    )


_MOMENTS_RULE_BY_CLASS: dict[Any, Callable[[Any, list[Moments], Any], MaybeMoments]] = {
    **dict.fromkeys((K.ReLU, K.LeakyReLU, K.PReLU), _relu_moments),
    **dict.fromkeys((K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D, K.ActivityRegularization, K.ZeroPadding1D,
                     K.ZeroPadding2D, K.Cropping1D, K.Cropping2D, K.UpSampling1D), _identity_moments),
    **dict.fromkeys((K.AveragePooling1D, K.AveragePooling2D, K.GlobalAveragePooling1D,
                     K.GlobalAveragePooling2D), _pooled_moments),
    **dict.fromkeys((K.Flatten, K.Reshape), _reshaped_moments),
    K.Add: _sum_moments,
    K.Concatenate: _concatenated_moments,
}  # fmt: skip
