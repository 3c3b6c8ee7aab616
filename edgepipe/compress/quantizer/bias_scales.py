"""Biases that fit into 32 bits.

A bias is stored in steps of input scale times weight scale. Where a channel's weights are tiny, or all zero after
pruning or in a dead filter, that step is tiny too, and litert-quantizer 0.11 clips the bias to 32 bits: the channel
comes out as zero, or with its sign flipped. Such a channel gets a larger weight scale: its weights lose less than one
part in 2^30 of its bias.
"""

from collections.abc import Iterator

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferModel, FlatbufferOperator, FlatbufferTensor
from edgepipe.core.arrays import Array
from edgepipe.tflite.operator_facts import TRAITS_BY_OPERATOR

MAX_BIAS = 2.0**30  # of a stored bias; sums are added to it in 32 bits


def widen_bias_scales(content: bytes, float_content: bytes) -> tuple[bytes, list[str]]:
    """The quantized model `content` with every bias of `float_content` in range, and the fixed operators by output."""
    model, float_model = flatbuffer_edits.unpack_model(content), flatbuffer_edits.unpack_model(float_content)
    float_operator_by_output = {_output_name(float_model, op): op for op in float_model.subgraphs[0].operators}
    widened_outputs = []
    for operator, parameter_layout in _biased_operators(model):
        output_name = _output_name(model, operator)
        if output_name in float_operator_by_output and _widen_scales(
            model,
            operator,
            parameter_layout,
            _float_constants(float_model, float_operator_by_output[output_name], parameter_layout),
        ):
            widened_outputs.append(output_name)
    return (flatbuffer_edits.pack_model(model) if widened_outputs else content), widened_outputs


def _biased_operators(model: FlatbufferModel) -> Iterator[tuple[FlatbufferOperator, tuple[int, int, int]]]:
    """The operators of the main subgraph with weights and bias, each with (weight input, bias input, channel axis)."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    parameter_layout_by_code = {
        getattr(BuiltinOperator, name): (1, facts.filter_layout.bias_position, facts.filter_layout.filter_axis)
        for name, facts in TRAITS_BY_OPERATOR.items()
        if facts.filter_layout is not None
    }
    for operator in model.subgraphs[0].operators:
        parameter_layout = parameter_layout_by_code.get(flatbuffer_edits.builtin_code(model, operator))
        if (
            parameter_layout is not None
            and len(operator.inputs) > parameter_layout[1]
            and operator.inputs[parameter_layout[1]] >= 0
        ):
            yield operator, parameter_layout


def _widen_scales(
    model: FlatbufferModel,
    operator: FlatbufferOperator,
    parameter_layout: tuple[int, int, int],
    float_constants: tuple[Array, Array],
) -> bool:
    """Widen the weight scales of channels whose bias is out of range; True if there were any."""
    tensors = model.subgraphs[0].tensors
    input_tensor, kernel_tensor, bias_tensor = (
        tensors[operator.inputs[position]] for position in (_input_position(parameter_layout), *parameter_layout[:2])
    )
    weight_scales, input_scales = _quantization_scales(kernel_tensor), _quantization_scales(input_tensor)
    if weight_scales is None or input_scales is None or _quantization_scales(bias_tensor) is None:
        return False
    input_scale = float(input_scales[0])
    float_weights, float_bias = float_constants
    min_scales = np.abs(float_bias.astype(np.float64)) / (input_scale * MAX_BIAS)
    small_scale_mask = np.broadcast_to(weight_scales, min_scales.shape) < min_scales
    if not small_scale_mask.any() or len(weight_scales) != float_bias.size:
        return False
    widened_scales = np.where(small_scale_mask, min_scales, weight_scales)
    kernel_tensor.quantization.scale = widened_scales.astype(np.float32)
    bias_tensor.quantization.scale = (widened_scales * input_scale).astype(np.float32)
    _write_buffer(model, kernel_tensor, _quantize_weights(float_weights, widened_scales, parameter_layout[2]), np.int8)
    bias_dtype = np.int64 if _bytes_per_element(model, bias_tensor, float_bias.size) == 8 else np.int32
    _write_buffer(
        model, bias_tensor, np.rint(float_bias / (bias_tensor.quantization.scale.astype(np.float64))), bias_dtype
    )
    return True


def _input_position(parameter_layout: tuple[int, int, int]) -> int:
    return 2 if parameter_layout[1] == 3 else 0  # a transposed convolution takes its output's shape first


def _quantization_scales(tensor: FlatbufferTensor) -> Array | None:
    quantization = tensor.quantization
    return (
        None
        if quantization is None or quantization.scale is None or not len(quantization.scale)
        else np.asarray(quantization.scale, np.float64)
    )


def _quantize_weights(weights: Array, scales: Array, axis: int) -> Array:
    shape = [-1 if dim == axis else 1 for dim in range(weights.ndim)]
    return np.clip(np.rint(weights / scales.reshape(shape)), -127, 127)


def _write_buffer(model: FlatbufferModel, tensor: FlatbufferTensor, codes: Array, dtype: type) -> None:
    model.buffers[tensor.buffer].data = np.frombuffer(codes.astype(dtype).tobytes(), np.uint8)


def _bytes_per_element(model: FlatbufferModel, tensor: FlatbufferTensor, element_count: int) -> int:
    return len(model.buffers[tensor.buffer].data) // element_count


def _float_constants(
    model: FlatbufferModel, operator: FlatbufferOperator, parameter_layout: tuple[int, int, int]
) -> tuple[Array, Array]:
    """The float weights and bias of an operator."""
    tensors = [model.subgraphs[0].tensors[operator.inputs[position]] for position in parameter_layout[:2]]
    arrays = [np.frombuffer(bytes(bytearray(model.buffers[t.buffer].data)), np.float32) for t in tensors]
    return arrays[0].reshape(tensors[0].shape), arrays[1]


def _output_name(model: FlatbufferModel, operator: FlatbufferOperator) -> str:
    return str(model.subgraphs[0].tensors[operator.outputs[0]].name.decode())
