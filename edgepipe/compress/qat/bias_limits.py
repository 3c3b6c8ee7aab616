"""Biases put where int8 can hold them.

TFLite stores a bias as int32 in steps of input scale * weight scale. Fake-quant leaves it in float, so that the int8
model computes with a slightly other bias: half a step at most, but the first cause of values that round the other way,
and each of them is amplified on its way through the network. After training, every bias is moved to the nearest step.
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2

from edgepipe.compress.qat.lowering.lower import nodes
from edgepipe.compress.qat.quantizers import SMALLEST
from edgepipe.compress.qat.scales import fake_range
from edgepipe.core.arrays import Array

K = tf_keras.layers


def settle(model: Any) -> int:
    """Move every bias of a fake-quant `model` to a multiple of its int32 step; how many layers have one.

    A layer that is called on inputs of several scales keeps its bias: no value fits them all.
    """
    calls: dict[int, list[Any]] = {}
    makers: dict[int, Any] = {}
    for node in nodes(model):
        makers.update((id(tensor), node) for tensor in tf.nest.flatten(node.outputs))
        if isinstance(node.layer, QuantizeWrapperV2):
            calls.setdefault(id(node.layer), []).append(node)
    return sum(_settle(found, makers) for found in calls.values())


def _settle(calls: list[Any], makers: dict[int, Any]) -> bool:
    scales = {_input_scale(node.keras_inputs[0], makers) for node in calls}
    wrapper = calls[0].layer
    norm = _norm_behind(calls[0])
    if len(scales) != 1 or None in scales or (norm is None and not wrapper.layer.use_bias):
        return False
    (scale,) = scales
    factor, bias = folding(wrapper.layer, norm)
    step = np.float64(scale) * _weight_scales(wrapper) * np.abs(factor)
    moved = np.rint(bias / step) * step - bias
    target = wrapper.layer.bias if norm is None else norm.beta if norm.center else None
    if target is None:
        return False
    target.assign_add(moved.astype(np.float32))
    return True


def _input_scale(tensor: Any, makers: dict[int, Any]) -> float | None:
    """The scale of the fake-quantized tensor that `tensor` is or was moved from."""
    node = makers.get(id(tensor))
    while node is not None and not isinstance(node.layer, QuantizeLayer):
        moved = len(node.keras_inputs) == 1 and not isinstance(node.layer, QuantizeWrapperV2)
        node = makers.get(id(node.keras_inputs[0])) if moved else None
    return None if node is None else fake_range(node.layer).scale


def _norm_behind(node: Any) -> Any:
    following = [other.layer for other in node.layer._outbound_nodes]
    return following[0] if len(following) == 1 and isinstance(following[0], K.BatchNormalization) else None


def folding(layer: Any, norm: Any) -> tuple[Array, Array]:
    """What the batch norm multiplies the kernel by, channel by channel, and the bias of both together."""
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(1)
    if norm is None:
        return np.ones(1), bias
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones(1)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(1)
    factor = gamma / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    return factor, beta + (bias - np.asarray(norm.moving_mean, np.float64)) * factor


def _weight_scales(wrapper: Any) -> Array:
    """The scale of each output channel of the kernel, as it will be stored."""
    kernel, quantizer, _ = wrapper._weight_vars[0]
    held = np.asarray(quantizer.held(kernel), np.float64)
    others = tuple(axis for axis in range(held.ndim) if axis not in quantizer.axis)
    scales: Array = np.maximum(np.abs(held).max(axis=others).ravel(), SMALLEST) / 127
    return scales
