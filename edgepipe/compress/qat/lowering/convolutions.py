"""Convolutions and dense layers: as TFLite's CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV and FULLY_CONNECTED."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.activations import activation
from edgepipe.compress.qat.lowering.lower import Call, Lowering
from edgepipe.compress.qat.lowering.opaque_layers import kept
from edgepipe.core.arrays import Array

K = tf_keras.layers


def _after(low: Lowering, call: Call, x: Any) -> Any:
    return activation(low, x, call.layer.activation, f"{call.layer.name}_activation")


def _weights(layer: Any, *kernels: Array) -> list[Array]:
    return [*kernels, *([np.asarray(layer.bias)] if layer.use_bias else [])]


def plain(low: Lowering, call: Call) -> Any:
    """A layer that is one operator as it is, its activation apart."""
    layer = call.layer
    bare = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    return _after(low, call, low.apply(bare, call.x, layer.get_weights()))


def conv2d(low: Lowering, call: Call) -> Any:
    """One group for each channel is a depthwise convolution with another order of its weights."""
    layer, channels = call.layer, call.x.shape[-1]
    if layer.groups == 1 or layer.groups != channels:
        return plain(low, call)
    kernel = np.asarray(layer.kernel)
    multiplier = layer.filters // channels
    twin = K.DepthwiseConv2D(
        layer.kernel_size, strides=layer.strides, padding=layer.padding, dilation_rate=layer.dilation_rate,
        depth_multiplier=multiplier, use_bias=layer.use_bias, name=layer.name, trainable=layer.trainable,
    )  # fmt: skip
    weights = _weights(layer, kernel.reshape(*kernel.shape[:2], channels, multiplier))
    return _after(low, call, low.apply(twin, call.x, weights))


def _padded(low: Lowering, call: Call, inner: Any) -> tuple[Any, str]:
    layer = call.layer
    if layer.padding != "causal":
        return inner, str(layer.padding)
    left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    return low.apply(K.ZeroPadding2D(((0, 0), (left, 0)), name=f"{layer.name}_causal"), inner), "valid"


def conv1d(low: Lowering, call: Call) -> Any:
    """A convolution over (1, length, channels)."""
    layer = call.layer
    inner, back = low.flat(call.x)
    inner, padding = _padded(low, call, inner)
    twin = K.Conv2D(
        layer.filters, (1, layer.kernel_size[0]), strides=(1, layer.strides[0]), padding=padding, groups=layer.groups,
        dilation_rate=(1, layer.dilation_rate[0]), use_bias=layer.use_bias, name=layer.name, trainable=layer.trainable,
    )  # fmt: skip
    if layer.groups > 1 and layer.groups == call.x.shape[-1]:
        grouped = Call(twin, inner, (), {}, call.sole)
        twin.build(inner.shape)
        twin.set_weights(_weights(layer, np.asarray(layer.kernel)[None]))
        return back(_after(low, call, conv2d(low, grouped)))
    result = low.apply(twin, inner, _weights(layer, np.asarray(layer.kernel)[None]))
    return back(_after(low, call, result))


def depthwise1d(low: Lowering, call: Call) -> Any:
    """A depthwise convolution over (1, length, channels); it wants equal strides, of which one does nothing here."""
    layer = call.layer
    inner, back = low.flat(call.x)
    inner, padding = _padded(low, call, inner)
    kernel = np.asarray(layer.depthwise_kernel)
    twin = _depthwise(layer, (1, kernel.shape[0]), layer.strides[0], layer.dilation_rate[0], padding, layer.name,
                      layer.use_bias)  # fmt: skip
    return back(_after(low, call, low.apply(twin, inner, _weights(layer, kernel[None]))))


def _depthwise(layer: Any, size: Any, stride: Any, dilation: Any, padding: str, name: str, bias: bool) -> Any:
    return K.DepthwiseConv2D(
        size, strides=stride, padding=padding, dilation_rate=dilation, depth_multiplier=layer.depth_multiplier,
        use_bias=bias, name=name, trainable=layer.trainable,
    )  # fmt: skip


def conv1d_transpose(low: Lowering, call: Call) -> Any:
    """A transposed convolution over (1, length, channels)."""
    layer = call.layer
    inner, back = low.flat(call.x)
    padding = None if layer.output_padding is None else (0, layer.output_padding[0])
    twin = K.Conv2DTranspose(
        layer.filters, (1, layer.kernel_size[0]), strides=(1, layer.strides[0]), padding=layer.padding,
        output_padding=padding, dilation_rate=(1, layer.dilation_rate[0]), use_bias=layer.use_bias, name=layer.name,
        trainable=layer.trainable,
    )  # fmt: skip
    result = low.apply(twin, inner, _weights(layer, np.asarray(layer.kernel)[None]))
    return back(_after(low, call, result))


def separable(low: Lowering, call: Call) -> Any:
    """A depthwise convolution, then a pointwise one."""
    layer, flat = call.layer, len(call.x.shape) == 3
    inner, back = low.flat(call.x)
    inner, padding = _padded(low, call, inner)
    deep, point = np.asarray(layer.depthwise_kernel), np.asarray(layer.pointwise_kernel)
    size, stride, dilation = (
        ((1, deep.shape[0]), layer.strides[0], layer.dilation_rate[0])
        if flat
        else (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    first = _depthwise(layer, size, stride, dilation, padding, f"{layer.name}_depthwise", False)
    second = K.Conv2D(layer.filters, 1, use_bias=layer.use_bias, name=f"{layer.name}_pointwise",
                      trainable=layer.trainable)  # fmt: skip
    middle = low.apply(first, inner, [deep[None] if flat else deep])
    return back(_after(low, call, low.apply(second, middle, _weights(layer, point[None] if flat else point))))


def pointwise(low: Lowering, x: Any, kernel: Array, bias: Array | None, name: str, trainable: bool = True) -> Any:
    """A dense layer on the last axis of `x`, which has more than two dimensions: a 1 x 1 convolution."""
    inner, back = low.flat(x)
    layer = K.Conv2D(kernel.shape[-1], 1, use_bias=bias is not None, name=name, trainable=trainable)
    return back(low.apply(layer, inner, [kernel[None, None], *([] if bias is None else [bias])]))


def dense(low: Lowering, call: Call) -> Any:
    """FULLY_CONNECTED, or a 1 x 1 convolution on more than two dimensions."""
    layer = call.layer
    if len(call.x.shape) == 2:
        return plain(low, call)
    bias = np.asarray(layer.bias) if layer.use_bias else None
    return _after(low, call, pointwise(low, call.x, np.asarray(layer.kernel), bias, layer.name, layer.trainable))


def einsum_dense(low: Lowering, call: Call) -> Any:
    """An equation that contracts the last axis with the first of the kernel is a dense layer; others are kept."""
    layer = call.layer
    left, right = layer.equation.replace(" ", "").split("->")
    data, kernel = left.split(",")
    new = kernel[1:]
    lead = data[:-1]
    if data[-1:] != kernel[:1] or right != lead + new or len(call.x.shape) == 2:
        return kept(f"einsum {layer.equation}")(low, call)
    weights = np.asarray(layer.kernel)
    bias = None if layer.bias is None else np.broadcast_to(np.asarray(layer.bias), weights.shape[1:]).ravel()
    flat = pointwise(low, call.x, weights.reshape(weights.shape[0], -1), bias, layer.name, layer.trainable)
    result = low.reshape(flat, (*call.x.shape[1:-1], *weights.shape[1:]), "split")
    return _after(low, call, result)
