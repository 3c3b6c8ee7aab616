"""Reads the facts of a .tflite through the schema that LiteRT publishes, guarding against damaged files.

The flatbuffer is walked with the schema's accessors, never unpacked as a whole: every list is held against the size of
the file before it is read, so that a damaged length ends in an `InputError` and not in hours of garbage.

Schema: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import Field

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.tflite import macs
from edgepipe.tflite.model import (
    BITS,
    Model,
    Operator,
    Option,
    Quantization,
    Signature,
    Subgraph,
    Tensor,
)

__all__ = [
    *("LayerSparsity", "Model", "Operator", "Quantization", "Signature", "Subgraph", "Summary", "Tensor"),
    *("read", "summary", "weight_sparsity"),
]

T = TypeVar("T")
IDENTIFIER = b"TFL3"
MAX_TABLES = 100_000  # the largest language models have some ten thousand tensors and operators
MAX_ELEMENTS = 2**56  # of one tensor
SHARING = 64  # how many times the size of the file its constants may take together: subgraphs share them
_DAMAGE = (struct.error, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, AssertionError)
_SPARSE_KINDS = frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"))


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


class Summary(Record):
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
        InputError: the file is missing, empty, no .tflite, truncated or damaged; the message says which.
    """
    content = _content(path)
    try:
        return _Reader(path, content).model()
    except _DamageError as error:
        raise InputError(f"{path}: damaged .tflite: {error}; convert the model again or fetch the file anew") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: damaged or truncated .tflite ({len(content)} bytes): {reason}") from None


def summary(model: Model) -> Summary:
    """The counts of `model`, ready for a report."""
    return Summary(
        bytes=model.bytes,
        description=model.description,
        operators=dict(model.operator_counts),
        dtypes=dict(model.dtype_census),
        macs=model.macs,
        uncounted=model.uncounted,
        parameters=model.parameters,
        zero_parameters=model.zero_parameters,
        unreadable=tuple(tensor.name for tensor in model.unreadable),
        inputs={name: f"{tensor.dtype} {tensor.shape}" for name, tensor in model.input_names.items()},
        outputs={name: f"{tensor.dtype} {tensor.shape}" for name, tensor in model.output_names.items()},
    )


def weight_sparsity(model: Model) -> list[LayerSparsity]:
    """The share of exactly-zero weights of each convolution and dense layer, in order of execution.

    Weights that are no constants (computed by another operator) have no share and are left out; float16 weights behind
    a DEQUANTIZE are followed to their constant.

    Raises:
        InputError: weights are stored in a way that edgepipe cannot decode.
    """
    made_by = {(t.subgraph, t.index): op for op in model.operators for t in op.outputs if t is not None}
    found = []
    for operator in model.operators:
        weights = operator.input(1) if operator.name in _SPARSE_KINDS else None
        source = made_by.get((weights.subgraph, weights.index)) if weights is not None else None
        if source is not None and source.name == "DEQUANTIZE":
            weights = source.input(0)
        if weights is not None and weights.constant:
            found.append(_layer(model, operator, weights))
    return found


def _layer(model: Model, operator: Operator, weights: Tensor) -> LayerSparsity:
    return LayerSparsity(
        operator=operator.place,
        tensor=weights.name,
        kind=operator.name,
        elements=weights.elements,
        zeros=model.zeros(weights),
    )


class _DamageError(Exception):
    """Something in the file that contradicts the rest of it."""


class _Code(NamedTuple):
    name: str
    custom: bool


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not content:
        raise InputError(f"{path}: the file is empty; a .tflite was expected")
    if content[4:8] != IDENTIFIER:
        found = content[:8].hex(" ")
        raise InputError(f"{path}: not a .tflite: bytes 5 to 8 must be 'TFL3', the file begins with {found}")
    return content


@cache
def _dtypes() -> dict[int, str]:
    from ai_edge_litert.schema_py_generated import TensorType

    return {value: name.lower() for name, value in vars(TensorType).items() if not name.startswith("_")}


