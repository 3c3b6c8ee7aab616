"""Operator codes of a flatbuffer: which builtin operator each one is, and in which version.

While a graph is edited, operators of a kind share a code; the versions that their tensors demand are stamped when the
model is packed, so that nothing that edits a graph has to know them.
"""

from collections.abc import Mapping
from typing import Any

from edgepipe.tflite.minimum_runtimes import minimum_runtime
from edgepipe.tflite.model import Operator, OptionValue, Quantization, Tensor
from edgepipe.tflite.operator_versions import required_version
from edgepipe.tflite.reader import builtin_name_by_code, dtype_by_code

MINIMUM_RUNTIME_ENTRY = "min_runtime_version"  # of the metadata, as TensorFlow's converter calls it
MINIMUM_RUNTIME_BYTES = 16
MAX_DEPRECATED_CODE = 127  # of the field that files from before 2020 have; larger codes store this number there


def builtin_code(model: Any, operator: Any) -> int:
    """The builtin operator's number; files from before 2020 store it in another field."""
    return _code_number(model.operatorCodes[operator.opcodeIndex])


def ensure_code(model: Any, kind: str, version: int | None = None) -> int:
    """The index of the operator code of a kind, which is added if it is missing; None: of any version."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

    number = getattr(BuiltinOperator, kind)
    for index, code in enumerate(model.operatorCodes):
        if _code_number(code) == number and version in (None, code.version):
            return index
    code = OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, MAX_DEPRECATED_CODE), version or 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def stamp_versions(model: Any) -> None:
    """Give every operator the version that its tensors demand, and say which release has them all.

    Operators without a rule keep the version that they have.
    """
    for subgraph in model.subgraphs:
        tensors = [_tensor_facts(tensor) for tensor in subgraph.tensors]
        for operator in subgraph.operators:
            version = required_version(_operator_facts(model, operator, tensors))
            if version is not None:
                operator.opcodeIndex = ensure_code(model, _kind(model, operator), version)
    _finish_codes(model)


def with_versions(content: bytes, version_by_operator: Mapping[tuple[int, int], int]) -> bytes:
    """The model with these versions of operators, by subgraph and index, whatever their tensors demand."""
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray, read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(content))
    for (subgraph, index), version in version_by_operator.items():
        operator = model.subgraphs[subgraph].operators[index]
        operator.opcodeIndex = ensure_code(model, _kind(model, operator), version)
    _finish_codes(model)
    return bytes(convert_object_to_bytearray(model))


def _finish_codes(model: Any) -> None:
    """Drop the codes that are not used, and say which release has the others."""
    _drop_unused_codes(model)
    versions = [(builtin_name_by_code().get(_code_number(code), ""), int(code.version)) for code in model.operatorCodes]
    _write_minimum_runtime(model, minimum_runtime(versions))


def _code_number(code: Any) -> int:
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _kind(model: Any, operator: Any) -> str:
    return builtin_name_by_code().get(builtin_code(model, operator), "")


def _operator_facts(model: Any, operator: Any, tensors: list[Tensor]) -> Operator:
    inputs, outputs = (
        tuple(None if index < 0 else tensors[index] for index in ([] if indices is None else indices))
        for indices in (operator.inputs, operator.outputs)
    )
    kind = _kind(model, operator)
    return Operator(0, 0, kind, inputs, outputs, 0, is_custom=kind == "CUSTOM", options=_options(operator))


def _options(operator: Any) -> dict[str, OptionValue]:
    return {} if operator.builtinOptions is None else vars(operator.builtinOptions)


def _tensor_facts(tensor: Any) -> Tensor:
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    quantization = tensor.quantization
    has_scale = quantization is not None and quantization.scale is not None and len(quantization.scale) > 0
    return Tensor(
        index=0,
        subgraph_index=0,
        name="",
        shape=shape,
        dtype=dtype_by_code()[int(tensor.type)],
        is_constant=False,
        bytes=0,
        quantization=Quantization(tuple(map(float, quantization.scale)), (), quantization.quantizedDimension)
        if has_scale
        else None,
        is_sparse=tensor.sparsity is not None,
    )


def _drop_unused_codes(model: Any) -> None:
    """Codes in the order of their first use."""
    operators = [operator for subgraph in model.subgraphs for operator in subgraph.operators]
    code_indices = list(dict.fromkeys(operator.opcodeIndex for operator in operators))
    model.operatorCodes = [model.operatorCodes[index] for index in code_indices]
    for operator in operators:
        operator.opcodeIndex = code_indices.index(operator.opcodeIndex)


def _write_minimum_runtime(model: Any, release: str) -> None:
    import numpy as np

    content = np.frombuffer(release.encode().ljust(MINIMUM_RUNTIME_BYTES, b"\0"), np.uint8)
    entry = next((entry for entry in model.metadata or [] if entry.name == MINIMUM_RUNTIME_ENTRY.encode()), None)
    model.buffers[_add_entry(model) if entry is None else entry.buffer].data = content


def _add_entry(model: Any) -> int:
    """Add the entry and its buffer; the buffer's index."""
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT

    entry = MetadataT()
    entry.name, entry.buffer = MINIMUM_RUNTIME_ENTRY.encode(), len(model.buffers)
    model.buffers.append(BufferT())
    model.metadata = [*(model.metadata or []), entry]
    return len(model.buffers) - 1
