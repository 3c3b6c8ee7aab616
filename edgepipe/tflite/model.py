"""The content of a .tflite as frozen dataclasses: tensors, operators, subgraphs, and counts over them."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite.operator_facts import OperatorTraits, traits_of

Content = bytes  # a name for the type inside classes that have a field `bytes`
TensorKey = tuple[int, int]  # subgraph, index
OptionValue = bool | int | float | str | tuple[int | float, ...]

BITS_BY_DTYPE = {
    **dict.fromkeys(("int2",), 2),
    **dict.fromkeys(("int4", "uint4"), 4),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 8),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("int32", "uint32", "float32"), 32),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 64),
    **dict.fromkeys(("complex128",), 128),
}
INTEGER_TYPES = frozenset(
    {
        *("int2", "int4", "int8", "int16", "int32", "int64"),
        *("uint4", "uint8", "uint16", "uint32", "uint64", "bool"),
    }
)
FLOAT_TYPES = frozenset({"float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64"})
HANDLE_TYPES = frozenset({"resource", "variant"})  # they refer to a variable or a list, and hold no numbers
PACKING_BY_DTYPE = {"int4": (4, True), "uint4": (4, False), "int2": (2, True)}  # bits, signed
NUMPY_TYPES = BITS_BY_DTYPE.keys() - PACKING_BY_DTYPE.keys() - {"bfloat16", "float8_e4m3fn", "float8_e5m2"}


@dataclass(frozen=True)
class Quantization:
    """real = scale * (stored - zero_point), one pair for the tensor or one for each index of `axis`.

    Some files name a wrong axis: TensorFlow Lite Micro ignores it and takes that of the filters, LiteRT refuses them.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int

    @property
    def is_per_axis(self) -> bool:
        """Whether there is more than one pair of scale and zero point."""
        return len(self.scales) > 1


@dataclass(frozen=True)
class Tensor:
    """One tensor of one subgraph. `shape_signature` has -1 for a dimension that may be resized."""

    index: int
    subgraph_index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    is_constant: bool
    bytes: int
    quantization: Quantization | None
    shape_signature: tuple[int, ...] = ()
    is_variable: bool = False  # keeps its value between two calls
    is_sparse: bool = False  # its constant is stored in TensorFlow Lite's sparse encoding
    byte_extent: tuple[int, int] = (0, 0)  # start and length of the constant in the file, in bytes

    @property
    def key(self) -> TensorKey:
        """Subgraph and index, which identify it in the file."""
        return self.subgraph_index, self.index

    @property
    def stated_shape(self) -> tuple[int, ...]:
        """The shape with -1 for each open dimension."""
        return self.shape_signature if len(self.shape_signature) == len(self.shape) else self.shape

    @property
    def element_count(self) -> int:
        """The product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operator:
    """One operator; `index` counts in order of execution. The name of a custom operator is its custom code."""

    index: int
    subgraph_index: int
    name: str
    inputs: tuple[Tensor | None, ...]  # None: an optional input that is absent
    outputs: tuple[Tensor | None, ...]
    macs: int
    is_custom: bool = False
    options: dict[str, OptionValue] = field(default_factory=dict, hash=False)
    version: int = 1  # of the kernel that it asks for

    @property
    def traits(self) -> OperatorTraits:
        """What is known of it by its name."""
        return traits_of(self.name)

    @property
    def location(self) -> str:
        """For example `CONV_2D #3`, with the subgraph where it is not the main one."""
        return f"{self.name} #{self.index}" + (f" of subgraph {self.subgraph_index}" if self.subgraph_index else "")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs then outputs, without the absent ones."""
        return tuple(tensor for tensor in (*self.inputs, *self.outputs) if tensor is not None)

    @property
    def bytes_read(self) -> int:
        """Bytes of the activations and variables that one run reads, each tensor once."""
        return sum(tensor.bytes for tensor in _unique_tensors(self.inputs) if not tensor.is_constant)

    @property
    def constant_bytes(self) -> int:
        """Bytes of weights and other constants that one run reads; of a lookup table, as many as it writes."""
        read_bytes = sum(tensor.bytes for tensor in _unique_tensors(self.inputs) if tensor.is_constant)
        return min(read_bytes, self.bytes_written) if self.traits.is_lookup else read_bytes

    @property
    def bytes_written(self) -> int:
        """Bytes of the outputs of one run, and of the variables among its inputs, which it updates."""
        updated_variables = [tensor for tensor in self.inputs if tensor is not None and tensor.is_variable]
        return sum(tensor.bytes for tensor in _unique_tensors((*self.outputs, *updated_variables)))

    @property
    def parameter_tensors(self) -> tuple[Tensor, ...]:
        """The constants among its inputs that hold learned numbers; see `Model.parameter_tensors`."""
        constants = [
            tensor
            for position, tensor in enumerate(self.inputs)
            if tensor is not None and tensor.is_constant and self._is_parameter(position, tensor)
        ]
        return _unique_tensors(constants)

    def _is_parameter(self, position: int, tensor: Tensor) -> bool:
        is_learned_type = tensor.dtype in FLOAT_TYPES or tensor.quantization is not None
        return is_learned_type or position in self.traits.parameter_positions

    @property
    def parameters(self) -> int:
        """Elements of its parameter tensors; one that it shares with another operator counts for both."""
        return sum(tensor.element_count for tensor in self.parameter_tensors)

    def input(self, position: int) -> Tensor | None:
        """The input at `position`, None when it is absent."""
        return self.inputs[position] if position < len(self.inputs) else None


