"""Small changes of a .tflite as a flatbuffer: where operator codes stand, what is there, where the model ends."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def opened(content: bytes) -> Any:
    """The flatbuffer as objects of the schema."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(bytearray(content))


def closed(model: Any) -> bytes:
    """The bytes of such objects."""
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    return bytes(convert_object_to_bytearray(model))


@contextmanager
def written(content: bytes, name: str = "model.tflite") -> Iterator[Path]:
    """A file with `content`, inside the block."""
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def kind(model: Any, operator: Any) -> int:
    """The builtin operator's number; files of before 2020 have it in another field."""
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def plain(content: bytes) -> bytes:
    """A model whose operator codes both quantizers read: litert-quantizer looks for them in the newer field only, and
    TensorFlow's looks all of them up, also one that no operator has."""
    model = opened(content)
    used = sorted({operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators})
    codes = [model.operatorCodes[index] for index in used]
    if len(codes) == len(model.operatorCodes) and all(c.builtinCode >= c.deprecatedBuiltinCode for c in codes):
        return content
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        operator.opcodeIndex = used.index(operator.opcodeIndex)
    for code in codes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    model.operatorCodes = codes
    return closed(model)


def alike(content: bytes) -> bytes:
    """A quantized model whose operators with several outputs (SPLIT, UNPACK) give all of them in one type:
    litert-quantizer leaves those that nothing reads in float, and some runtimes refuse that."""
    from ai_edge_litert.schema_py_generated import TensorType

    model, changed = opened(content), False
    for graph in model.subgraphs:
        read = {int(index) for of in (graph.outputs, *(op.inputs for op in graph.operators or [])) for index in of}
        for operator in graph.operators or []:
            outputs = {int(index): graph.tensors[index] for index in operator.outputs}
            whole = [tensor for tensor in outputs.values() if tensor.type in (TensorType.INT8, TensorType.INT16)]
            idle = [t for index, t in outputs.items() if index not in read and t.type == TensorType.FLOAT32]
            for tensor in idle if whole else []:
                tensor.type, tensor.quantization, changed = whole[0].type, whole[0].quantization, True
    return closed(model) if changed else content


def without_head(content: bytes) -> bytes:
    """A model whose outputs are those that a SOFTMAX or LOGISTIC is given whose result nothing reads."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    model = opened(content)
    graph, heads = model.subgraphs[0], (BuiltinOperator.SOFTMAX, BuiltinOperator.LOGISTIC)
    read = {int(index) for operator in graph.operators for index in operator.inputs}
    outputs = {int(index) for index in graph.outputs} - read
    ends = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in graph.operators
        if kind(model, operator) in heads and int(operator.outputs[0]) in outputs
    }
    if not ends:
        return content
    graph.operators = [operator for operator in graph.operators if int(operator.outputs[0]) not in ends]
    graph.outputs = [ends.get(int(index), int(index)) for index in graph.outputs]
    model.signatureDefs = []
    return plain(closed(model))


def tidy(model: Any) -> Any:
    """The model without DEQUANTIZE operators whose result nothing reads, all else in the order of its first use.

    What nothing names is dropped, so that a model is the same bytes however it came about.
    """
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    graph = model.subgraphs[0]
    read = {int(index) for of in (graph.outputs, *(operator.inputs for operator in graph.operators)) for index in of}
    graph.operators = [
        operator
        for operator in graph.operators
        if kind(model, operator) != BuiltinOperator.DEQUANTIZE or int(operator.outputs[0]) in read
    ]
    _order_tensors(model, graph)
    _order_buffers(model)
    operators = [operator for each in model.subgraphs for operator in each.operators]
    codes = list(dict.fromkeys(operator.opcodeIndex for operator in operators))
    model.operatorCodes = [model.operatorCodes[index] for index in codes]
    for operator in operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    return model


def _of(indices: Any) -> list[int]:
    return [] if indices is None else [int(index) for index in indices]


def _order_tensors(model: Any, graph: Any) -> None:
    parts = [part for op in graph.operators for part in (op.inputs, op.outputs, op.intermediates)]
    named = dict.fromkeys(index for part in (graph.inputs, *parts, graph.outputs) for index in _of(part) if index >= 0)
    new = {-1: -1, **{index: place for place, index in enumerate(named)}}
    graph.tensors = [graph.tensors[index] for index in named]
    for tensor in graph.tensors:
        tensor.hasRank = True  # TensorFlow's quantizer says so of some scalars, sometimes
    for holder in (graph, *graph.operators):
        holder.inputs, holder.outputs = ([new[i] for i in _of(part)] for part in (holder.inputs, holder.outputs))
    for operator in graph.operators:
        if operator.intermediates is not None:
            operator.intermediates = [new[index] for index in _of(operator.intermediates)]
    for signature in model.signatureDefs or []:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = new[int(entry.tensorIndex)]


def _order_buffers(model: Any) -> None:
    """The first buffer is empty, by the format."""
    holders = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or [])]
    named = list(dict.fromkeys([0, *(holder.buffer for holder in holders)]))
    model.buffers = [model.buffers[index] for index in named]
    for holder in holders:
        holder.buffer = named.index(holder.buffer)
