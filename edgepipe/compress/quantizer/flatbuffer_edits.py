"""Small edits of a .tflite flatbuffer: operator codes, output types, the final activation, a canonical order."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgepipe.compress.quantizer.operator_codes import builtin_code, stamp_versions
from edgepipe.core.artifact import wrap_storage_errors

# Objects of TensorFlow's `schema_py_generated`, which carries no types.
FlatbufferModel = Any  # ModelT
FlatbufferSubgraph = Any  # SubGraphT
FlatbufferOperator = Any  # OperatorT
FlatbufferTensor = Any  # TensorT

INSIDE_SUFFIX = "_inside"  # of a tensor whose name an input or output took over


def unpack_model(content: bytes) -> FlatbufferModel:
    """The flatbuffer as schema objects."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(bytearray(content))


def pack_model(model: FlatbufferModel) -> bytes:
    """The bytes of schema objects, whose operators get the versions that their tensors demand."""
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    stamp_versions(model)
    return bytes(convert_object_to_bytearray(model))


@contextmanager
def temporary_tflite(content: bytes, name: str = "model.tflite") -> Iterator[Path]:
    """A file with `content` that exists inside the block only."""
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        path = Path(folder) / name
        with wrap_storage_errors(str(path)):
            path.write_bytes(content)
        yield path


def normalize_opcodes(content: bytes) -> bytes:
    """A model whose used operator codes stand in the newer field; files from before 2020 have them in another."""
    model = unpack_model(content)
    used_code_indices = sorted({operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators})
    operator_codes = [model.operatorCodes[index] for index in used_code_indices]
    if len(operator_codes) == len(model.operatorCodes) and all(
        c.builtinCode >= c.deprecatedBuiltinCode for c in operator_codes
    ):
        return content
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        operator.opcodeIndex = used_code_indices.index(operator.opcodeIndex)
    for code in operator_codes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    model.operatorCodes = operator_codes
    return pack_model(model)


def strip_output_activation(content: bytes) -> bytes:
    """A model that outputs logits: a final SOFTMAX or LOGISTIC, whose output nothing reads, is removed."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    model = unpack_model(content)
    main_subgraph, activation_codes = model.subgraphs[0], (BuiltinOperator.SOFTMAX, BuiltinOperator.LOGISTIC)
    read_indices = {int(index) for operator in main_subgraph.operators for index in operator.inputs}
    unread_output_indices = {int(index) for index in main_subgraph.outputs} - read_indices
    logits_index_by_output = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in main_subgraph.operators
        if builtin_code(model, operator) in activation_codes and int(operator.outputs[0]) in unread_output_indices
    }
    if not logits_index_by_output:
        return content
    main_subgraph.operators = [
        operator for operator in main_subgraph.operators if int(operator.outputs[0]) not in logits_index_by_output
    ]
    main_subgraph.outputs = [logits_index_by_output.get(int(index), int(index)) for index in main_subgraph.outputs]
    for tensor_map in (entry for signature in model.signatureDefs or [] for entry in signature.outputs):
        tensor_map.tensorIndex = logits_index_by_output.get(int(tensor_map.tensorIndex), int(tensor_map.tensorIndex))
    return normalize_opcodes(pack_model(model))


def canonicalize(model: FlatbufferModel) -> FlatbufferModel:
    """The model without unread DEQUANTIZE operators, tensors and buffers in the order of their first use.

    Unused entries are dropped, so that equal models have equal bytes, however they were built.
    """
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    main_subgraph = model.subgraphs[0]
    read_indices = {
        int(index)
        for indices in (main_subgraph.outputs, *(operator.inputs for operator in main_subgraph.operators))
        for index in indices
    }
    main_subgraph.operators = [
        operator
        for operator in main_subgraph.operators
        if builtin_code(model, operator) != BuiltinOperator.DEQUANTIZE or int(operator.outputs[0]) in read_indices
    ]
    _order_tensors(model, main_subgraph)
    _order_buffers(model)
    return model


def _as_ints(indices: Any) -> list[int]:
    return [] if indices is None else [int(index) for index in indices]


def _order_tensors(model: FlatbufferModel, subgraph: FlatbufferSubgraph) -> None:
    index_lists = [indices for op in subgraph.operators for indices in (op.inputs, op.outputs, op.intermediates)]
    used_tensor_indices = dict.fromkeys(
        index
        for indices in (subgraph.inputs, *index_lists, subgraph.outputs)
        for index in _as_ints(indices)
        if index >= 0
    )
    new_index_by_old = {-1: -1, **{index: position for position, index in enumerate(used_tensor_indices)}}
    subgraph.tensors = [subgraph.tensors[index] for index in used_tensor_indices]
    for tensor in subgraph.tensors:
        tensor.hasRank = True  # TensorFlow's quantizer sets it for some scalars, but not every time
    for index_holder in (subgraph, *subgraph.operators):
        index_holder.inputs, index_holder.outputs = (
            [new_index_by_old[i] for i in _as_ints(indices)] for indices in (index_holder.inputs, index_holder.outputs)
        )
    for operator in subgraph.operators:
        if operator.intermediates is not None:
            operator.intermediates = [new_index_by_old[index] for index in _as_ints(operator.intermediates)]
    for signature in model.signatureDefs or []:
        for tensor_map in (*signature.inputs, *signature.outputs):
            tensor_map.tensorIndex = new_index_by_old[int(tensor_map.tensorIndex)]


def _order_buffers(model: FlatbufferModel) -> None:
    """Buffers in the order of their first use; the format demands an empty first buffer."""
    buffer_holders = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or [])]
    used_buffer_indices = list(dict.fromkeys([0, *(holder.buffer for holder in buffer_holders)]))
    model.buffers = [model.buffers[index] for index in used_buffer_indices]
    new_index_by_old = {index: position for position, index in enumerate(used_buffer_indices)}
    for holder in buffer_holders:
        holder.buffer = new_index_by_old[holder.buffer]