@dataclass(frozen=True)
class Signature:
    """A named entry point: its subgraph, and the tensor index of each named input and output."""

    key: str
    subgraph_index: int
    inputs: dict[str, int] = field(hash=False)
    outputs: dict[str, int] = field(hash=False)


@dataclass(frozen=True)
class Subgraph:
    """One subgraph: the first is the main one, others are bodies of loops and branches, or signatures of their own."""

    index: int
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Model:
    """The facts of one .tflite. `operators` and `tensors` are those of all subgraphs, the main one first."""

    path: Path
    bytes: int  # of the whole file
    description: str
    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]  # of the main subgraph
    outputs: tuple[Tensor, ...]
    signatures: tuple[Signature, ...]
    content: Content = field(repr=False, compare=False)
    subgraphs: tuple[Subgraph, ...] = field(repr=False)
    metadata: dict[str, Content] = field(default_factory=dict, repr=False, hash=False)
    open_sizes: dict[TensorKey, str] = field(default_factory=dict, repr=False, hash=False)  # see `open_dimensions`

    @property
    def open_size_reason(self) -> str:
        """Why the file does not hold all sizes; empty if, with a batch of 1, it does."""
        return next(iter(self.open_sizes.values()), "")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference; the body of a loop or a branch counts once."""
        return sum(operator.macs for operator in self.operators)

    @cached_property
    def uncounted_operator_names(self) -> tuple[str, ...]:
        """Operators of this model that may multiply and accumulate but for which `macs` knows no formula."""
        return tuple(sorted({op.name for op in self.operators if op.is_custom or op.traits.has_uncounted_macs}))

    @cached_property
    def producer_by_key(self) -> dict[TensorKey, Operator]:
        """The operator that computes each tensor, by the tensor's key; inputs and constants have none."""
        return {tensor.key: op for op in self.operators for tensor in op.outputs if tensor is not None}

    @cached_property
    def parameter_tensors(self) -> tuple[Tensor, ...]:
        """Constants that some operator reads and that hold weights, biases or other learned numbers.

        A constant is one if it is floating point, if it is quantized (has a scale), or if the operator takes
        weights or a bias at its position. Shapes, paddings, axes and indices are not: they are integers without scale.
        """
        return _unique_tensors(tensor for operator in self.operators for tensor in operator.parameter_tensors)

    @property
    def variable_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that keep their value between two calls."""
        return tuple(tensor for tensor in self.tensors if tensor.is_variable)

    @property
    def sparse_tensors(self) -> tuple[Tensor, ...]:
        """The constants in TensorFlow Lite's sparse encoding, which does not store zeros."""
        return tuple(tensor for tensor in self.tensors if tensor.is_sparse)

    @property
    def packed_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of less than 8 bits per element, several of which share a byte."""
        return tuple(tensor for tensor in self.tensors if tensor.dtype in PACKING_BY_DTYPE)

    @property
    def parameters(self) -> int:
        """Elements of all parameter tensors; one that two operators share counts once."""
        return sum(tensor.element_count for tensor in self.parameter_tensors)

    @cached_property
    def zero_parameters(self) -> int:
        """Parameters whose value is zero, that is, whose stored value is the zero point. See `unreadable_tensors`."""
        return sum(self.count_zeros(tensor) for tensor in self.parameter_tensors if not _unreadable_reason(tensor))

    @property
    def unreadable_tensors(self) -> tuple[Tensor, ...]:
        """Parameter tensors whose values edgepipe cannot decode, so that `zero_parameters` leaves them out."""
        return tuple(tensor for tensor in self.parameter_tensors if _unreadable_reason(tensor))

    @property
    def dtype_counts(self) -> Counter[str]:
        """How many tensors there are of each dtype, among those that an operator or the interface uses."""
        return Counter(tensor.dtype for tensor in self.used_tensors)

    @property
    def used_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that some operator or the interface uses, each once, in order."""
        used_keys = {tensor.key for operator in self.operators for tensor in operator.tensors}
        used_keys |= {tensor.key for tensor in (*self.inputs, *self.outputs)}
        return tuple(tensor for tensor in self.tensors if tensor.key in used_keys)

    @property
    def operator_counts(self) -> Counter[str]:
        """How many operators there are of each name."""
        return Counter(operator.name for operator in self.operators)

    @property
    def inputs_by_name(self) -> dict[str, Tensor]:
        """The main inputs by signature name, or by tensor name where no signature names them."""
        return self._tensors_by_name(self.inputs, "inputs")

    @property
    def outputs_by_name(self) -> dict[str, Tensor]:
        """The main outputs by signature name, or by tensor name where no signature names them."""
        return self._tensors_by_name(self.outputs, "outputs")

    def _tensors_by_name(self, tensors: tuple[Tensor, ...], side: str) -> dict[str, Tensor]:
        signature = next((s for s in self.signatures if s.subgraph_index == 0), None)
        index_by_name = {} if signature is None else signature.inputs if side == "inputs" else signature.outputs
        names_by_index: dict[int, list[str]] = {}
        for name, index in index_by_name.items():
            names_by_index.setdefault(index, []).append(name)
        tensor_by_name: dict[str, Tensor] = {}
        for position, tensor in enumerate(tensors):
            names = names_by_index.get(tensor.index)  # several if one tensor is several outputs
            name = (names.pop(0) if names else tensor.name) or f"{side[:-1]}_{position}"
            tensor_by_name[name if name not in tensor_by_name else f"{name}#{position}"] = tensor
        return tensor_by_name

    def find_constant(self, tensor: Tensor | None) -> Tensor | None:
        """The constant that `tensor` is, or that a DEQUANTIZE gives as `tensor` (float16 weights); else None."""
        producer = self.producer_by_key.get(tensor.key) if tensor is not None else None
        if producer is not None and producer.name == "DEQUANTIZE":
            tensor = producer.input(0)
        return tensor if tensor is not None and tensor.is_constant else None

    def find_source_operator(self, tensor: Tensor) -> Operator | None:
        """The operator that computes the values of `tensor`, looking through QUANTIZE, DEQUANTIZE and RESHAPE."""
        source = self.producer_by_key.get(tensor.key)
        for _ in self.operators:  # a damaged file may lead in a circle
            if source is None or not source.traits.passes_values or (tensor_before := source.input(0)) is None:
                break
            source = self.producer_by_key.get(tensor_before.key)
        return source

    def read_values(self, tensor: Tensor) -> Array:
        """The stored values of a constant, in its shape; int4 and int2 are unpacked to int8, bfloat16 to float32.

        Raises:
            InputError: the tensor is not a constant, or is stored in a way that edgepipe cannot decode.
        """
        reason = "it is not a constant" if not tensor.is_constant else _unreadable_reason(tensor)
        if reason:
            raise InputError(f"{self.path}: the values of tensor '{tensor.name}' cannot be read: {reason}")
        start, length = tensor.byte_extent
        return _decode_constant(self.content[start : start + length], tensor).reshape(tensor.shape)

    def read_centred_values(self, tensor: Tensor) -> Array:
        """The stored values of a constant less their zero point (of their channel): 0 exactly where the weight is 0."""
        return np.asarray(self.read_values(tensor).astype(np.float64) - _zero_point(tensor))

    def nonzero_mask(self, tensor: Tensor) -> Array:
        """Which elements of a constant are not exactly 0: those that differ from the zero point."""
        return np.asarray(self.read_values(tensor) != _zero_point(tensor))

    def count_zeros(self, tensor: Tensor) -> int:
        """How many elements of a constant are exactly 0: those equal to the zero point (of their channel)."""
        return tensor.element_count - int(np.count_nonzero(self.nonzero_mask(tensor)))

    def unreadable_reason(self, tensor: Tensor) -> str:
        """Why `read_values` cannot decode a constant; empty if it can."""
        return _unreadable_reason(tensor)

    def __iter__(self) -> Iterator[Operator]:
        return iter(self.operators)


