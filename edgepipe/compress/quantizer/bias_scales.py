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
from edgepipe.tflite.operator_facts import OPERATORS

MAX_BIAS = 2.0**30  # of a stored bias; sums are added to it in 32 bits


def widen_bias_scales(content: bytes, float_content: bytes) -> tuple[bytes, list[str]]:
    """The quantized model `content` with every bias of `float_content` in range, and the fixed operators by output."""
    model, float_model = flatbuffer_edits.unpack_model(content), flatbuffer_edits.unpack_model(float_content)
    source_by_output = {_output_name(float_model, op): op for op in float_model.subgraphs[0].operators}
    widened_outputs = []
    for operator, layout in _biased_operators(model):
        name = _output_name(model, operator)
        if name in source_by_output and _widen_scales(
            model, operator, layout, _float_constants(float_model, source_by_output[name], layout)
        ):
            widened_outputs.append(name)
    return (flatbuffer_edits.pack_model(model) if widened_outputs else content), widened_outputs


def _biased_operators(model: FlatbufferModel) -> Iterator[tuple[FlatbufferOperator, tuple[int, int, int]]]:
    """The operators of the main subgraph with weights and bias, each with (weight input, bias input, channel axis)."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    layout_by_code = {
        getattr(BuiltinOperator, name): (1, facts.filters.bias_input, facts.filters.axis)
        for name, facts in OPERATORS.items()
        if facts.filters is not None
    }
    for operator in model.subgraphs[0].operators:
        layout = layout_by_code.get(flatbuffer_edits.builtin_code(model, operator))
        if layout is not None and len(operator.inputs) > layout[1] and operator.inputs[layout[1]] >= 0:
            yield operator, layout


def _widen_scales(
    model: FlatbufferModel,
    operator: FlatbufferOperator,
    layout: tuple[int, int, int],
    float_constants: tuple[Array, Array],
) -> bool:
    """Widen the weight scales of channels whose bias is out of range; True if there were any."""
    tensors = model.subgraphs[0].tensors
    input_tensor, kernel, bias = (
        tensors[operator.inputs[position]] for position in (_input_position(layout), *layout[:2])
    )
    scales, input_scales = _scales(kernel), _scales(input_tensor)
    if scales is None or input_scales is None or _scales(bias) is None:
        return False
    input_scale = float(input_scales[0])
    weights, float_bias = float_constants
    min_scales = np.abs(float_bias.astype(np.float64)) / (input_scale * MAX_BIAS)
    small_scales = np.broadcast_to(scales, min_scales.shape) < min_scales
    if not small_scales.any() or len(scales) != float_bias.size:
        return False
    widened_scales = np.where(small_scales, min_scales, scales)
    kernel.quantization.scale = widened_scales.astype(np.float32)
    bias.quantization.scale = (widened_scales * input_scale).astype(np.float32)
    _write_buffer(model, kernel, _quantize_weights(weights, widened_scales, layout[2]), np.int8)
    bias_dtype = np.int64 if _bytes_per_element(model, bias, float_bias.size) == 8 else np.int32
    _write_buffer(model, bias, np.rint(float_bias / (bias.quantization.scale.astype(np.float64))), bias_dtype)
    return True


def _input_position(layout: tuple[int, int, int]) -> int:
    return 2 if layout[1] == 3 else 0  # a transposed convolution takes its output's shape first


def _scales(tensor: FlatbufferTensor) -> Array | None:
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


def _bytes_per_element(model: FlatbufferModel, tensor: FlatbufferTensor, elements: int) -> int:
    return len(model.buffers[tensor.buffer].data) // elements


def _float_constants(
    model: FlatbufferModel, operator: FlatbufferOperator, layout: tuple[int, int, int]
) -> tuple[Array, Array]:
    """The float weights and bias of an operator."""
    tensors = [model.subgraphs[0].tensors[operator.inputs[position]] for position in layout[:2]]
    arrays = [np.frombuffer(bytes(bytearray(model.buffers[t.buffer].data)), np.float32) for t in tensors]
    return arrays[0].reshape(tensors[0].shape), arrays[1]


def _output_name(model: FlatbufferModel, operator: FlatbufferOperator) -> str:
    return str(model.subgraphs[0].tensors[operator.outputs[0]].name.decode())
