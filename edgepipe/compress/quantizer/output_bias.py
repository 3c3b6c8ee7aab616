"""Takes the mean error of the outputs off the biases of the layers that compute them.

Rounding leaves each channel of an activation an error of a fraction of a step that is the same on every sample: the
average over an image takes off the noise, not this. It is measured on the samples that calibrated, as the difference of
the integer model and the float one, channel by channel (empirical bias correction: Nagel et al. 2019, arXiv 1906.04721,
section 4.2), and taken off once, in the last layers, which show what all layers before them have added up. A layer
whose bias the converter has left out stays without.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.integer_model import IntegerModel
from edgepipe.core.arrays import Array
from edgepipe.tflite.intermediate_tensors import record_tensors
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model, Operator, Tensor
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import dequantize_array

LINEAR_OPERATORS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
# of one input and one output, behind which a mean error is still that of the layer
TRANSPARENT_OPERATORS = frozenset(
    {"DEQUANTIZE", "LOGISTIC", "LOG_SOFTMAX", "QUANTIZE", "RESHAPE", "SOFTMAX", "SQUEEZE", "TANH"}
)
BIAS_POSITION = 2
MIN_SAMPLES, MAX_SAMPLES = 16, 64
MACS_BUDGET = 1e10  # of all samples that a model runs
INT32_LIMITS = np.iinfo(np.int32)


@final
@dataclass(frozen=True)
class _LastLayer:
    """An integer layer behind which an output follows, its bias, and the tensor of the float model that it computes."""

    output: Tensor
    bias: Tensor
    float_tensor: Tensor


@final
class OutputBiasCorrection:
    """Corrects integer models of one float model; what the float model computes is measured once."""

    def __init__(self, float_model: Model, feeds: list[Array]) -> None:
        """Take the float model, decomposed, and the samples of each input, in order, that calibrated it."""
        count = min(max(int(MACS_BUDGET / max(float_model.macs, 1)), MIN_SAMPLES), MAX_SAMPLES)
        self.float_model, self.feeds = float_model, [feed[:count] for feed in feeds]
        self._float_means: dict[str, Array] = {}  # by tensor name

    def apply(self, integer_model: IntegerModel) -> bytes:
        """The bytes of the model with corrected biases; as it is if there are too few samples or no such layers."""
        if not self.feeds or len(self.feeds[0]) < MIN_SAMPLES:
            return integer_model.content
        with temporary_tflite(integer_model.content) as path:
            model = read(path)
            layers = list(self._find_last_layers(model, integer_model.name_by_float_tensor))
            if not layers:
                return integer_model.content
            means = self._measure_means(model, [layer.output for layer in layers])
        float_means = self._lookup_float_means([layer.float_tensor for layer in layers])
        errors = [mean - float_mean for mean, float_mean in zip(means, float_means, strict=True)]
        return _subtract_errors(integer_model.content, [layer.bias for layer in layers], errors)

    def _find_last_layers(self, model: Model, name_by_float_tensor: Mapping[str, str]) -> Iterator[_LastLayer]:
        float_tensor_by_name = {tensor.name: tensor for tensor in self.float_model.tensors}
        float_name_by_name = {name: float_name for float_name, name in name_by_float_tensor.items()}
        seen_biases: set[int] = set()
        for output in model.outputs:
            operator = _find_last_linear(model, output)
            layer_output, bias = (None, None) if operator is None else (operator.outputs[0], _own_bias(model, operator))
            if layer_output is None or bias is None or bias.index in seen_biases:
                continue
            float_tensor = float_tensor_by_name.get(float_name_by_name.get(layer_output.name, ""))
            if float_tensor is not None and float_tensor.shape == layer_output.shape:
                seen_biases.add(bias.index)
                yield _LastLayer(layer_output, bias, float_tensor)

    def _lookup_float_means(self, tensors: list[Tensor]) -> list[Array]:
        new_tensors = [tensor for tensor in tensors if tensor.name not in self._float_means]
        if new_tensors:
            means = self._measure_means(self.float_model, new_tensors)
            self._float_means |= {tensor.name: mean for tensor, mean in zip(new_tensors, means, strict=True)}
        return [self._float_means[tensor.name] for tensor in tensors]

    def _measure_means(self, model: Model, tensors: list[Tensor]) -> list[Array]:
        """The mean of each channel (the last axis) over the samples and all other axes, in real numbers."""
        samples = dict(zip(model.inputs_by_name, self.feeds, strict=True))
        means_by_sample = [
            [_channel_means(dequantize_array(array, tensor)) for array, tensor in zip(record, tensors, strict=True)]
            for record in record_tensors(model, samples, tensors, Runtime.BUILTIN)
        ]
        return [np.mean(means, axis=0) for means in zip(*means_by_sample, strict=True)]


def _channel_means(array: Array) -> Array:
    means: Array = array.astype(np.float64).reshape(-1, array.shape[-1]).mean(axis=0)
    return means


def _find_last_linear(model: Model, output: Tensor) -> Operator | None:
    """The int8 layer without an activation that computes an output, through operators that are transparent."""
    operator = model.producer_by_key.get(output.key)
    while operator is not None and operator.name in TRANSPARENT_OPERATORS:
        source = operator.input(0)
        operator = None if source is None else model.producer_by_key.get(source.key)
    if operator is None or operator.name not in LINEAR_OPERATORS:
        return None
    layer_output = operator.outputs[0]
    is_int8 = layer_output is not None and layer_output.dtype == "int8" and len(layer_output.shape) > 0
    return operator if is_int8 and not operator.options.get("fusedActivationFunction") else None


def _own_bias(model: Model, operator: Operator) -> Tensor | None:
    """The bias of a layer if it is constant and no other operator reads it."""
    bias = operator.input(BIAS_POSITION)
    if bias is None or not bias.is_constant or bias.dtype != "int32" or bias.quantization is None:
        return None
    read_keys = [tensor.key for each in model.operators for tensor in each.inputs if tensor is not None]
    return bias if read_keys.count(bias.key) == 1 else None


def _subtract_errors(content: bytes, biases: list[Tensor], errors: list[Array]) -> bytes:
    corrected_content = bytearray(content)
    for bias, error in zip(biases, errors, strict=True):
        assert bias.quantization is not None, "only quantized biases are corrected"
        start, length = bias.byte_extent
        codes = np.frombuffer(content, np.int32, length // 4, start).astype(np.int64)
        corrected_codes = codes - np.rint(error / np.asarray(bias.quantization.scales)).astype(np.int64)
        clipped_codes = np.clip(corrected_codes, INT32_LIMITS.min, INT32_LIMITS.max).astype(np.int32)
        corrected_content[start : start + length] = clipped_codes.tobytes()
    return bytes(corrected_content)
