"""Compares a fake-quant model with the int8 model converted from it, tensor by tensor.

Every range of the fake-quant model belongs to one tensor of the .tflite, with the layer's name and the same scale and
zero point. Values are compared in steps of that scale (LSB): 1 is rounding; more is amplified rounding, or something
that the converter computes differently.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer

from edgepipe.compress.qat.fake_quant import FAKE_QUANT_SUFFIX
from edgepipe.compress.qat.lowering.lower import iter_nodes
from edgepipe.compress.qat.scales import QuantizedRange, read_fake_quant_range
from edgepipe.core.arrays import Array, Arrays
from edgepipe.models.keras_types import KerasNode, KerasTensor, Tensor, TensorTree, TfKerasModel
from edgepipe.tflite.intermediate_tensors import list_activations, record_tensors
from edgepipe.tflite.model import Model
from edgepipe.tflite.model import Tensor as TfliteTensor

SCALE_TOLERANCE = 1e-5  # relative float32 error of a scale that is computed in two places


@dataclass(frozen=True)
class TensorAgreement:
    """How far the int8 values of one tensor are from the fake-quantized ones, over all samples; or why unknown."""

    layer: str
    scale: float
    equal_fraction: float = 0.0  # fraction of values that are equal
    p99_lsb: float = 0.0
    max_lsb: int = 0
    mean_lsb: float = 0.0  # signed, int8 - fake-quant: a bias is more than rounding
    missing_reason: str = ""


@dataclass(frozen=True)
class Agreement:
    """Every tensor with its own range, in the order of computation, and how often the predicted labels agree."""

    tensors: list[TensorAgreement]
    labels_equal: float | None  # fraction of samples with the same argmax of output 0; None if it is a scalar


def measure_agreement(model: TfKerasModel, tflite_model: Model, x: Arrays) -> Agreement:
    """Compare the fake-quant `model` with `tflite_model`, converted from it, on all samples of `x`.

    Raises:
        InputError: the reference kernels cannot run the model.
    """
    fake_quant_calls = _find_fake_quant_calls(model, tflite_model)
    probe_model = tf_keras.Model(model.inputs, [*(call.output for call in fake_quant_calls), model.outputs[0]])
    *fake_arrays, output_scores = (
        np.asarray(v) for v in _as_list(probe_model.predict(_order_inputs(model, x), batch_size=32, verbose=0))
    )
    matched_tensors = _match_tensors(fake_quant_calls, [array[0] for array in fake_arrays], tflite_model, x)
    matched_triples = [
        (tensor, fake_array, call)
        for tensor, fake_array, call in zip(matched_tensors, fake_arrays, fake_quant_calls, strict=True)
        if tensor is not None
    ]
    histograms, label_agreements = [np.zeros(511, np.int64) for _ in matched_triples], []
    for sample_index, (*int8_arrays, int8_output) in enumerate(
        record_tensors(tflite_model, x, [*(tensor for tensor, _, _ in matched_triples), tflite_model.outputs[0]])
    ):
        label_agreements.append(int8_output.argmax() == output_scores[sample_index].argmax())
        for (_, fake_array, call), int8_array, histogram in zip(matched_triples, int8_arrays, histograms, strict=True):
            histogram += np.bincount(
                _lsb_difference(int8_array, fake_array[sample_index], call.quantized_range) + 255, minlength=511
            )
    remaining_histograms = iter(histograms)
    tensors = [
        _compute_tensor_agreement(call, next(remaining_histograms)) if match is not None else _unmatched_agreement(call)
        for call, match in zip(fake_quant_calls, matched_tensors, strict=True)
    ]
    return Agreement(tensors, float(np.mean(label_agreements)) if output_scores[0].size > 1 else None)


def choose_sample_count(tflite_model: Model, available_samples: int) -> int:
    """How many samples the slow reference kernels run in a few seconds: 4 to 256, and no more than `available`."""
    return min(available_samples, 256, max(4, int(2e9 / max(tflite_model.macs, 1))))


@dataclass(frozen=True)
class _FakeQuantCall:
    """One call of a fake-quant layer: the layer before it, its range, its output, and .tflite tensors of that size."""

    layer_name: str
    quantized_range: QuantizedRange
    output: KerasTensor
    same_size_tensors: list[TfliteTensor]

    def candidate_tensors(self) -> list[TfliteTensor]:
        """The tensors that may correspond: of the same range and size, and with the layer's name if any has it."""
        same_range_tensors = [
            tensor for tensor in self.same_size_tensors if _matches_range(tensor, self.quantized_range)
        ]
        return [tensor for tensor in same_range_tensors if self.has_layer_name(tensor)] or same_range_tensors

    def has_layer_name(self, tensor: TfliteTensor) -> bool:
        """Whether the tensor has the layer's name, with or without tfmot's prefix."""
        return bool({self.layer_name, f"quant_{self.layer_name}"} & {*re.split("[/;:]", tensor.name)})


