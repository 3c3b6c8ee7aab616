"""The lowering rule of each layer class; a layer without a rule is kept as it is and quantized by calibration."""

import math

import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.activation_placement import EXCLUDED_REASON
from edgepipe.compress.qat.lowering.activations import lower_activation
from edgepipe.compress.qat.lowering.attention import (
    lower_additive_attention,
    lower_attention,
    lower_multi_head_attention,
    state_attention_mask,
)
from edgepipe.compress.qat.lowering.convolutions import (
    lower_conv1d,
    lower_conv1d_transpose,
    lower_conv2d,
    lower_dense,
    lower_depthwise1d,
    lower_einsum_dense,
    lower_separable,
    lower_single_operator,
)
from edgepipe.compress.qat.lowering.lowering_context import CallArguments, LayerRule, LoweringCall, LoweringContext
from edgepipe.compress.qat.lowering.masks import (
    average_unmasked,
    boolean_mask,
    clear_masked_steps,
    fill_scores,
    lower_masking,
)
from edgepipe.compress.qat.lowering.normalizations import (
    lower_batch_norm,
    lower_group_norm,
    lower_layer_norm,
    lower_layer_scale,
    lower_normalization,
    lower_rescaling,
)
from edgepipe.compress.qat.lowering.opaque_layers import copy_layer, keep_opaque, keep_operator
from edgepipe.models.keras_types import TensorTree, TfKerasLayer
from edgepipe.models.recurrent_layers import MAX_UNROLLED_STEPS

K = tf_keras.layers
RECURRENT_CLASSES = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional")


def find_rule(layer: TfKerasLayer, is_excluded: bool) -> LayerRule:
    """The rule that lowers `layer`; an excluded layer is kept as it is."""
    if is_excluded:
        return _keep_excluded
    return _RULE_BY_CLASS.get(type(layer).__name__, keep_operator)


