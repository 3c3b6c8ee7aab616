"""Convolutions and dense layers as TFLite's CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV and FULLY_CONNECTED."""

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.activations import lower_activation
from edgepipe.compress.qat.lowering.lowering_context import LoweringCall, LoweringContext
from edgepipe.compress.qat.lowering.opaque_layers import keep_opaque
from edgepipe.core.arrays import Array
from edgepipe.models.keras_types import KerasTensor, TensorTree, TfKerasLayer

K = tf_keras.layers


def _append_activation(ctx: LoweringContext, call: LoweringCall, x: KerasTensor) -> KerasTensor:
    return lower_activation(ctx, x, call.layer.activation, f"{call.layer.name}_activation")


def _layer_weights(layer: TfKerasLayer, *kernels: Array) -> list[Array]:
    return [*kernels, *([np.asarray(layer.bias)] if layer.use_bias else [])]


def lower_single_operator(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A layer that is one operator already; its activation becomes a layer of its own."""
    layer = call.layer
    linear_layer = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    return _append_activation(ctx, call, ctx.apply(linear_layer, call.x, layer.get_weights()))


def lower_conv2d(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """One group per channel is a depthwise convolution with its weights in another order."""
    layer, channels = call.layer, call.x.shape[-1]
    if layer.groups == 1 or layer.groups != channels:
        return lower_single_operator(ctx, call)
    kernel = np.asarray(layer.kernel)
    depth_multiplier = layer.filters // channels
    depthwise_layer = K.DepthwiseConv2D(
        layer.kernel_size, strides=layer.strides, padding=layer.padding, dilation_rate=layer.dilation_rate,
        depth_multiplier=depth_multiplier, use_bias=layer.use_bias, name=layer.name, trainable=layer.trainable,
    )  # fmt: skip
    weights = _layer_weights(layer, kernel.reshape(*kernel.shape[:2], channels, depth_multiplier))
    return _append_activation(ctx, call, ctx.apply(depthwise_layer, call.x, weights))


def _pad_causal(ctx: LoweringContext, call: LoweringCall, nhwc: KerasTensor) -> tuple[KerasTensor, str]:
    layer = call.layer
    if layer.padding != "causal":
        return nhwc, str(layer.padding)
    left_padding = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    return ctx.apply(K.ZeroPadding2D(((0, 0), (left_padding, 0)), name=f"{layer.name}_causal"), nhwc), "valid"


def lower_conv1d(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A convolution over (1, length, channels)."""
    layer = call.layer
    nhwc, restore_shape = ctx.to_nhwc(call.x)
    nhwc, padding = _pad_causal(ctx, call, nhwc)
    conv2d_layer = K.Conv2D(
        layer.filters, (1, layer.kernel_size[0]), strides=(1, layer.strides[0]), padding=padding, groups=layer.groups,
        dilation_rate=(1, layer.dilation_rate[0]), use_bias=layer.use_bias, name=layer.name, trainable=layer.trainable,
    )  # fmt: skip
    if layer.groups > 1 and layer.groups == call.x.shape[-1]:
        grouped_call = LoweringCall(conv2d_layer, nhwc, (), {}, call.is_only_call)
        conv2d_layer.build(nhwc.shape)
        conv2d_layer.set_weights(_layer_weights(layer, np.asarray(layer.kernel)[None]))
        return restore_shape(_append_activation(ctx, call, lower_conv2d(ctx, grouped_call)))
    output = ctx.apply(conv2d_layer, nhwc, _layer_weights(layer, np.asarray(layer.kernel)[None]))
    return restore_shape(_append_activation(ctx, call, output))


def lower_depthwise1d(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A depthwise convolution over (1, length, channels); equal strides are required, one has no effect."""
    layer = call.layer
    nhwc, restore_shape = ctx.to_nhwc(call.x)
    nhwc, padding = _pad_causal(ctx, call, nhwc)
    kernel = np.asarray(layer.depthwise_kernel)
    depthwise_layer = K.DepthwiseConv2D(
        (1, kernel.shape[0]), strides=layer.strides[0], padding=padding, dilation_rate=layer.dilation_rate[0],
        depth_multiplier=layer.depth_multiplier, use_bias=layer.use_bias, name=layer.name, trainable=layer.trainable,
    )  # fmt: skip
    return restore_shape(
        _append_activation(ctx, call, ctx.apply(depthwise_layer, nhwc, _layer_weights(layer, kernel[None])))
    )


def lower_conv1d_transpose(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A transposed convolution over (1, length, channels)."""
    layer = call.layer
    nhwc, restore_shape = ctx.to_nhwc(call.x)
    out_padding = None if layer.output_padding is None else (0, layer.output_padding[0])
    transpose_layer = K.Conv2DTranspose(
        layer.filters, (1, layer.kernel_size[0]), strides=(1, layer.strides[0]), padding=layer.padding,
        output_padding=out_padding, dilation_rate=(1, layer.dilation_rate[0]), use_bias=layer.use_bias, name=layer.name,
        trainable=layer.trainable,
    )  # fmt: skip
    output = ctx.apply(transpose_layer, nhwc, _layer_weights(layer, np.asarray(layer.kernel)[None]))
    return restore_shape(_append_activation(ctx, call, output))


def lower_separable(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """A depthwise convolution, then a pointwise one."""
    layer, is_1d = call.layer, len(call.x.shape) == 3
    nhwc, restore_shape = ctx.to_nhwc(call.x)
    nhwc, padding = _pad_causal(ctx, call, nhwc)
    depthwise_kernel, pointwise_kernel = np.asarray(layer.depthwise_kernel), np.asarray(layer.pointwise_kernel)
    kernel_size, stride, dilation = (
        ((1, depthwise_kernel.shape[0]), layer.strides[0], layer.dilation_rate[0])
        if is_1d
        else (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    depthwise_layer = K.DepthwiseConv2D(
        kernel_size, strides=stride, padding=padding, dilation_rate=dilation, depth_multiplier=layer.depth_multiplier,
        use_bias=False, name=f"{layer.name}_depthwise", trainable=layer.trainable,
    )  # fmt: skip
    pointwise_layer = K.Conv2D(
        layer.filters, 1, use_bias=layer.use_bias, name=f"{layer.name}_pointwise", trainable=layer.trainable
    )
    pointwise_weights = _layer_weights(layer, pointwise_kernel[None] if is_1d else pointwise_kernel)
    depthwise_output = ctx.apply(depthwise_layer, nhwc, [depthwise_kernel[None] if is_1d else depthwise_kernel])
    output = ctx.apply(pointwise_layer, depthwise_output, pointwise_weights)
    return restore_shape(_append_activation(ctx, call, output))


def lower_pointwise(
    ctx: LoweringContext, x: KerasTensor, kernel: Array, bias: Array | None, name: str, trainable: bool = True
) -> KerasTensor:
    """A dense layer on the last axis of `x`, which has more than two dimensions: a 1 x 1 convolution.

    Args:
        ctx: The lowering.
        x: (batch, ..., features).
        kernel: (features, units).
        bias: (units,), or None for no bias.
        name: Name of the convolution.
        trainable: Whether its weights are trained.
    """
    nhwc, restore_shape = ctx.to_nhwc(x)
    layer = K.Conv2D(kernel.shape[-1], 1, use_bias=bias is not None, name=name, trainable=trainable)
    return restore_shape(ctx.apply(layer, nhwc, [kernel[None, None], *([] if bias is None else [bias])]))


def lower_dense(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """FULLY_CONNECTED, or a 1 x 1 convolution on more than two dimensions."""
    layer = call.layer
    if len(call.x.shape) == 2:
        return lower_single_operator(ctx, call)
    bias = np.asarray(layer.bias) if layer.use_bias else None
    return _append_activation(
        ctx, call, lower_pointwise(ctx, call.x, np.asarray(layer.kernel), bias, layer.name, layer.trainable)
    )


def lower_einsum_dense(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """An equation that contracts the last axis with the kernel's first is a dense layer; others are kept."""
    layer = call.layer
    input_spec, output_axes = layer.equation.replace(" ", "").split("->")
    data_axes, kernel_axes = input_spec.split(",")
    new_axes = kernel_axes[1:]
    lead_axes = data_axes[:-1]
    if data_axes[-1:] != kernel_axes[:1] or output_axes != lead_axes + new_axes or len(call.x.shape) == 2:
        return keep_opaque(f"einsum {layer.equation}")(ctx, call)
    kernel = np.asarray(layer.kernel)
    bias = None if layer.bias is None else np.broadcast_to(np.asarray(layer.bias), kernel.shape[1:]).ravel()
    flat_output = lower_pointwise(ctx, call.x, kernel.reshape(kernel.shape[0], -1), bias, layer.name, layer.trainable)
    output = ctx.reshape(flat_output, (*call.x.shape[1:-1], *kernel.shape[1:]), "split")
    return _append_activation(ctx, call, output)
