"""Rounds trained biases to the steps that int8 inference stores.

TFLite stores a bias as int32 in steps of input scale * weight scale. Fake-quant leaves it in float, so the bias of the
int8 model differs slightly: by half a step at most, but that is the main cause of values that round the other way, and
the network amplifies each of them. After training, every bias is moved to the nearest step.
"""

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2

from edgepipe.compress.qat.lowering.lower import iter_nodes
from edgepipe.compress.qat.quantizers import MIN_WEIGHT_RANGE
from edgepipe.compress.qat.scales import read_fake_quant_range
from edgepipe.core.arrays import Array
from edgepipe.models.keras_types import KerasNode, KerasTensor, TfKerasLayer, TfKerasModel

K = tf_keras.layers


def round_biases(model: TfKerasModel) -> int:
    """Round every bias of a fake-quant `model` to a multiple of its int32 step; returns the number of rounded biases.

    A layer that is called on inputs with different scales keeps its bias: no value fits all of them.
    """
    calls_by_layer_id: dict[int, list[KerasNode]] = {}
    producer_by_tensor_id: dict[int, KerasNode] = {}
    for node in iter_nodes(model):
        producer_by_tensor_id.update((id(tensor), node) for tensor in tf.nest.flatten(node.outputs))
        if isinstance(node.layer, QuantizeWrapperV2):
            calls_by_layer_id.setdefault(id(node.layer), []).append(node)
    return sum(_round_bias(layer_calls, producer_by_tensor_id) for layer_calls in calls_by_layer_id.values())


def _round_bias(layer_calls: list[KerasNode], producer_by_tensor_id: dict[int, KerasNode]) -> bool:
    input_scales = {_input_scale(node.keras_inputs[0], producer_by_tensor_id) for node in layer_calls}
    wrapper = layer_calls[0].layer
    norm = _following_norm(layer_calls[0])
    if len(input_scales) != 1 or None in input_scales or (norm is None and not wrapper.layer.use_bias):
        return False
    (input_scale,) = input_scales
    norm_factor, bias = compute_norm_folding(wrapper.layer, norm)
    bias_step = np.float64(input_scale) * _weight_scales(wrapper) * np.abs(norm_factor)
    bias_shift = np.rint(bias / bias_step) * bias_step - bias
    bias_variable = wrapper.layer.bias if norm is None else norm.beta if norm.center else None
    if bias_variable is None:
        return False
    bias_variable.assign_add(bias_shift.astype(np.float32))
    return True


def _input_scale(tensor: KerasTensor, producer_by_tensor_id: dict[int, KerasNode]) -> float | None:
    """The scale of `tensor`, or of the fake-quantized tensor whose values it only moves; None if there is none."""
    node = producer_by_tensor_id.get(id(tensor))
    while node is not None and not isinstance(node.layer, QuantizeLayer):
        is_passthrough = len(node.keras_inputs) == 1 and not isinstance(node.layer, QuantizeWrapperV2)
        node = producer_by_tensor_id.get(id(node.keras_inputs[0])) if is_passthrough else None
    return None if node is None else read_fake_quant_range(node.layer).scale


def _following_norm(node: KerasNode) -> TfKerasLayer | None:
    following_layers = [consumer.layer for consumer in node.layer._outbound_nodes]
    return (
        following_layers[0]
        if len(following_layers) == 1 and isinstance(following_layers[0], K.BatchNormalization)
        else None
    )


def compute_norm_folding(layer: TfKerasLayer, norm: TfKerasLayer | None) -> tuple[Array, Array]:
    """The per-channel factor of the batch norm on the kernel, and the combined bias of both layers."""
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(1)
    if norm is None:
        return np.ones(1), bias
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones(1)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(1)
    factor = gamma / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    return factor, beta + (bias - np.asarray(norm.moving_mean, np.float64)) * factor


def _weight_scales(wrapper: TfKerasLayer) -> Array:
    """The stored scale of each output channel of the kernel."""
    kernel, quantizer, _ = wrapper._weight_vars[0]
    structured_kernel = np.asarray(quantizer.apply_structure(kernel), np.float64)
    reduced_axes = tuple(axis for axis in range(structured_kernel.ndim) if axis not in quantizer.axis)
    scales: Array = np.maximum(np.abs(structured_kernel).max(axis=reduced_axes).ravel(), MIN_WEIGHT_RANGE) / 127
    return scales
