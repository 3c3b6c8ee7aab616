"""Normalizations: folded where they can be, otherwise written out in int8 operators."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.lower import Lowering, LoweringCall
from edgepipe.compress.qat.lowering.opaque_layers import keep_opaque

K = tf_keras.layers
WEIGHTED_LAYERS = (K.Conv2D, K.DepthwiseConv2D, K.Dense, K.Conv2DTranspose)  # an activation is a layer behind it


def lower_batch_norm(low: Lowering, call: LoweringCall) -> Any:
    """Kept behind the convolution it folds into; standing alone, a 1 x 1 depthwise convolution with its statistics."""
    layer, x = call.layer, call.x
    if list(layer.axis) not in ([len(x.shape) - 1], [-1]):
        return keep_opaque(f"normalizes axis {list(layer.axis)}, not the channels")(low, call)
    level_x, restore_shape = low.to_nhwc_or_vector(x)
    if isinstance(level_x._keras_history.layer, WEIGHTED_LAYERS) and id(level_x) in low.read_once:
        twin = type(layer).from_config({**layer.get_config(), "axis": -1})
        return restore_shape(low.apply(twin, level_x, layer.get_weights()))
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(1, np.float32)
    beta = np.asarray(layer.beta) if layer.center else np.zeros(1, np.float32)
    scale = gamma / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
    return low.affine(x, scale, beta - np.asarray(layer.moving_mean) * scale, "")


def lower_rescaling(low: Lowering, call: LoweringCall) -> Any:
    """x * scale + offset: not trained."""
    return low.affine(call.x, np.asarray(call.layer.scale), np.asarray(call.layer.offset), "", trainable=False)


def lower_normalization(low: Lowering, call: LoweringCall) -> Any:
    """(x - mean) / sqrt(variance), or its inverse, for statistics by channel."""
    layer = call.layer
    mean, variance = (np.asarray(statistic, np.float32) for statistic in (layer.mean, layer.variance))
    if mean.size not in (1, call.x.shape[-1]):
        return keep_opaque("statistics along other axes than channels")(low, call)
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # keras.backend.epsilon(), as the layer has it
    scale, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    return low.affine(call.x, scale, offset, "", trainable=False)


def lower_layer_scale(low: Lowering, call: LoweringCall) -> Any:
    """A factor for each channel: into the convolution before it, or a 1 x 1 depthwise convolution."""
    gamma = np.asarray(call.layer.get_weights()[0])
    nhwc, restore_shape = low.to_nhwc(call.x)
    previous_layer = nhwc._keras_history.layer
    if type(previous_layer) is K.Conv2D and call.is_only_call and id(nhwc) in low.read_once:
        previous_layer.set_weights([weights * gamma for weights in previous_layer.get_weights()])
        return restore_shape(nhwc)
    return low.affine(call.x, gamma, np.zeros(1, np.float32), "")


def lower_layer_norm(low: Lowering, call: LoweringCall) -> Any:
    """Ba et al. 2016 (arXiv 1607.06450) over the last axis."""
    layer, x = call.layer, call.x
    axes = [int(axis) % len(x.shape) for axis in np.ravel(layer.axis)]
    if axes != [len(x.shape) - 1]:
        return keep_opaque(f"normalizes axes {axes}, not the last")(low, call)
    normalized_x = _normalize(low, x, -1, layer.epsilon)
    return _scale_channels(low, layer, normalized_x)


def _normalize(low: Lowering, x: Any, axis: Any, epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon); each tensor in between has a range of its own."""
    mean = low.op("Mean", x, "mean", axis=axis, keepdims=True)
    centred_x = low.op("Subtract", [x, mean], "centred")
    squares = low.op("Multiply", [centred_x, centred_x], "squares")
    variance = low.op("Mean", squares, "variance", axis=axis, keepdims=True)
    safe_variance = low.op("Add", variance, "epsilon", float(epsilon))
    return low.op("Multiply", [centred_x, low.op("Rsqrt", safe_variance, "rsqrt")], "normalized")


def _scale_channels(low: Lowering, layer: Any, x: Any) -> Any:
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(1, np.float32)
    beta = np.asarray(layer.beta) if layer.center else np.zeros(1, np.float32)
    return low.affine(x, gamma, beta, "scaled") if layer.scale or layer.center else x


def lower_group_norm(low: Lowering, call: LoweringCall) -> Any:
    """Wu & He 2018 (arXiv 1803.08494) over the last axis: statistics of each group of channels."""
    layer, x = call.layer, call.x
    shape = tuple(x.shape[1:])
    if layer.axis not in (-1, len(shape)):
        return keep_opaque(f"groups of axis {layer.axis}, not of the channels")(low, call)
    groups = shape[-1] if layer.groups == -1 else layer.groups
    grouped_x = low.reshape(x, (int(np.prod(shape[:-1])), groups, shape[-1] // groups), "groups")
    normalized_x = _normalize(low, grouped_x, (1, 3), layer.epsilon)
    return _scale_channels(low, layer, low.reshape(normalized_x, shape, "ungrouped"))