@cache
def builtins() -> dict[int, str]:
    """What builtin operators are called, by their numbers in the schema."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    return {value: name for name, value in vars(BuiltinOperator).items() if not name.startswith("_")}


@dataclass
class _Reader:
    """One walk through one file; `left` is how many more list elements an honest file of this size may have."""

    path: Path
    content: bytes
    left: int = 0
    constants_left: int = 0

    def model(self) -> Model:
        from ai_edge_litert.schema_py_generated import Model as Root

        # Every element takes at least a byte; strings and lists may be shared, so some slack.
        self.left = 2 * len(self.content) + 4096
        self.constants_left = SHARING * len(self.content)
        root = Root.GetRootAs(self.content, 0)
        if root.SubgraphsLength() == 0:
            raise _DamageError("it holds no subgraph")
        codes = self.each(root.OperatorCodesLength(), root.OperatorCodes, self.code)
        extents = self.each(root.BuffersLength(), root.Buffers, self.extent)
        metadata = dict(self.each(root.MetadataLength(), root.Metadata, lambda item: self.metadata(item, extents)))
        items = self.each(root.SubgraphsLength(), root.Subgraphs, lambda graph: graph)
        subgraphs = tuple(self.subgraph(place, graph, codes, extents) for place, graph in enumerate(items))
        tensors = [graph.tensors for graph in subgraphs]
        return Model(
            path=self.path,
            bytes=len(self.content),
            description=self.text(root.Description()),
            operators=tuple(operator for graph in subgraphs for operator in graph.operators),
            tensors=tuple(tensor for inner in tensors for tensor in inner),
            inputs=subgraphs[0].inputs,
            outputs=subgraphs[0].outputs,
            signatures=self.each(
                root.SignatureDefsLength(), root.SignatureDefs, lambda item: self.signature(item, tensors)
            ),
            content=self.content,
            subgraphs=subgraphs,
            metadata=metadata,
        )

    def metadata(self, item: Any, extents: tuple[tuple[int, int], ...]) -> tuple[str, bytes]:
        name = self.text(item.Name())
        if item.Buffer() >= len(extents):
            raise _DamageError(f"metadata '{name}' refers to buffer {item.Buffer()} of {len(extents)}")
        start, length = extents[item.Buffer()]
        self.spend(length)
        return name, self.content[start : start + length]

    def subgraph(
        self, place: int, graph: Any, codes: tuple[_Code, ...], extents: tuple[tuple[int, int], ...]
    ) -> Subgraph:
        tensors = self.tensors(place, graph, extents)
        return Subgraph(
            index=place,
            name=self.text(graph.Name()),
            inputs=self.interface(graph.InputsLength(), graph.InputsAsNumpy, tensors),
            outputs=self.interface(graph.OutputsLength(), graph.OutputsAsNumpy, tensors),
            tensors=tensors,
            operators=self.operators(place, graph, codes, tensors),
        )

    def spend(self, length: int) -> int:
        """Take `length` elements from what is left."""
        if length < 0 or length > self.left:
            raise _DamageError(f"a list of {length} elements in a file of {len(self.content)} bytes")
        self.left -= length
        return length

    def each(self, length: int, item: Callable[[int], Any], read_one: Callable[[Any], T]) -> tuple[T, ...]:
        """`read_one` of every table of a list."""
        if length > MAX_TABLES:
            raise _DamageError(f"a list of {length} tables; at most {MAX_TABLES} are read")
        self.spend(4 * length)
        return tuple(read_one(item(index)) for index in range(length))

    def numbers(self, length: int, as_numpy: Callable[[], Any]) -> tuple[Any, ...]:
        """A list of numbers; the schema's numpy view fails when the list leaves the file."""
        return tuple(as_numpy().tolist()) if self.spend(length) else ()

    def text(self, data: bytes | None) -> str:
        """A string of the file; one that is not UTF-8 is a sign of damage."""
        if data is None:
            return ""
        self.spend(len(data))
        return data.decode("utf-8")

    def code(self, item: Any) -> _Code:
        number = max(item.BuiltinCode(), item.DeprecatedBuiltinCode())
        name = builtins().get(number)
        if name is None:
            raise _DamageError(f"operator code {number} is not in the schema of this ai-edge-litert")
        custom = self.text(item.CustomCode())
        return _Code(custom or "CUSTOM", True) if name == "CUSTOM" else _Code(name, False)

    def extent(self, item: Any) -> tuple[int, int]:
        """Start and length of a constant's bytes; models over 2 GB keep them behind the flatbuffer."""
        if item.Offset() > 1:
            start, length = item.Offset(), item.Size()
        else:
            length = item.DataLength()
            start = item._tab.Vector(item._tab.Offset(4)) if length else 0
        if start < 0 or start + length > len(self.content):
            raise _DamageError(f"constant data at {start} with {length} bytes reaches past the end of the file")
        return start, length

    def tensors(self, place: int, graph: Any, extents: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
        items = self.each(graph.TensorsLength(), graph.Tensors, lambda item: item)
        return tuple(self.tensor(index, place, item, extents) for index, item in enumerate(items))

    def tensor(self, index: int, place: int, item: Any, extents: tuple[tuple[int, int], ...]) -> Tensor:
        name, dtype = self.text(item.Name()), _dtypes().get(item.Type())
        shape = self.numbers(item.ShapeLength(), item.ShapeAsNumpy)
        if dtype is None or any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise _DamageError(f"tensor '{name}' has type {item.Type()} and shape {_short(shape)}")
        if item.Buffer() >= max(len(extents), 1):
            raise _DamageError(f"tensor '{name}' refers to buffer {item.Buffer()} of {len(extents)}")
        extent = extents[item.Buffer()] if extents else (0, 0)
        size, sparse = -(-math.prod(shape) * BITS.get(dtype, 0) // 8), item.Sparsity() is not None
        if extent[1] and dtype in BITS and not sparse and extent[1] != size:
            raise _DamageError(f"tensor '{name}' of {dtype} {shape} has {extent[1]} bytes of data instead of {size}")
        self.constants_left -= extent[1]
        if self.constants_left < 0:
            raise _DamageError(f"its tensors share constants to more than {SHARING} times the size of the file")
        return Tensor(
            index=index,
            subgraph=place,
            name=name,
            shape=shape,
            dtype=dtype,
            constant=extent[1] > 0,
            bytes=extent[1] or size,
            quantization=self.quantization(name, shape, item.Quantization()),
            signature=self.numbers(item.ShapeSignatureLength(), item.ShapeSignatureAsNumpy) or shape,
            variable=item.IsVariable(),
            sparse=sparse,
            extent=extent,
        )

    def quantization(self, name: str, shape: tuple[int, ...], item: Any) -> Quantization | None:
        if item is None or item.ScaleLength() == 0:
            return None
        scales = self.numbers(item.ScaleLength(), item.ScaleAsNumpy)
        zeros = self.numbers(item.ZeroPointLength(), item.ZeroPointAsNumpy) or (0,) * len(scales)
        axis = item.QuantizedDimension()
        along = shape[axis] if 0 <= axis < len(shape) else -1
        if len(zeros) != len(scales) or (len(scales) > 1 and len(scales) != along):
            counts = f"{len(scales)} scales and {len(zeros)} zero points"
            raise _DamageError(f"tensor '{name}' of shape {shape} has {counts} along axis {axis}")
        if not all(math.isfinite(scale) for scale in scales):
            raise _DamageError(f"tensor '{name}' has a scale that is not finite")
        return Quantization(scales, zeros, axis)

    def operators(
        self, place: int, graph: Any, codes: tuple[_Code, ...], tensors: tuple[Tensor, ...]
    ) -> tuple[Operator, ...]:
        items = self.each(graph.OperatorsLength(), graph.Operators, lambda item: item)
        return tuple(self.operator(index, place, item, codes, tensors) for index, item in enumerate(items))

    def operator(
        self, index: int, place: int, item: Any, codes: tuple[_Code, ...], tensors: tuple[Tensor, ...]
    ) -> Operator:
        if item.OpcodeIndex() >= len(codes):
            raise _DamageError(f"operator {index} refers to operator code {item.OpcodeIndex()} of {len(codes)}")
        name, custom = codes[item.OpcodeIndex()]
        inputs = self.picked(item.InputsLength(), item.InputsAsNumpy, tensors)
        outputs = self.picked(item.OutputsLength(), item.OutputsAsNumpy, tensors)
        self.numbers(item.CustomOptionsLength(), item.CustomOptionsAsNumpy)
        options = self.options(item)
        count = macs.count(name, inputs, outputs, options)
        return Operator(index, place, name, inputs, outputs, count, custom, options)

    def options(self, item: Any) -> dict[str, Option]:
        """The fields of the operator's own option table (stride, padding, ...) as the schema names them."""
        from ai_edge_litert.schema_py_generated import BuiltinOptionsCreator

        table = item.BuiltinOptions()
        fields = vars(BuiltinOptionsCreator(item.BuiltinOptionsType(), table) or _NOTHING) if table else {}
        return {name: self.option(value) for name, value in fields.items() if value is not None}

    def option(self, value: Any) -> Option:
        if isinstance(value, bytes):
            return self.text(value)
        if isinstance(value, (bool, int, float)):
            return value
        self.spend(len(value))
        return tuple(value.tolist() if hasattr(value, "tolist") else value)

    def picked(
        self, length: int, as_numpy: Callable[[], Any], tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        """Tensors by index; -1 stands for an optional one that is absent."""
        indices = self.numbers(length, as_numpy)
        for index in indices:
            if not -1 <= index < len(tensors):
                raise _DamageError(f"an operator refers to tensor {index} of {len(tensors)}")
        return tuple(None if index < 0 else tensors[index] for index in indices)

    def interface(self, length: int, as_numpy: Callable[[], Any], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = tuple(tensor for tensor in self.picked(length, as_numpy, tensors) if tensor is not None)
        if len(found) != length:
            raise _DamageError("an input or output of the model refers to no tensor")
        return found

    def signature(self, item: Any, tensors: list[tuple[Tensor, ...]]) -> Signature:
        place = item.SubgraphIndex()
        if place >= len(tensors):
            raise _DamageError(f"a signature refers to subgraph {place} of {len(tensors)}")
        inputs = dict(self.each(item.InputsLength(), item.Inputs, self.entry))
        outputs = dict(self.each(item.OutputsLength(), item.Outputs, self.entry))
        for name, index in (*inputs.items(), *outputs.items()):
            if index >= len(tensors[place]):
                raise _DamageError(f"signature entry '{name}' refers to tensor {index} of {len(tensors[place])}")
        return Signature(self.text(item.SignatureKey()), place, inputs, outputs)

    def entry(self, item: Any) -> tuple[str, int]:
        return self.text(item.Name()), item.TensorIndex()


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 8 else f"({', '.join(map(str, shape[:8]))}, .. {len(shape)} in all)"


class _Nothing:
    """Stands for the options of an operator whose option table the schema does not know."""


_NOTHING = _Nothing()
