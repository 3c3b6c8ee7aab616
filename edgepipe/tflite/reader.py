"""Reads the facts of a .tflite through the schema that LiteRT publishes, guarding against damaged files.

The flatbuffer is walked with the schema's accessors, never unpacked as a whole: every list length is checked
against the file size before it is read, so that a damaged one gives an `InputError` and not hours of garbage.

Schema: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs
"""

import math
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import Field

from edgepipe.core import input_files
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.tflite import macs
from edgepipe.tflite.model import (
    BITS_BY_DTYPE,
    Model,
    Operator,
    OptionValue,
    Quantization,
    Signature,
    Subgraph,
    Tensor,
)
from edgepipe.tflite.open_dimensions import find_open_sizes

__all__ = [
    *("LayerSparsity", "Model", "Operator", "Quantization", "Signature", "Subgraph", "Tensor"),
    *("read", "summarize", "weight_sparsity"),
]

T = TypeVar("T")
FILE_IDENTIFIER = b"TFL3"
MAX_TABLES = 100_000  # of one list
MAX_TENSORS = 50_000  # of all subgraphs together; the largest language models have some ten thousand ..
MAX_OPERATORS = 20_000  # .. and as many operators
MAX_SUBGRAPHS = 1000
MAX_DIMENSIONS = 32  # of one tensor; kernels take up to eight
MAX_ARGUMENTS = 4096  # inputs, and outputs, of one operator ..
MAX_ALL_ARGUMENTS = 10 * MAX_OPERATORS  # .. and of all together
MAX_NAME_BYTES = 65_536  # the converter joins the names of fused operators
MAX_ELEMENTS = 2**56  # of one tensor
MAX_SHARING_FACTOR = 64  # how many times the size of the file its constants may take together: subgraphs share them
_DAMAGE_ERRORS = (
    struct.error,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    AssertionError,
)


class LayerSparsity(Record):
    """How many weights of one layer are exactly zero inside the file."""

    operator: str = Field(description="the operator's name and index")
    tensor: str
    kind: str = Field(description="CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED or TRANSPOSE_CONV")
    elements: int
    zeros: int

    @property
    def share(self) -> float:
        """zeros / elements, a fraction."""
        return self.zeros / self.elements if self.elements else 0.0


class ModelSummary(Record):
    """The counts of a model, as a report stores them."""

    bytes: int
    description: str
    operators: dict[str, int]
    dtypes: dict[str, int]
    macs: int
    uncounted: tuple[str, ...] = Field(description="operators whose multiply-accumulates are not in `macs`")
    parameters: int
    zero_parameters: int
    unreadable: tuple[str, ...] = Field(description="parameter tensors left out of `zero_parameters`")
    inputs: dict[str, str] = Field(description="for example `int8 (1, 8, 8, 1)`, by name")
    outputs: dict[str, str]


def read(path: Path) -> Model:
    """The facts of the .tflite at `path`.

    Raises:
        InputError: the file is missing, empty, not a .tflite, truncated or damaged; the message says which.
    """
    content = _read_content(path)
    try:
        model = _ModelReader(path, content).read_model()
        return replace(model, open_sizes=find_open_sizes(model))
    except _DamageError as error:
        raise InputError(f"{path}: damaged .tflite: {error}; convert the model or download the file again") from None
    except _LimitError as error:
        raise InputError(f"{path}: edgepipe does not read a .tflite with {error}") from None
    except _DAMAGE_ERRORS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: damaged or truncated .tflite ({len(content)} bytes): {reason}") from None


def summarize(model: Model) -> ModelSummary:
    """The counts of `model`, ready for a report."""
    return ModelSummary(
        bytes=model.bytes,
        description=model.description,
        operators=dict(model.operator_counts),
        dtypes=dict(model.dtype_counts),
        macs=model.macs,
        uncounted=model.uncounted_operator_names,
        parameters=model.parameters,
        zero_parameters=model.zero_parameters,
        unreadable=tuple(tensor.name for tensor in model.unreadable_tensors),
        inputs={name: f"{tensor.dtype} {tensor.shape}" for name, tensor in model.inputs_by_name.items()},
        outputs={name: f"{tensor.dtype} {tensor.shape}" for name, tensor in model.outputs_by_name.items()},
    )


