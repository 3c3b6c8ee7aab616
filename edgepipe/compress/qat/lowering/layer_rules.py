"""How each layer class is lowered; what no rule knows is kept whole and quantized by calibration."""

import json
import math
from typing import Any

import tf_keras

from edgepipe.compress.qat.activation_placement import EXCLUDED_REASON
from edgepipe.compress.qat.lowering.activations import lower_activation, lower_elu
from edgepipe.compress.qat.lowering.attention import lower_attention, lower_multi_head_attention
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
from edgepipe.compress.qat.lowering.lower import CallArguments, LayerRule, Lowering, LoweringCall
from edgepipe.compress.qat.lowering.normalizations import (
    lower_batch_norm,
    lower_group_norm,
    lower_layer_norm,
    lower_layer_scale,
    lower_normalization,
    lower_rescaling,
)
from edgepipe.compress.qat.lowering.opaque_layers import copy_layer, keep_opaque, keep_operator

K = tf_keras.layers
RECURRENT_LAYERS = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional")
MAX_UNROLLED_STEPS = 256  # more steps than this, unrolled, make a graph that no converter finishes in reasonable time


def find_rule(layer: Any, is_excluded: bool) -> LayerRule:
    """The rule for `layer`."""
    if is_excluded:
        return keep_opaque(EXCLUDED_REASON)
    return _RULES.get(type(layer).__name__, keep_operator)


def _lower_merge(low: Lowering, call: LoweringCall) -> Any:
    """TFLite adds and multiplies two tensors at a time; every sum in between has a range of its own."""
    cls = type(call.layer).__name__
    tensors = list(call.inputs)
    total = tensors[0]
    for number, tensor in enumerate(tensors[1:], 1):
        name = call.layer.name if number == len(tensors) - 1 else f"{call.layer.name}_{number}"
        total = low.apply(getattr(K, cls)(name=name), [total, tensor])
    return total


def _lower_average(low: Lowering, call: LoweringCall) -> Any:
    tensors = list(call.inputs)
    total = tensors[0]
    for number, tensor in enumerate(tensors[1:], 1):
        total = low.apply(K.Add(name=f"{call.layer.name}_sum{number}"), [total, tensor])
    return low.op("Multiply", total, "mean", 1.0 / len(tensors))


def _lower_recurrent(low: Lowering, call: LoweringCall) -> Any:
    """A loop cannot be calibrated, its steps written one after the other can; the weights are the same."""
    layer, steps = call.layer, call.x.shape[1]
    if steps is None or steps > MAX_UNROLLED_STEPS:
        reason = f"a loop over {steps} steps, which is too long to be unrolled (at most {MAX_UNROLLED_STEPS})"
        return keep_opaque(reason)(low, call)
    config = layer.get_config()
    inner_config = config["layer"]["config"] if "layer" in config else config
    backward_layer = config.get("backward_layer")
    for layer_config in (inner_config, *([backward_layer["config"]] if backward_layer else [])):
        layer_config["unroll"] = True
    reason = f"recurrent: unrolled into its {steps} steps, whose inner tensors are calibrated"
    return low.apply(
        type(layer).from_config(config),
        CallArguments([call.inputs, *call.args]),
        layer.get_weights(),
        reason,
        **call.kwargs,
    )


def _lower_time_distributed(low: Lowering, call: LoweringCall) -> Any:
    inner_layer = call.layer.layer
    if type(inner_layer).__name__ != "Dense":
        return keep_opaque(f"TimeDistributed({type(inner_layer).__name__})")(low, call)
    return lower_dense(low, LoweringCall(inner_layer, call.inputs, call.args, call.kwargs, call.is_only_call))


def _lower_relu(low: Lowering, call: LoweringCall) -> Any:
    """A ReLU with a slope below zero is TFLite's LEAKY_RELU; with both it is kept."""
    layer = call.layer
    if layer.negative_slope and layer.max_value is None and not layer.threshold:
        return low.apply(K.LeakyReLU(alpha=float(layer.negative_slope), name=layer.name), call.x)
    if not layer.negative_slope and not layer.threshold:
        nhwc, restore_shape = low.to_nhwc(call.x)
        return restore_shape(low.relu(nhwc, None if layer.max_value is None else float(layer.max_value), layer.name))
    return _lower_channelwise(low, call)


def _lower_channelwise(low: Lowering, call: LoweringCall) -> Any:
    nhwc, restore_shape = low.to_nhwc(call.x)
    return restore_shape(low.apply(copy_layer(call.layer), nhwc))


def _lower_operator(low: Lowering, call: LoweringCall) -> Any:
    """Operators that TensorFlow's quantizer fails on are written in those that it takes."""
    name, layer = call.layer.operator, call.layer
    if name == "Negative":
        return low.op("Multiply", call.x, "minus", -1.0)
    if name == "Square":
        return low.op("Multiply", [call.x, call.x], "squared")
    return lower_elu(low, call.x, layer.name) if name == "Elu" and _is_default_elu(layer) else keep_operator(low, call)


def _is_default_elu(layer: Any) -> bool:
    arguments = json.loads(layer.arguments)
    return arguments["kwargs"].get("alpha", 1.0) == 1.0 and len(arguments["args"]) == 1


def _lower_global_average(low: Lowering, call: LoweringCall) -> Any:
    """The mean of a single position is a reshape, which TensorFlow makes of it too."""
    layer, shape = call.layer, tuple(call.x.shape[1:])
    if math.prod(shape[:-1]) > 1:
        return keep_operator(low, call)
    return low.reshape(call.x, shape if layer.keepdims else shape[-1:], "only")


def _lower_resizing(low: Lowering, call: LoweringCall) -> Any:
    layer = call.layer
    if layer.crop_to_aspect_ratio or layer.interpolation not in ("bilinear", "nearest"):
        return keep_opaque(f"Resizing by {layer.interpolation}, which TFLite has no integer operator for")(low, call)
    return keep_operator(low, call)


def _lower_activation_layer(low: Lowering, call: LoweringCall) -> Any:
    return lower_activation(low, call.x, call.layer.activation, call.layer.name)


_RULES: dict[str, LayerRule] = {
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
    "MultiHeadAttention": lower_multi_head_attention,
    **dict.fromkeys(RECURRENT_LAYERS, _lower_recurrent),
    "TimeDistributed": _lower_time_distributed,
    "Resizing": _lower_resizing,
    "Operator": _lower_operator,
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), _lower_global_average),
}