def _keep_excluded(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """The layer as it is, except that its masks are tensors."""
    keep = keep_opaque(EXCLUDED_REASON)
    if isinstance(call.layer, K.MultiHeadAttention):
        return keep(ctx, state_attention_mask(ctx, call))
    if isinstance(call.layer, K.Embedding):
        return ctx.apply(_without_mask(call.layer), call.x, call.layer.get_weights(), EXCLUDED_REASON)
    output = keep(ctx, call)
    return ctx.op("Copy", output, "kept") if isinstance(call.layer, K.Masking) else output


def _lower_merge(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """TFLite adds and multiplies two tensors at a time; every partial result has its own range."""
    merge_cls = getattr(K, type(call.layer).__name__)
    tensors = list(call.inputs)
    merged_tensor = tensors[0]
    for number, tensor in enumerate(tensors[1:], 1):
        name = call.layer.name if number == len(tensors) - 1 else f"{call.layer.name}_{number}"
        merged_tensor = ctx.apply(merge_cls(name=name), [merged_tensor, tensor])
    return merged_tensor


def _lower_average(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    tensors = list(call.inputs)
    sum_tensor = tensors[0]
    for number, tensor in enumerate(tensors[1:], 1):
        sum_tensor = ctx.apply(K.Add(name=f"{call.layer.name}_sum{number}"), [sum_tensor, tensor])
    return ctx.op("Multiply", sum_tensor, "mean", 1.0 / len(tensors))


def _lower_recurrent(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Unroll the loop: calibration reaches the tensors of unrolled steps, but not those inside a loop."""
    layer, steps = call.layer, call.x.shape[1]
    if steps is None or steps > MAX_UNROLLED_STEPS:
        reason = f"a loop over {steps} steps, too long to be unrolled (at most {MAX_UNROLLED_STEPS})"
        return keep_opaque(reason)(ctx, call)
    config = layer.get_config()
    inner_config = config["layer"]["config"] if "layer" in config else config
    backward_layer = config.get("backward_layer")
    for layer_config in (inner_config, *([backward_layer["config"]] if backward_layer else [])):
        layer_config["unroll"] = True
    reason = f"recurrent: unrolled into its {steps} steps, whose inner tensors are calibrated"
    unrolled_layer = type(layer).from_config(config)
    arguments = CallArguments([call.inputs, *call.args])
    if not isinstance(layer, K.Bidirectional) or "mask" not in call.kwargs:
        return ctx.apply(unrolled_layer, arguments, layer.get_weights(), reason, **call.kwargs)
    for direction in (unrolled_layer.forward_layer, unrolled_layer.backward_layer):
        direction.zero_output_for_mask = False  # unrolled, the backward one clears the steps of the reversed mask
    return _clear_masked_outputs(
        ctx, call, ctx.apply(unrolled_layer, arguments, layer.get_weights(), reason, **call.kwargs)
    )


def _clear_masked_outputs(ctx: LoweringContext, call: LoweringCall, outputs: TensorTree) -> TensorTree:
    """Zeros at the masked steps of sequences, as Bidirectional has them."""
    if not call.layer.return_sequences:
        return outputs
    mask = call.kwargs["mask"]
    step_mask = boolean_mask(ctx, mask[0] if isinstance(mask, (list, tuple)) else mask, "mask")
    cleared_outputs = [
        clear_masked_steps(ctx, tensor, step_mask, f"cleared{number}") if len(tensor.shape) > 2 else tensor
        for number, tensor in enumerate(tf.nest.flatten(outputs))
    ]
    return cleared_outputs if isinstance(outputs, (list, tuple)) else cleared_outputs[0]


def _lower_time_distributed(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    inner_layer = call.layer.layer
    if type(inner_layer).__name__ != "Dense":
        return keep_opaque(f"TimeDistributed({type(inner_layer).__name__})")(ctx, call)
    return lower_dense(ctx, LoweringCall(inner_layer, call.inputs, call.args, call.kwargs, call.is_only_call))


def _lower_relu(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A ReLU with a negative slope is TFLite's LEAKY_RELU; one with a threshold, or a slope and a maximum, is kept."""
    layer = call.layer
    if layer.negative_slope and layer.max_value is None and not layer.threshold:
        return ctx.apply(K.LeakyReLU(alpha=float(layer.negative_slope), name=layer.name), call.x)
    if not layer.negative_slope and not layer.threshold:
        nhwc, restore_shape = ctx.to_nhwc(call.x)
        return restore_shape(ctx.relu(nhwc, None if layer.max_value is None else float(layer.max_value), layer.name))
    return _lower_channelwise(ctx, call)


def _lower_channelwise(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    nhwc, restore_shape = ctx.to_nhwc(call.x)
    return restore_shape(ctx.apply(copy_layer(call.layer), nhwc))


def _lower_operator(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Operators without an integer kernel are decomposed into ones that have one."""
    name = call.layer.operator
    output_dtype = tf.nest.flatten(call.layer._inbound_nodes[0].outputs)[0].dtype
    if name == "Negative":
        return ctx.op("Multiply", call.x, "minus", -1.0)
    if name == "Square":
        return ctx.op("Multiply", [call.x, call.x], "squared")
    if name in ("ConvertToTensor", "Copy", "Cast") and output_dtype == call.x.dtype:
        return call.x  # it may only end an implicit mask, of which the lowered model has none
    if name == "Cast" and call.x.dtype.is_bool and output_dtype.is_floating:
        return ctx.op("Where", call.x, "selected", 1.0, 0.0)
    return keep_operator(ctx, call)


def _lower_global_average(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """The mean over a single position is a reshape; TensorFlow converts it to one too."""
    layer, shape = call.layer, tuple(call.x.shape[1:])
    mask = call.kwargs.get("mask")
    if mask is not None and layer.data_format == "channels_last":
        return average_unmasked(ctx, call, boolean_mask(ctx, mask, "mask"))
    if mask is not None:
        return keep_opaque("an average over the last axis, with a mask")(ctx, call)
    if math.prod(shape[:-1]) > 1:
        return keep_operator(ctx, call)
    return ctx.reshape(call.x, shape if layer.keepdims else shape[-1:], "only")


def _lower_embedding(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A look-up; the mask of the zeros is computed beside it."""
    return ctx.apply(_without_mask(call.layer), call.x, call.layer.get_weights())


def _without_mask(embedding: TfKerasLayer) -> TfKerasLayer:
    return type(embedding).from_config({**embedding.get_config(), "mask_zero": False})


def _lower_softmax(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    mask = call.kwargs.get("mask")
    if mask is None:
        return keep_operator(ctx, call)
    return ctx.apply(copy_layer(call.layer), fill_scores(ctx, call.x, mask))


def _lower_resizing(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    layer = call.layer
    if layer.crop_to_aspect_ratio or layer.interpolation not in ("bilinear", "nearest"):
        return keep_opaque(f"Resizing by {layer.interpolation}, which TFLite has no integer operator for")(ctx, call)
    return keep_operator(ctx, call)


def _lower_activation_layer(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    return lower_activation(ctx, call.x, call.layer.activation, call.layer.name)


_RULE_BY_CLASS: dict[str, LayerRule] = {
    "Conv2D": lower_conv2d,
    **dict.fromkeys(("DepthwiseConv2D", "Conv2DTranspose"), lower_single_operator),
    "Conv1D": lower_conv1d,
    "Conv1DTranspose": lower_conv1d_transpose,
    "DepthwiseConv1D": lower_depthwise1d,
    **dict.fromkeys(("SeparableConv2D", "SeparableConv1D"), lower_separable),
    "Dense": lower_dense,
    "EinsumDense": lower_einsum_dense,
    "BatchNormalization": lower_batch_norm,
    "LayerNormalization": lower_layer_norm,
    "GroupNormalization": lower_group_norm,
    "LayerScale": lower_layer_scale,
    "Rescaling": lower_rescaling,
    "Normalization": lower_normalization,
    "Activation": _lower_activation_layer,
    "ReLU": _lower_relu,
    **dict.fromkeys(("Add", "Multiply", "Maximum", "Minimum"), _lower_merge),
    "Average": _lower_average,
    "Dot": keep_opaque("a Dot of two tensors"),
    "Attention": lower_attention,
    "AdditiveAttention": lower_additive_attention,
    "Embedding": _lower_embedding,
    "Masking": lower_masking,
    "Softmax": _lower_softmax,
    "MultiHeadAttention": lower_multi_head_attention,
    **dict.fromkeys(RECURRENT_CLASSES, _lower_recurrent),
    "TimeDistributed": _lower_time_distributed,
    "Resizing": _lower_resizing,
    "OperatorLayer": _lower_operator,
    "MaskAttachment": lambda ctx, call: call.x,
    "MaskReader": lambda ctx, call: call.kwargs["mask"],
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), _lower_global_average),
}