def weight_sparsity(model: Model) -> list[LayerSparsity]:
    """The share of exactly-zero weights of each convolution and dense layer, in order of execution.

    Weights that are not constants (computed by another operator) have no share and are left out; float16 weights behind
    a DEQUANTIZE are followed to their constant.

    Raises:
        InputError: weights are stored in a way that edgepipe cannot decode.
    """
    layer_sparsities = []
    for operator in model.operators:
        weights = model.find_constant(operator.input(1)) if operator.traits.reports_sparsity else None
        if weights is not None:
            layer_sparsities.append(_measure_layer_sparsity(model, operator, weights))
    return layer_sparsities


def _measure_layer_sparsity(model: Model, operator: Operator, weights: Tensor) -> LayerSparsity:
    return LayerSparsity(
        operator=operator.location,
        tensor=weights.name,
        kind=operator.name,
        elements=weights.element_count,
        zeros=model.count_zeros(weights),
    )


class _DamageError(Exception):
    """Something in the file that contradicts the rest of it."""


class _LimitError(Exception):
    """More of something than a model has that is meant to run on a device."""


class _OperatorCode(NamedTuple):
    name: str
    is_custom: bool
    version: int


def _read_content(path: Path) -> bytes:
    content = input_files.read_bytes(path)
    if not content:
        raise InputError(f"{path}: the file is empty; a .tflite was expected")
    if content[4:8] != FILE_IDENTIFIER:
        first_bytes = content[:8].hex(" ")
        raise InputError(f"{path}: not a .tflite: bytes 5 to 8 must be 'TFL3', the file begins with {first_bytes}")
    return content


@cache
def dtype_by_code() -> dict[int, str]:
    """Names of the types of elements, by their codes in the schema."""
    from ai_edge_litert.schema_py_generated import TensorType

    return {code: name.lower() for name, code in vars(TensorType).items() if not name.startswith("_")}


