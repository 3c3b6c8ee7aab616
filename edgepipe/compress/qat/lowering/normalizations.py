"""Normalizations: folded where possible, otherwise decomposed into int8 operators."""

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.lowering_context import LoweringCall, LoweringContext
from edgepipe.compress.qat.lowering.opaque_layers import keep_opaque
from edgepipe.models.keras_types import KerasTensor, TensorTree, TfKerasLayer

K = tf_keras.layers
WEIGHTED_LAYER_CLASSES = (
    K.Conv2D,
    K.DepthwiseConv2D,
    K.Dense,
    K.Conv2DTranspose,
)  # their activations are layers of their own


def lower_batch_norm(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Kept if it follows a convolution it folds into; otherwise a 1 x 1 depthwise convolution with its statistics."""
    layer, x = call.layer, call.x
    if list(layer.axis) not in ([len(x.shape) - 1], [-1]):
        return keep_opaque(f"normalizes axis {list(layer.axis)}, not the channels")(ctx, call)
    nhwc_or_vector, restore_shape = ctx.to_nhwc_or_vector(x)
    if (
        isinstance(nhwc_or_vector._keras_history.layer, WEIGHTED_LAYER_CLASSES)
        and id(nhwc_or_vector) in ctx.read_once_ids
    ):
        batch_norm_layer = type(layer).from_config({**layer.get_config(), "axis": -1})
        return restore_shape(ctx.apply(batch_norm_layer, nhwc_or_vector, layer.get_weights()))
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(1, np.float32)
    beta = np.asarray(layer.beta) if layer.center else np.zeros(1, np.float32)
    scale = gamma / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
    return ctx.affine(x, scale, beta - np.asarray(layer.moving_mean) * scale, "")


def lower_rescaling(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """x * scale + offset, not trained."""
    return ctx.affine(call.x, np.asarray(call.layer.scale), np.asarray(call.layer.offset), "", trainable=False)


def lower_normalization(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """(x - mean) / sqrt(variance), or its inverse, with statistics per channel."""
    layer = call.layer
    mean, variance = (np.asarray(statistic, np.float32) for statistic in (layer.mean, layer.variance))
    if mean.size not in (1, call.x.shape[-1]):
        return keep_opaque("statistics along other axes than channels")(ctx, call)
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # keras.backend.epsilon(), as the layer has it
    scale, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    return ctx.affine(call.x, scale, offset, "", trainable=False)


def lower_layer_scale(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A factor per channel: folded into the convolution before it, else a 1 x 1 depthwise convolution."""
    gamma = np.asarray(call.layer.get_weights()[0])
    nhwc, restore_shape = ctx.to_nhwc(call.x)
    previous_layer = nhwc._keras_history.layer
    if type(previous_layer) is K.Conv2D and call.is_only_call and id(nhwc) in ctx.read_once_ids:
        previous_layer.set_weights([weights * gamma for weights in previous_layer.get_weights()])
        return restore_shape(nhwc)
    return ctx.affine(call.x, gamma, np.zeros(1, np.float32), "")


def lower_layer_norm(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Ba et al. 2016 (arXiv 1607.06450) over the last axis."""
    layer, x = call.layer, call.x
    axes = [int(axis) % len(x.shape) for axis in np.ravel(layer.axis)]
    if axes != [len(x.shape) - 1]:
        return keep_opaque(f"normalizes axes {axes}, not the last")(ctx, call)
    normalized_x = _normalize(ctx, x, -1, layer.epsilon)
    return _scale_channels(ctx, layer, normalized_x)


def _normalize(ctx: LoweringContext, x: KerasTensor, axis: int | tuple[int, ...], epsilon: float) -> KerasTensor:
    """(x - mean) / sqrt(variance + epsilon); each intermediate tensor has its own range."""
    mean = ctx.op("Mean", x, "mean", axis=axis, keepdims=True)
    centred_x = ctx.op("Subtract", [x, mean], "centred")
    squares = ctx.op("Multiply", [centred_x, centred_x], "squares")
    variance = ctx.op("Mean", squares, "variance", axis=axis, keepdims=True)
    safe_variance = ctx.op("Add", variance, "epsilon", float(epsilon))
    return ctx.op("Multiply", [centred_x, ctx.op("Rsqrt", safe_variance, "rsqrt")], "normalized")


def _scale_channels(ctx: LoweringContext, layer: TfKerasLayer, x: KerasTensor) -> KerasTensor:
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(1, np.float32)
    beta = np.asarray(layer.beta) if layer.center else np.zeros(1, np.float32)
    return ctx.affine(x, gamma, beta, "scaled") if layer.scale or layer.center else x


def lower_group_norm(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Wu & He 2018 (arXiv 1803.08494) over the last axis: statistics per group of channels."""
    layer, x = call.layer, call.x
    shape = tuple(x.shape[1:])
    if layer.axis not in (-1, len(shape)):
        return keep_opaque(f"groups of axis {layer.axis}, not of the channels")(ctx, call)
    group_count = shape[-1] if layer.groups == -1 else layer.groups
    grouped_x = ctx.reshape(x, (int(np.prod(shape[:-1])), group_count, shape[-1] // group_count), "groups")
    normalized_x = _normalize(ctx, grouped_x, (1, 3), layer.epsilon)
    return _scale_channels(ctx, layer, ctx.reshape(normalized_x, shape, "ungrouped"))
