"""Convolutions and dense layers: as TFLite's CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV and FULLY_CONNECTED."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.activations import lower_activation
from edgepipe.compress.qat.lowering.lower import Lowering, LoweringCall
from edgepipe.compress.qat.lowering.opaque_layers import keep_opaque
from edgepipe.core.arrays import Array

K = tf_keras.layers


def _append_activation(low: Lowering, call: LoweringCall, x: Any) -> Any:
    return lower_activation(low, x, call.layer.activation, f"{call.layer.name}_activation")


def _layer_weights(layer: Any, *kernels: Array) -> list[Array]:
    return [*kernels, *([np.asarray(layer.bias)] if layer.use_bias else [])]


def lower_single_operator(low: Lowering, call: LoweringCall) -> Any:
    """A layer that is one operator as it is, its activation apart."""
    layer = call.layer
    linear_layer = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    return _append_activation(low, call, low.apply(linear_layer, call.x, layer.get_weights()))


def lower_conv2d(low: Lowering, call: LoweringCall) -> Any:
    """One group for each channel is a depthwise convolution with another order of its weights."""
    layer, channels = call.layer, call.x.shape[-1]
    if layer.groups == 1 or layer.groups != channels:
        return lower_single_operator(low, call)
    kernel = np.asarray(layer.kernel)
    multiplier = layer.filters // channels
    twin = K.DepthwiseConv2D(
        layer.kernel_size, strides=layer.strides, padding=layer.padding, dilation_rate=layer.dilation_rate,
        depth_multiplier=multiplier, use_bias=layer.use_bias, name=layer.name, trainable=layer.trainable,
    )  # fmt: skip
    weights = _layer_weights(layer, kernel.reshape(*kernel.shape[:2], channels, multiplier))
    return _append_activation(low, call, low.apply(twin, call.x, weights))


def _pad_causal(low: Lowering, call: LoweringCall, nhwc: Any) -> tuple[Any, str]:
    layer = call.layer
    if layer.padding != "causal":
        return nhwc, str(layer.padding)
    left_padding = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    return low.apply(K.ZeroPadding2D(((0, 0), (left_padding, 0)), name=f"{layer.name}_causal"), nhwc), "valid"


def lower_conv1d(low: Lowering, call: LoweringCall) -> Any:
    """A convolution over (1, length, channels)."""
    layer = call.layer
    nhwc, restore_shape = low.to_nhwc(call.x)
    nhwc, padding = _pad_causal(low, call, nhwc)
    twin = K.Conv2D(
        layer.filters, (1, layer.kernel_size[0]), strides=(1, layer.strides[0]), padding=padding, groups=layer.groups,
        dilation_rate=(1, layer.dilation_rate[0]), use_bias=layer.use_bias, name=layer.name, trainable=layer.trainable,
    )  # fmt: skip
    if layer.groups > 1 and layer.groups == call.x.shape[-1]:
        grouped_call = LoweringCall(twin, nhwc, (), {}, call.is_only_call)
        twin.build(nhwc.shape)
        twin.set_weights(_layer_weights(layer, np.asarray(layer.kernel)[None]))
        return restore_shape(_append_activation(low, call, lower_conv2d(low, grouped_call)))
    output = low.apply(twin, nhwc, _layer_weights(layer, np.asarray(layer.kernel)[None]))
    return restore_shape(_append_activation(low, call, output))


def lower_depthwise1d(low: Lowering, call: LoweringCall) -> Any:
    """A depthwise convolution over (1, length, channels); it wants equal strides, of which one does nothing here."""
    layer = call.layer
    nhwc, restore_shape = low.to_nhwc(call.x)
    nhwc, padding = _pad_causal(low, call, nhwc)
    kernel = np.asarray(layer.depthwise_kernel)
    twin = _build_depthwise(layer, (1, kernel.shape[0]), layer.strides[0], layer.dilation_rate[0], padding, layer.name,
                      layer.use_bias)  # fmt: skip
    return restore_shape(_append_activation(low, call, low.apply(twin, nhwc, _layer_weights(layer, kernel[None]))))


def _build_depthwise(layer: Any, size: Any, stride: Any, dilation: Any, padding: str, name: str, bias: bool) -> Any:
    return K.DepthwiseConv2D(
        size, strides=stride, padding=padding, dilation_rate=dilation, depth_multiplier=layer.depth_multiplier,
        use_bias=bias, name=name, trainable=layer.trainable,
    )  # fmt: skip


def lower_conv1d_transpose(low: Lowering, call: LoweringCall) -> Any:
    """A transposed convolution over (1, length, channels)."""
    layer = call.layer
    nhwc, restore_shape = low.to_nhwc(call.x)
    out_padding = None if layer.output_padding is None else (0, layer.output_padding[0])
    twin = K.Conv2DTranspose(
        layer.filters, (1, layer.kernel_size[0]), strides=(1, layer.strides[0]), padding=layer.padding,
        output_padding=out_padding, dilation_rate=(1, layer.dilation_rate[0]), use_bias=layer.use_bias, name=layer.name,
        trainable=layer.trainable,
    )  # fmt: skip
    output = low.apply(twin, nhwc, _layer_weights(layer, np.asarray(layer.kernel)[None]))
    return restore_shape(_append_activation(low, call, output))


def lower_separable(low: Lowering, call: LoweringCall) -> Any:
    """A depthwise convolution, then a pointwise one."""
    layer, is_1d = call.layer, len(call.x.shape) == 3
    nhwc, restore_shape = low.to_nhwc(call.x)
    nhwc, padding = _pad_causal(low, call, nhwc)
    depthwise_kernel, pointwise_kernel = np.asarray(layer.depthwise_kernel), np.asarray(layer.pointwise_kernel)
    size, stride, dilation = (
        ((1, depthwise_kernel.shape[0]), layer.strides[0], layer.dilation_rate[0])
        if is_1d
        else (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    depthwise_layer = _build_depthwise(layer, size, stride, dilation, padding, f"{layer.name}_depthwise", False)
    pointwise_layer = K.Conv2D(layer.filters, 1, use_bias=layer.use_bias, name=f"{layer.name}_pointwise",
                      trainable=layer.trainable)  # fmt: skip
    depthwise_output = low.apply(depthwise_layer, nhwc, [depthwise_kernel[None] if is_1d else depthwise_kernel])
    return restore_shape(
        _append_activation(
            low,
            call,
            low.apply(
                pointwise_layer,
                depthwise_output,
                _layer_weights(layer, pointwise_kernel[None] if is_1d else pointwise_kernel),
            ),
        )
    )


def lower_pointwise(low: Lowering, x: Any, kernel: Array, bias: Array | None, name: str, trainable: bool = True) -> Any:
    """A dense layer on the last axis of `x`, which has more than two dimensions: a 1 x 1 convolution."""
    nhwc, restore_shape = low.to_nhwc(x)
    layer = K.Conv2D(kernel.shape[-1], 1, use_bias=bias is not None, name=name, trainable=trainable)
    return restore_shape(low.apply(layer, nhwc, [kernel[None, None], *([] if bias is None else [bias])]))


def lower_dense(low: Lowering, call: LoweringCall) -> Any:
    """FULLY_CONNECTED, or a 1 x 1 convolution on more than two dimensions."""
    layer = call.layer
    if len(call.x.shape) == 2:
        return lower_single_operator(low, call)
    bias = np.asarray(layer.bias) if layer.use_bias else None
    return _append_activation(
        low, call, lower_pointwise(low, call.x, np.asarray(layer.kernel), bias, layer.name, layer.trainable)
    )


def lower_einsum_dense(low: Lowering, call: LoweringCall) -> Any:
    """An equation that contracts the last axis with the first of the kernel is a dense layer; others are kept."""
    layer = call.layer
    input_spec, output_axes = layer.equation.replace(" ", "").split("->")
    data_axes, kernel_axes = input_spec.split(",")
    new_axes = kernel_axes[1:]
    lead_axes = data_axes[:-1]
    if data_axes[-1:] != kernel_axes[:1] or output_axes != lead_axes + new_axes or len(call.x.shape) == 2:
        return keep_opaque(f"einsum {layer.equation}")(low, call)
    weights = np.asarray(layer.kernel)
    bias = None if layer.bias is None else np.broadcast_to(np.asarray(layer.bias), weights.shape[1:]).ravel()
    flat_output = lower_pointwise(low, call.x, weights.reshape(weights.shape[0], -1), bias, layer.name, layer.trainable)
    output = low.reshape(flat_output, (*call.x.shape[1:-1], *weights.shape[1:]), "split")
    return _append_activation(low, call, output)