@cache
def builtin_name_by_code() -> dict[int, str]:
    """Names of the builtin operators, by their codes in the schema."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    return {code: name for name, code in vars(BuiltinOperator).items() if not name.startswith("_")}


@dataclass
class _ModelReader:
    """One walk through one file; `elements_left` is how many more list elements an intact file may have."""

    path: Path
    content: bytes
    elements_left: int = 0
    constant_bytes_left: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # of what several subgraphs share the limit of

    def read_model(self) -> Model:
        from ai_edge_litert.schema_py_generated import Model as Root

        # Every element takes at least a byte; strings and lists may be shared, so some slack.
        self.elements_left = 2 * len(self.content) + 4096
        self.constant_bytes_left = MAX_SHARING_FACTOR * len(self.content)
        root_table = Root.GetRootAs(self.content, 0)
        if root_table.SubgraphsLength() == 0:
            raise _DamageError("it holds no subgraph")
        operator_codes = self.read_tables(
            root_table.OperatorCodesLength(), root_table.OperatorCodes, self.read_operator_code
        )
        byte_extents = self.read_tables(root_table.BuffersLength(), root_table.Buffers, self.read_extent)
        metadata = dict(
            self.read_tables(
                root_table.MetadataLength(), root_table.Metadata, lambda table: self.read_metadata(table, byte_extents)
            )
        )
        self.count("subgraphs", root_table.SubgraphsLength(), MAX_SUBGRAPHS)
        subgraph_tables = self.read_tables(root_table.SubgraphsLength(), root_table.Subgraphs, lambda graph: graph)
        subgraphs = tuple(
            self.read_subgraph(index, graph, operator_codes, byte_extents)
            for index, graph in enumerate(subgraph_tables)
        )
        tensors_by_subgraph = [graph.tensors for graph in subgraphs]
        return Model(
            path=self.path,
            bytes=len(self.content),
            description=self.read_text(root_table.Description()),
            operators=tuple(operator for graph in subgraphs for operator in graph.operators),
            tensors=tuple(tensor for graph_tensors in tensors_by_subgraph for tensor in graph_tensors),
            inputs=subgraphs[0].inputs,
            outputs=subgraphs[0].outputs,
            signatures=self.read_tables(
                root_table.SignatureDefsLength(),
                root_table.SignatureDefs,
                lambda table: self.read_signature(table, tensors_by_subgraph),
            ),
            content=self.content,
            subgraphs=subgraphs,
            metadata=metadata,
        )

    def read_metadata(self, table: Any, byte_extents: tuple[tuple[int, int], ...]) -> tuple[str, bytes]:
        name = self.read_name(table.Name())
        if table.Buffer() >= len(byte_extents):
            raise _DamageError(f"metadata '{name}' refers to buffer {table.Buffer()} of {len(byte_extents)}")
        start, length = byte_extents[table.Buffer()]
        self.spend_elements(length)
        return name, self.content[start : start + length]

    def read_subgraph(
        self,
        index: int,
        subgraph_table: Any,
        operator_codes: tuple[_OperatorCode, ...],
        byte_extents: tuple[tuple[int, int], ...],
    ) -> Subgraph:
        tensors = self.read_tensors(index, subgraph_table, byte_extents)
        return Subgraph(
            index=index,
            name=self.read_name(subgraph_table.Name()),
            inputs=self.read_interface(subgraph_table.InputsLength(), subgraph_table.InputsAsNumpy, tensors),
            outputs=self.read_interface(subgraph_table.OutputsLength(), subgraph_table.OutputsAsNumpy, tensors),
            tensors=tensors,
            operators=self.read_operators(index, subgraph_table, operator_codes, tensors),
        )

    def count(self, what: str, length: int, limit: int) -> None:
        """Add `length` to the number of `what` in the whole file."""
        self.counts[what] += length
        if self.counts[what] > limit:
            raise _LimitError(f"more than {limit:,} {what}")

    def spend_elements(self, length: int) -> int:
        """Subtract `length` from `elements_left`."""
        if length < 0 or length > self.elements_left:
            raise _DamageError(f"a list of {length} elements in a file of {len(self.content)} bytes")
        self.elements_left -= length
        return length

    def read_tables(
        self, length: int, get_table: Callable[[int], Any], read_table: Callable[[Any], T]
    ) -> tuple[T, ...]:
        """`read_table` of every table of a list."""
        if length > MAX_TABLES:
            raise _DamageError(f"a list of {length} tables; at most {MAX_TABLES} are read")
        self.spend_elements(4 * length)
        return tuple(read_table(get_table(index)) for index in range(length))

    def read_numbers(self, length: int, as_numpy: Callable[[], Any]) -> tuple[Any, ...]:
        """A list of numbers; the schema's numpy view fails when the list leaves the file."""
        return tuple(as_numpy().tolist()) if self.spend_elements(length) else ()

    def read_text(self, encoded_text: bytes | None) -> str:
        """A string of the file; one that is not UTF-8 is a sign of damage."""
        if encoded_text is None:
            return ""
        self.spend_elements(len(encoded_text))
        return encoded_text.decode("utf-8")

    def read_name(self, encoded_name: bytes | None) -> str:
        """The name of something, which messages and tables repeat."""
        if encoded_name is not None and len(encoded_name) > MAX_NAME_BYTES:
            raise _LimitError(f"a name of {len(encoded_name):,} bytes; {MAX_NAME_BYTES:,} at most")
        return self.read_text(encoded_name)

    def read_operator_code(self, table: Any) -> _OperatorCode:
        operator_code = max(table.BuiltinCode(), table.DeprecatedBuiltinCode())
        name = builtin_name_by_code().get(operator_code)
        if name is None:
            raise _DamageError(f"operator code {operator_code} is not in the schema of this ai-edge-litert")
        custom_name = self.read_name(table.CustomCode())
        is_custom = name == "CUSTOM"
        return _OperatorCode(custom_name or "CUSTOM" if is_custom else name, is_custom, table.Version())

    def read_extent(self, table: Any) -> tuple[int, int]:
        """Start and length of a constant's bytes; models over 2 GB keep them behind the flatbuffer."""
        if table.Offset() > 1:
            start, length = table.Offset(), table.Size()
        else:
            length = table.DataLength()
            start = table._tab.Vector(table._tab.Offset(4)) if length else 0
        if start < 0 or start + length > len(self.content):
            raise _DamageError(f"constant data at {start} with {length} bytes reaches past the end of the file")
        return start, length

    def read_tensors(
        self, subgraph_index: int, subgraph_table: Any, byte_extents: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, ...]:
        self.count("tensors", subgraph_table.TensorsLength(), MAX_TENSORS)
        tables = self.read_tables(subgraph_table.TensorsLength(), subgraph_table.Tensors, lambda table: table)
        return tuple(self.read_tensor(index, subgraph_index, table, byte_extents) for index, table in enumerate(tables))

    def read_tensor(
        self, index: int, subgraph_index: int, table: Any, byte_extents: tuple[tuple[int, int], ...]
    ) -> Tensor:
        name, dtype = self.read_name(table.Name()), dtype_by_code().get(table.Type())
        if table.ShapeLength() > MAX_DIMENSIONS:
            raise _LimitError(f"{table.ShapeLength():,} dimensions of tensor '{name}'; {MAX_DIMENSIONS} at most")
        shape = self.read_numbers(table.ShapeLength(), table.ShapeAsNumpy)
        if dtype is None or any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise _DamageError(f"tensor '{name}' has type {table.Type()} and shape {_format_shape(shape)}")
        if table.Buffer() >= max(len(byte_extents), 1):
            raise _DamageError(f"tensor '{name}' refers to buffer {table.Buffer()} of {len(byte_extents)}")
        byte_extent = byte_extents[table.Buffer()] if byte_extents else (0, 0)
        byte_size, is_sparse = -(-math.prod(shape) * BITS_BY_DTYPE.get(dtype, 0) // 8), table.Sparsity() is not None
        if byte_extent[1] and dtype in BITS_BY_DTYPE and not is_sparse and byte_extent[1] != byte_size:
            raise _DamageError(
                f"tensor '{name}' of {dtype} {shape} has {byte_extent[1]} bytes of data instead of {byte_size}"
            )
        self.constant_bytes_left -= byte_extent[1]
        if self.constant_bytes_left < 0:
            raise _DamageError(
                f"its tensors share constants to more than {MAX_SHARING_FACTOR} times the size of the file"
            )
        return Tensor(
            index=index,
            subgraph_index=subgraph_index,
            name=name,
            shape=shape,
            dtype=dtype,
            is_constant=byte_extent[1] > 0,
            bytes=byte_extent[1] or byte_size,
            quantization=self.read_quantization(name, shape, table.Quantization()),
            shape_signature=self.read_numbers(table.ShapeSignatureLength(), table.ShapeSignatureAsNumpy) or shape,
            is_variable=table.IsVariable(),
            is_sparse=is_sparse,
            byte_extent=byte_extent,
        )

    def read_quantization(self, name: str, shape: tuple[int, ...], table: Any) -> Quantization | None:
        if table is None or table.ScaleLength() == 0:
            return None
        scales = self.read_numbers(table.ScaleLength(), table.ScaleAsNumpy)
        zero_points = self.read_numbers(table.ZeroPointLength(), table.ZeroPointAsNumpy) or (0,) * len(scales)
        axis = table.QuantizedDimension()
        if len(zero_points) != len(scales):
            counts_text = f"{len(scales)} scales and {len(zero_points)} zero points"
            raise _DamageError(f"tensor '{name}' of shape {shape} has {counts_text} along axis {axis}")
        if not all(math.isfinite(scale) for scale in scales):
            raise _DamageError(f"tensor '{name}' has a scale that is not finite")
        return Quantization(scales, zero_points, axis)

    def read_operators(
        self,
        subgraph_index: int,
        subgraph_table: Any,
        operator_codes: tuple[_OperatorCode, ...],
        tensors: tuple[Tensor, ...],
    ) -> tuple[Operator, ...]:
        self.count("operators", subgraph_table.OperatorsLength(), MAX_OPERATORS)
        tables = self.read_tables(subgraph_table.OperatorsLength(), subgraph_table.Operators, lambda table: table)
        return tuple(
            self.read_operator(index, subgraph_index, table, operator_codes, tensors)
            for index, table in enumerate(tables)
        )

    def read_operator(
        self,
        index: int,
        subgraph_index: int,
        table: Any,
        operator_codes: tuple[_OperatorCode, ...],
        tensors: tuple[Tensor, ...],
    ) -> Operator:
        if table.OpcodeIndex() >= len(operator_codes):
            raise _DamageError(
                f"operator {index} refers to operator code {table.OpcodeIndex()} of {len(operator_codes)}"
            )
        name, is_custom, version = operator_codes[table.OpcodeIndex()]
        argument_count = max(table.InputsLength(), table.OutputsLength())
        if argument_count > MAX_ARGUMENTS:
            raise _LimitError(f"{argument_count:,} inputs or outputs of operator {index}; {MAX_ARGUMENTS:,} at most")
        self.count("inputs and outputs of operators", table.InputsLength() + table.OutputsLength(), MAX_ALL_ARGUMENTS)
        inputs = self.pick_tensors(table.InputsLength(), table.InputsAsNumpy, tensors)
        outputs = self.pick_tensors(table.OutputsLength(), table.OutputsAsNumpy, tensors)
        self.read_numbers(table.CustomOptionsLength(), table.CustomOptionsAsNumpy)
        options = self.read_options(table)
        mac_count = macs.count(name, inputs, outputs, options)
        return Operator(index, subgraph_index, name, inputs, outputs, mac_count, is_custom, options, version)

    def read_options(self, operator_table: Any) -> dict[str, OptionValue]:
        """The fields of the operator's own option table (stride, padding, ...) as the schema names them."""
        from ai_edge_litert.schema_py_generated import BuiltinOptionsCreator

        option_table = operator_table.BuiltinOptions()
        fields = (
            vars(BuiltinOptionsCreator(operator_table.BuiltinOptionsType(), option_table) or _UNKNOWN_OPTIONS)
            if option_table
            else {}
        )
        return {name: self.read_option(value) for name, value in fields.items() if value is not None}

    def read_option(self, value: Any) -> OptionValue:
        if isinstance(value, bytes):
            return self.read_text(value)
        if isinstance(value, (bool, int, float)):
            return value
        self.spend_elements(len(value))
        return tuple(value.tolist() if hasattr(value, "tolist") else value)

    def pick_tensors(
        self, length: int, as_numpy: Callable[[], Any], tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        """Tensors by index; -1 means an optional one that is absent."""
        indices = self.read_numbers(length, as_numpy)
        for index in indices:
            if not -1 <= index < len(tensors):
                raise _DamageError(f"an operator refers to tensor {index} of {len(tensors)}")
        return tuple(None if index < 0 else tensors[index] for index in indices)

    def read_interface(
        self, length: int, as_numpy: Callable[[], Any], tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        interface_tensors = tuple(
            tensor for tensor in self.pick_tensors(length, as_numpy, tensors) if tensor is not None
        )
        if len(interface_tensors) != length:
            raise _DamageError("an input or output of the model refers to no tensor")
        return interface_tensors

    def read_signature(self, table: Any, tensors_by_subgraph: list[tuple[Tensor, ...]]) -> Signature:
        subgraph_index = table.SubgraphIndex()
        if subgraph_index >= len(tensors_by_subgraph):
            raise _DamageError(f"a signature refers to subgraph {subgraph_index} of {len(tensors_by_subgraph)}")
        inputs = dict(self.read_tables(table.InputsLength(), table.Inputs, self.read_signature_entry))
        outputs = dict(self.read_tables(table.OutputsLength(), table.Outputs, self.read_signature_entry))
        for name, index in (*inputs.items(), *outputs.items()):
            if index >= len(tensors_by_subgraph[subgraph_index]):
                raise _DamageError(
                    f"signature entry '{name}' refers to tensor {index} of {len(tensors_by_subgraph[subgraph_index])}"
                )
        return Signature(self.read_name(table.SignatureKey()), subgraph_index, inputs, outputs)

    def read_signature_entry(self, table: Any) -> tuple[str, int]:
        return self.read_name(table.Name()), table.TensorIndex()


def _format_shape(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 8 else f"({', '.join(map(str, shape[:8]))}, .. {len(shape)} in all)"


class _UnknownOptions:
    """Stands for the options of an operator whose option table the schema does not know."""


_UNKNOWN_OPTIONS = _UnknownOptions()
