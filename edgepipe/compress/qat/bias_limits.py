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
from edgepipe.compress.qat.quantizers import MIN_WEIGHT_RANGE
from edgepipe.compress.qat.scales import read_fake_quant_range
from edgepipe.core.arrays import Array

K = tf_keras.layers


def round_biases(model: Any) -> int:
    """Move every bias of a fake-quant `model` to a multiple of its int32 step; how many layers have one.

    A layer that is called on inputs of several scales keeps its bias: no value fits them all.
    """
    calls_by_layer: dict[int, list[Any]] = {}
    producers: dict[int, Any] = {}
    for node in nodes(model):
        producers.update((id(tensor), node) for tensor in tf.nest.flatten(node.outputs))
        if isinstance(node.layer, QuantizeWrapperV2):
            calls_by_layer.setdefault(id(node.layer), []).append(node)
    return sum(_round_bias(layer_calls, producers) for layer_calls in calls_by_layer.values())


def _round_bias(layer_calls: list[Any], producers: dict[int, Any]) -> bool:
    scales = {_input_scale(node.keras_inputs[0], producers) for node in layer_calls}
    wrapper = layer_calls[0].layer
    norm = _following_norm(layer_calls[0])
    if len(scales) != 1 or None in scales or (norm is None and not wrapper.layer.use_bias):
        return False
    (scale,) = scales
    factor, bias = compute_norm_folding(wrapper.layer, norm)
    step = np.float64(scale) * _weight_scales(wrapper) * np.abs(factor)
    bias_shift = np.rint(bias / step) * step - bias
    target = wrapper.layer.bias if norm is None else norm.beta if norm.center else None
    if target is None:
        return False
    target.assign_add(bias_shift.astype(np.float32))
    return True


def _input_scale(tensor: Any, producers: dict[int, Any]) -> float | None:
    """The scale of the fake-quantized tensor that `tensor` is or was moved from."""
    node = producers.get(id(tensor))
    while node is not None and not isinstance(node.layer, QuantizeLayer):
        is_passthrough = len(node.keras_inputs) == 1 and not isinstance(node.layer, QuantizeWrapperV2)
        node = producers.get(id(node.keras_inputs[0])) if is_passthrough else None
    return None if node is None else read_fake_quant_range(node.layer).scale


def _following_norm(node: Any) -> Any:
    following_layers = [consumer.layer for consumer in node.layer._outbound_nodes]
    return (
        following_layers[0]
        if len(following_layers) == 1 and isinstance(following_layers[0], K.BatchNormalization)
        else None
    )


def compute_norm_folding(layer: Any, norm: Any) -> tuple[Array, Array]:
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
    structured_kernel = np.asarray(quantizer.apply_structure(kernel), np.float64)
    reduced_axes = tuple(axis for axis in range(structured_kernel.ndim) if axis not in quantizer.axis)
    scales: Array = np.maximum(np.abs(structured_kernel).max(axis=reduced_axes).ravel(), MIN_WEIGHT_RANGE) / 127
    return scales
