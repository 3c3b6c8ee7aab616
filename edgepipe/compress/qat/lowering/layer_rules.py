"""How each layer class is lowered; what no rule knows is kept whole and quantized by calibration."""

import json
import math
from typing import Any

import tf_keras

from edgepipe.compress.qat.activation_placement import LEFT_ALONE
from edgepipe.compress.qat.lowering.activations import activation, elu
from edgepipe.compress.qat.lowering.attention import attention, multi_head_attention
from edgepipe.compress.qat.lowering.convolutions import (
    conv1d,
    conv1d_transpose,
    conv2d,
    dense,
    depthwise1d,
    einsum_dense,
    plain,
    separable,
)
from edgepipe.compress.qat.lowering.lower import Arguments, Call, Handler, Lowering
from edgepipe.compress.qat.lowering.normalizations import (
    batch_norm,
    group_norm,
    layer_norm,
    layer_scale,
    normalization,
    rescaling,
)
from edgepipe.compress.qat.lowering.opaque_layers import as_it_is, copy, kept

K = tf_keras.layers
RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional")
STEPS = 256  # more steps than this, unrolled, make a graph that no converter finishes in reasonable time


def handler(layer: Any, left_alone: bool) -> Handler:
    """The rule for `layer`."""
    if left_alone:
        return kept(LEFT_ALONE)
    return _RULES.get(type(layer).__name__, as_it_is)


def _merge(low: Lowering, call: Call) -> Any:
    """TFLite adds and multiplies two tensors at a time; every sum in between has a range of its own."""
    cls = type(call.layer).__name__
    tensors = list(call.inputs)
    total = tensors[0]
    for number, other in enumerate(tensors[1:], 1):
        name = call.layer.name if number == len(tensors) - 1 else f"{call.layer.name}_{number}"
        total = low.apply(getattr(K, cls)(name=name), [total, other])
    return total


def _average(low: Lowering, call: Call) -> Any:
    tensors = list(call.inputs)
    total = tensors[0]
    for number, other in enumerate(tensors[1:], 1):
        total = low.apply(K.Add(name=f"{call.layer.name}_sum{number}"), [total, other])
    return low.op("Multiply", total, "mean", 1.0 / len(tensors))


def _recurrent(low: Lowering, call: Call) -> Any:
    """A loop cannot be calibrated, its steps written one after the other can; the weights are the same."""
    layer, steps = call.layer, call.x.shape[1]
    if steps is None or steps > STEPS:
        reason = f"a loop over {steps} steps, which is too long to be unrolled (at most {STEPS})"
        return kept(reason)(low, call)
    config = layer.get_config()
    inner = config["layer"]["config"] if "layer" in config else config
    backward = config.get("backward_layer")
    for part in (inner, *([backward["config"]] if backward else [])):
        part["unroll"] = True
    reason = f"recurrent: unrolled into its {steps} steps, whose inner tensors are calibrated"
    return low.apply(
        type(layer).from_config(config),
        Arguments([call.inputs, *call.args]),
        layer.get_weights(),
        reason,
        **call.kwargs,
    )


def _time_distributed(low: Lowering, call: Call) -> Any:
    inner = call.layer.layer
    if type(inner).__name__ != "Dense":
        return kept(f"TimeDistributed({type(inner).__name__})")(low, call)
    return dense(low, Call(inner, call.inputs, call.args, call.kwargs, call.sole))


def _relu(low: Lowering, call: Call) -> Any:
    """A ReLU with a slope below zero is TFLite's LEAKY_RELU; with both it is kept."""
    layer = call.layer
    if layer.negative_slope and layer.max_value is None and not layer.threshold:
        return low.apply(K.LeakyReLU(alpha=float(layer.negative_slope), name=layer.name), call.x)
    if not layer.negative_slope and not layer.threshold:
        inner, back = low.flat(call.x)
        return back(low.relu(inner, None if layer.max_value is None else float(layer.max_value), layer.name))
    return _channelwise(low, call)


def _channelwise(low: Lowering, call: Call) -> Any:
    inner, back = low.flat(call.x)
    return back(low.apply(copy(call.layer), inner))


def _operator(low: Lowering, call: Call) -> Any:
    """Operators that TensorFlow's quantizer fails on are written in those that it takes."""
    name, layer = call.layer.operator, call.layer
    if name == "Negative":
        return low.op("Multiply", call.x, "minus", -1.0)
    if name == "Square":
        return low.op("Multiply", [call.x, call.x], "squared")
    return elu(low, call.x, layer.name) if name == "Elu" and _is_plain(layer) else as_it_is(low, call)


def _is_plain(layer: Any) -> bool:
    arguments = json.loads(layer.arguments)
    return arguments["kwargs"].get("alpha", 1.0) == 1.0 and len(arguments["args"]) == 1


def _global_average(low: Lowering, call: Call) -> Any:
    """The mean of a single position is a reshape, which TensorFlow makes of it too."""
    layer, shape = call.layer, tuple(call.x.shape[1:])
    if math.prod(shape[:-1]) > 1:
        return as_it_is(low, call)
    return low.reshape(call.x, shape if layer.keepdims else shape[-1:], "only")


def _resizing(low: Lowering, call: Call) -> Any:
    layer = call.layer
    if layer.crop_to_aspect_ratio or layer.interpolation not in ("bilinear", "nearest"):
        return kept(f"Resizing by {layer.interpolation}, which TFLite has no integer operator for")(low, call)
    return as_it_is(low, call)


def _activation_layer(low: Lowering, call: Call) -> Any:
    return activation(low, call.x, call.layer.activation, call.layer.name)


_RULES: dict[str, Handler] = {
    "Conv2D": conv2d,
    **dict.fromkeys(("DepthwiseConv2D", "Conv2DTranspose"), plain),
    "Conv1D": conv1d,
    "Conv1DTranspose": conv1d_transpose,
    "DepthwiseConv1D": depthwise1d,
    **dict.fromkeys(("SeparableConv2D", "SeparableConv1D"), separable),
    "Dense": dense,
    "EinsumDense": einsum_dense,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "LayerScale": layer_scale,
    "Rescaling": rescaling,
    "Normalization": normalization,
    "Activation": _activation_layer,
    "ReLU": _relu,
    **dict.fromkeys(("Add", "Multiply", "Maximum", "Minimum"), _merge),
    "Average": _average,
    "Dot": kept("a Dot of two tensors"),
    "Attention": attention,
    "MultiHeadAttention": multi_head_attention,
    **dict.fromkeys(RECURRENT, _recurrent),
    "TimeDistributed": _time_distributed,
    "Resizing": _resizing,
    "Operator": _operator,
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), _global_average),
}
