"""Float models reconstructed from published int8 models: real architectures with trained weights to quantize."""

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.schema_py_generated import BuiltinOperator, TensorType
from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray, read_model

TYPE_CONVERSION_OPS = {BuiltinOperator.QUANTIZE, BuiltinOperator.DEQUANTIZE}
NUMPY_TYPES = {TensorType.INT8: np.int8, TensorType.UINT8: np.uint8, TensorType.INT32: np.int32}
MAX_SHARED_ELEMENTS = 64  # elements of a constant that several tensors may share


def dequantize_tflite(path: Path) -> bytes:
    """The int8 model at `path` in float: constants dequantized, activations float32, no QUANTIZE or DEQUANTIZE."""
    model = read_model(str(path))
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            _dequantize_tensor(model, tensor)
        _remove_conversion_ops(model, graph)
    model.signatureDefs = []
    return bytes(convert_object_to_bytearray(model))


def _dequantize_tensor(model: Any, tensor: Any) -> None:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return
    buffer_data = model.buffers[tensor.buffer].data
    if buffer_data is not None and len(buffer_data):
        codes = np.frombuffer(bytes(bytearray(buffer_data)), NUMPY_TYPES[tensor.type]).reshape(tensor.shape)
        float_array = _dequantize_array(codes, quantization).astype(np.float32)
        model.buffers.append(type(model.buffers[0])())
        model.buffers[-1].data = np.frombuffer(float_array.tobytes(), np.uint8)
        model.buffers[tensor.buffer].data = None if codes.size > MAX_SHARED_ELEMENTS else buffer_data
        tensor.buffer = len(model.buffers) - 1
    tensor.type, tensor.quantization = TensorType.FLOAT32, None


def _dequantize_array(codes: Any, quantization: Any) -> Any:
    scale, zero_point = np.asarray(quantization.scale, np.float64), np.asarray(quantization.zeroPoint, np.float64)
    if len(scale) > 1:
        shape = [-1 if axis == quantization.quantizedDimension else 1 for axis in range(codes.ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return (codes - zero_point) * scale


def _remove_conversion_ops(model: Any, graph: Any) -> None:
    replacements: dict[int, int] = {}
    remaining_operators = []
    for operator in graph.operators:
        operator.inputs = np.array([replacements.get(index, index) for index in operator.inputs], np.int32)
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) in TYPE_CONVERSION_OPS:
            replacements[int(operator.outputs[0])] = int(operator.inputs[0])
        else:
            remaining_operators.append(operator)
    graph.operators = remaining_operators
    graph.outputs = np.array([replacements.get(index, index) for index in graph.outputs], np.int32)