def _find_fake_quant_calls(model: TfKerasModel, tflite_model: Model) -> list[_FakeQuantCall]:
    """Every call of a fake-quant layer, in the order of computation."""
    tensors_by_size: dict[int, list[TfliteTensor]] = defaultdict(list)
    for tensor in list_activations(tflite_model):
        tensors_by_size[tensor.element_count].append(tensor)
    fake_quant_calls = []
    for node in iter_nodes(model):
        if isinstance(node.layer, QuantizeLayer):
            size, output_tensor = math.prod(node.outputs.shape[1:]), _find_output_tensor(node, model, tflite_model)
            if output_tensor is None:
                same_size_tensors = tensors_by_size[size]
            else:
                same_size_tensors = [output_tensor] if output_tensor.element_count == size else []
            name = node.layer.name.removesuffix(FAKE_QUANT_SUFFIX)
            fake_quant_calls.append(
                _FakeQuantCall(name, read_fake_quant_range(node.layer), node.outputs, same_size_tensors)
            )
    return fake_quant_calls


def _find_output_tensor(node: KerasNode, model: TfKerasModel, tflite_model: Model) -> TfliteTensor | None:
    """The model output that `node` computes, if any; output tensors do not have a layer's name."""
    output_indices = (index for index, output in enumerate(model.outputs) if output is node.outputs)
    return next((tflite_model.outputs[index] for index in output_indices), None)


def _match_tensors(
    calls: list[_FakeQuantCall], first_fake_arrays: list[Array], tflite_model: Model, x: Arrays
) -> list[TfliteTensor | None]:
    """The tensor of each range; of several (calls of a shared layer), the one with the closest values."""
    candidate_groups = [call.candidate_tensors() for call in calls]
    tensor_by_index = {tensor.index: tensor for tensor_group in candidate_groups for tensor in tensor_group}
    first_sample = {key: array[:1] for key, array in x.items()} if isinstance(x, dict) else x[:1]
    int8_array_by_index = dict(
        zip(
            tensor_by_index,
            next(record_tensors(tflite_model, first_sample, list(tensor_by_index.values()))),
            strict=True,
        )
    )
    matched_tensors: list[TfliteTensor | None] = []
    for call, tensor_group, fake_array in zip(calls, candidate_groups, first_fake_arrays, strict=True):
        remaining_tensors = [tensor for tensor in tensor_group if tensor.index in tensor_by_index]
        distances = [
            np.abs(_lsb_difference(int8_array_by_index[tensor.index], fake_array, call.quantized_range)).mean()
            for tensor in remaining_tensors
        ]
        matched_tensors.append(
            tensor_by_index.pop(remaining_tensors[int(np.argmin(distances))].index) if remaining_tensors else None
        )
    return matched_tensors


def _unmatched_agreement(call: _FakeQuantCall) -> TensorAgreement:
    named_quantizations = [
        tensor.quantization for tensor in call.same_size_tensors if call.has_layer_name(tensor) and tensor.quantization
    ]
    reason = "no tensor of the .tflite has this range: it was fused away"
    if named_quantizations:
        scale, zero_point = named_quantizations[0].scales[0], named_quantizations[0].zero_points[0]
        reason = f"the .tflite has the scale {scale:.6g}, zero point {zero_point} there"
    return TensorAgreement(call.layer_name, call.quantized_range.scale, missing_reason=reason)


def _matches_range(tensor: TfliteTensor, expected_range: QuantizedRange) -> bool:
    quantization = tensor.quantization
    if quantization is None or quantization.is_per_axis or tensor.dtype != "int8":
        return False
    return (
        abs(quantization.scales[0] / expected_range.scale - 1) < SCALE_TOLERANCE
        and quantization.zero_points[0] == expected_range.zero_point
    )


def _lsb_difference(int8_array: Array, fake_array: Array, expected_range: QuantizedRange) -> Array:
    """int8 - fake-quant in LSB, flat."""
    fake_integers = np.clip(np.rint(fake_array.ravel() / expected_range.scale) + expected_range.zero_point, -128, 127)
    lsb_differences: Array = int8_array.astype(np.int64).ravel() - fake_integers.astype(np.int64)
    return lsb_differences


def _compute_tensor_agreement(call: _FakeQuantCall, histogram: Array) -> TensorAgreement:
    lsb_values, value_count = np.arange(-255, 256), histogram.sum()
    absolute_histogram = np.bincount(np.abs(lsb_values), weights=histogram)
    return TensorAgreement(
        layer=call.layer_name,
        scale=call.quantized_range.scale,
        equal_fraction=float(histogram[255] / value_count),
        p99_lsb=float(np.searchsorted(np.cumsum(absolute_histogram), 0.99 * value_count)),
        max_lsb=int(np.flatnonzero(absolute_histogram).max()),
        mean_lsb=float((lsb_values * histogram).sum() / value_count),
    )


def _order_inputs(model: TfKerasModel, x: Arrays) -> TensorTree:
    return [x[name] for name in model.input_names] if isinstance(x, dict) else x


def _as_list(outputs: TensorTree) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