def _unique_tensors(tensors: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    """Each tensor once, in order, without the absent ones."""
    return tuple({tensor.key: tensor for tensor in tensors if tensor is not None}.values())


def _unreadable_reason(tensor: Tensor) -> str:
    if tensor.is_sparse:
        return "it is stored in TensorFlow Lite's sparse encoding"
    if _find_zero_point(tensor) is None:
        return "its zero points differ and do not fit the axis that the file names for them"
    is_readable = tensor.dtype in NUMPY_TYPES or tensor.dtype in PACKING_BY_DTYPE or tensor.dtype == "bfloat16"
    return "" if is_readable else f"its type {tensor.dtype} is not supported"


def _decode_constant(content: bytes, tensor: Tensor) -> Array:
    if tensor.dtype in PACKING_BY_DTYPE:
        return _unpack_bits(np.frombuffer(content, np.uint8), *PACKING_BY_DTYPE[tensor.dtype])[: tensor.element_count]
    if tensor.dtype == "bfloat16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(content, np.dtype(tensor.dtype).newbyteorder("<"))


def _unpack_bits(content: Array, bits: int, is_signed: bool) -> Array:
    """Numbers of `bits` bits, the first in the lowest bits of each byte."""
    shifted_bytes = [content >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
    numbers = np.stack(shifted_bytes, axis=-1).ravel().astype(np.int8)
    return np.where(numbers >= 2 ** (bits - 1), numbers - 2**bits, numbers).astype(np.int8) if is_signed else numbers


def _zero_point(tensor: Tensor) -> Array | int:
    """The zero point, or the zero points shaped so that they broadcast along their axis."""
    zero_point = _find_zero_point(tensor)
    assert zero_point is not None, "the caller asks `unreadable_reason` first"
    return zero_point


def _find_zero_point(tensor: Tensor) -> Array | int | None:
    """None if the zero points differ and their number is not the size of their axis."""
    quantization = tensor.quantization
    if quantization is None:
        return 0
    if len(set(quantization.zero_points)) == 1:
        return quantization.zero_points[0]
    axis = quantization.axis
    if not 0 <= axis < len(tensor.shape) or tensor.shape[axis] != len(quantization.zero_points):
        return None
    shape = [1] * len(tensor.shape)
    shape[axis] = -1
    return np.array(quantization.zero_points).reshape(shape)
