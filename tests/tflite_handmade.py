"""Writes small .tflite files by hand, through the schema, for what a converter would not make."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema


@dataclass
class T:
    """A tensor to write: with `data` it is a constant."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "int8"
    data: np.ndarray | bytes | None = None
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0
    variable: bool = False
    signature: tuple[int, ...] = ()


@dataclass
class Op:
    """An operator to write: inputs and outputs by tensor name, None for an absent input."""

    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    options: Any = None
    custom: str | None = None
    version: int = 1
    fields: dict[str, Any] = field(default_factory=dict)
    custom_options: bytes = b""


@dataclass
class Graph:
    """A subgraph to write."""

    tensors: list[T]
    ops: list[Op]
    inputs: list[str]
    outputs: list[str]


def write(path: Path, tensors: list[T], ops: list[Op], inputs: list[str], outputs: list[str]) -> Path:
    """Write one subgraph to `path`."""
    return write_graphs(path, [Graph(tensors, ops, inputs, outputs)])


def write_graphs(path: Path, graphs: list[Graph], metadata: dict[str, bytes] | None = None) -> Path:
    """Write several subgraphs to `path`, the main one first."""
    model = schema.ModelT()
    model.version, model.description = 3, "by hand"
    model.buffers = [schema.BufferT()]
    model.operatorCodes = []
    model.subgraphs = [_graph(graph, model) for graph in graphs]
    if metadata is not None:
        model.metadata = [_metadata(name, content, model.buffers) for name, content in metadata.items()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _graph(graph: Graph, model: Any) -> Any:
    index = {tensor.name: place for place, tensor in enumerate(graph.tensors)}
    made, codes = schema.SubGraphT(), len(model.operatorCodes)
    made.tensors = [_tensor(tensor, model.buffers) for tensor in graph.tensors]
    made.inputs, made.outputs = [index[name] for name in graph.inputs], [index[name] for name in graph.outputs]
    made.operators = [_operator(codes + place, op, index) for place, op in enumerate(graph.ops)]
    model.operatorCodes += [_code(op) for op in graph.ops]
    return made


def _metadata(name: str, content: bytes, buffers: list[Any]) -> Any:
    made, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    buffers.append(buffer)
    made.name, made.buffer = name, len(buffers) - 1
    return made


def _tensor(tensor: T, buffers: list[Any]) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.isVariable = tensor.name, list(tensor.shape), tensor.variable
    made.type = getattr(schema.TensorType, tensor.dtype.upper())
    made.shapeSignature = list(tensor.signature) or None
    if tensor.data is not None:
        data = tensor.data if isinstance(tensor.data, bytes) else np.asarray(tensor.data).tobytes()
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        buffers.append(buffer)
        made.buffer = len(buffers) - 1
    if tensor.scales:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = list(tensor.scales)
        made.quantization.zeroPoint = list(tensor.zero_points or (0,) * len(tensor.scales))
        made.quantization.quantizedDimension = tensor.axis
    return made


def _code(op: Op) -> Any:
    code = schema.OperatorCodeT()
    code.version = op.version
    code.builtinCode = schema.BuiltinOperator.CUSTOM if op.custom else getattr(schema.BuiltinOperator, op.name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.customCode = op.custom
    return code


def _operator(place: int, op: Op, index: dict[str, int]) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = place
    made.inputs = [-1 if name is None else index[name] for name in op.inputs]
    made.outputs = [index[name] for name in op.outputs]
    if op.custom_options:
        made.customOptions = np.frombuffer(op.custom_options, np.uint8)
    if op.options is not None:
        kind = type(op.options).__name__.removesuffix("T")
        made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        made.builtinOptions = op.options
    return made
