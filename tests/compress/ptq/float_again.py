"""The float model that a published int8 model stands for: real architectures with trained weights, to quantize anew."""

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.schema_py_generated import BuiltinOperator, TensorType
from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray, read_model

PASSED = {BuiltinOperator.QUANTIZE, BuiltinOperator.DEQUANTIZE}
NUMBERS = {TensorType.INT8: np.int8, TensorType.UINT8: np.uint8, TensorType.INT32: np.int32}
SHARED = 64  # elements of a constant that several tensors may share


def float_again(path: Path) -> bytes:
    """Constants times their scales, activations as float32, without QUANTIZE and DEQUANTIZE."""
    model = read_model(str(path))
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            _released(model, tensor)
        _without_passing(model, graph)
    model.signatureDefs = []
    return bytes(convert_object_to_bytearray(model))


def _released(model: Any, tensor: Any) -> None:
    found = tensor.quantization
    if found is None or found.scale is None or not len(found.scale):
        return
    data = model.buffers[tensor.buffer].data
    if data is not None and len(data):
        values = np.frombuffer(bytes(bytearray(data)), NUMBERS[tensor.type]).reshape(tensor.shape)
        real = _dequantized(values, found).astype(np.float32)
        model.buffers.append(type(model.buffers[0])())
        model.buffers[-1].data = np.frombuffer(real.tobytes(), np.uint8)
        model.buffers[tensor.buffer].data = None if values.size > SHARED else data
        tensor.buffer = len(model.buffers) - 1
    tensor.type, tensor.quantization = TensorType.FLOAT32, None


def _dequantized(values: Any, found: Any) -> Any:
    scale, zero = np.asarray(found.scale, np.float64), np.asarray(found.zeroPoint, np.float64)
    if len(scale) > 1:
        shape = [-1 if axis == found.quantizedDimension else 1 for axis in range(values.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (values - zero) * scale


def _without_passing(model: Any, graph: Any) -> None:
    instead: dict[int, int] = {}
    kept = []
    for operator in graph.operators:
        operator.inputs = np.array([instead.get(index, index) for index in operator.inputs], np.int32)
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) in PASSED:
            instead[int(operator.outputs[0])] = int(operator.inputs[0])
        else:
            kept.append(operator)
    graph.operators = kept
    graph.outputs = np.array([instead.get(index, index) for index in graph.outputs], np.int32)
