"""What TensorFlow Lite Micro keeps at the end of its arena (the tail): structures, variables, and kernels' own data.

Allocations are replayed in the allocator's order, downwards from the end of the arena with their alignment, so that the
64-bit sum equals that of the PyPI package. On a 32-bit device pointers take half the bytes: the estimate for it halves
the pointers of the structures and keeps kernel data, mostly 32-bit numbers; half and all of the 64-bit tail bound it,
because no structure shrinks by more than half.

Source: tensorflow/tflite-micro, micro_allocator.cc, micro_interpreter.cc, kernels; sizes of structures as the compiler
lays them out in the PyPI package 0.dev20261023182759 (commit 8f6596d) for x86-64.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from edgepipe.tflite.kernel_scratch import scratch_sizes
from edgepipe.tflite.model import Model, Operator, Tensor

BUFFER_ALIGNMENT = 16  # of kernel data
VERIFIED_VERSION = "0.dev20261023182759"


class _StructureSizes(NamedTuple):
    """Bytes of one structure; `base_structures` is there before any model: allocators, planner, graph."""

    base_structures: int
    subgraph: int
    eval_tensor: int
    node: int
    tensor: int
    quantization: int
    pointer: int


_SIZES_64_BIT = _StructureSizes(
    base_structures=464, subgraph=24, eval_tensor=24, node=64, tensor=64, quantization=24, pointer=8
)
_SIZES_32_BIT = _StructureSizes(
    base_structures=232, subgraph=12, eval_tensor=12, node=32, tensor=40, quantization=12, pointer=4
)

# fmt: off
# Bytes that a kernel's init allocates; size and alignment of an operator's parsed options.
_KERNEL_BYTES_BY_OPERATOR = {
    "ADD": 60, "SUB": 52, "MUL": 36, "DIV": 28, "SQUARED_DIFFERENCE": 112,
    "CONV_2D": 80, "DEPTHWISE_CONV_2D": 80, "FULLY_CONNECTED": 72, "TRANSPOSE_CONV": 88, "BATCH_MATMUL": 32,
    "AVERAGE_POOL_2D": 32, "MAX_POOL_2D": 32, "CONCATENATION": 80, "SOFTMAX": 80, "PAD": 56, "PADV2": 56,
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"), 44),
    "QUANTIZE": 32, "DEQUANTIZE": 32, "STRIDED_SLICE": 84, "MIRROR_PAD": 20, "L2_NORMALIZATION": 4,
    "LOGISTIC": 16, "TANH": 16, "RELU": 28, "RELU6": 8, "HARD_SWISH": 20, "LEAKY_RELU": 24, "PRELU": 28, "ELU": 256,
    "ABS": 28, "RSQRT": 28, "SVDF": 36, "UNIDIRECTIONAL_SEQUENCE_LSTM": 688, "SPACE_TO_BATCH_ND": 4,
    "IF": 8, "WHILE": 8, "CALL_ONCE": 8, "VAR_HANDLE": 4,
    **dict.fromkeys(("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"), 32),
    "EMBEDDING_LOOKUP": 16, "CUMSUM": 36, "SELECT_V2": 1,
}
_OPTION_LAYOUTS = {
    "ADD": (8, 4), "SUB": (8, 4), "MUL": (4, 4), "DIV": (4, 4), "CONCATENATION": (8, 4), "PACK": (8, 4),
    "CONV_2D": (28, 4), "DEPTHWISE_CONV_2D": (28, 4), "FULLY_CONNECTED": (32, 8), "TRANSPOSE_CONV": (20, 4),
    "BATCH_MATMUL": (3, 1), "AVERAGE_POOL_2D": (40, 4), "MAX_POOL_2D": (40, 4), "L2_POOL_2D": (40, 4),
    "SOFTMAX": (4, 4), "RESHAPE": (36, 4), "SQUEEZE": (36, 4), "SHAPE": (4, 4), "STRIDED_SLICE": (24, 4),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"), (1, 1)),
    "UNPACK": (8, 4), "SPLIT": (4, 4), "SPLIT_V": (4, 4), "GATHER": (8, 4), "ARG_MAX": (4, 4), "ARG_MIN": (4, 4),
    "CAST": (8, 4), "LEAKY_RELU": (4, 4), "MIRROR_PAD": (4, 4), "L2_NORMALIZATION": (4, 4), "CUMSUM": (2, 1),
    "DEPTH_TO_SPACE": (4, 4), "SPACE_TO_DEPTH": (4, 4), "RESIZE_BILINEAR": (2, 1),
    "RESIZE_NEAREST_NEIGHBOR": (2, 1), "SVDF": (12, 4), "UNIDIRECTIONAL_SEQUENCE_LSTM": (16, 4),
    "IF": (8, 4), "WHILE": (8, 4), "CALL_ONCE": (4, 4), "VAR_HANDLE": (16, 8),
}
# fmt: on
_DATALESS_OPERATORS = frozenset(  # neither kernel data nor options
    {
        *("MAXIMUM", "MINIMUM", "TRANSPOSE", "EXP", "LOG", "SQRT", "SQUARE", "NEG", "FLOOR", "CEIL", "ROUND", "SIN"),
        *("COS", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "EXPAND_DIMS", "FILL", "ZEROS_LIKE", "BROADCAST_TO"),
        *("SLICE", "GATHER_ND", "LOG_SOFTMAX", "BROADCAST_ARGS", "READ_VARIABLE", "ASSIGN_VARIABLE", "REVERSE_V2"),
        *("BATCH_TO_SPACE_ND", "FLOOR_DIV", "FLOOR_MOD", "ADD_N"),
    }
)
# Kernels that resize their output, in a copy of its shape.
_RESHAPING_OPERATORS = frozenset(
    ("GATHER", "GATHER_ND", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "L2_POOL_2D", "EMBEDDING_LOOKUP", "BATCH_MATMUL")
)
_ADD_N_BYTES = 40  # bytes for int8
_SOFTMAX_LUT_BYTES = 2 * 513  # bytes of one of SOFTMAX's two tables for int16


@dataclass(frozen=True)
class ArenaTail:
    """Bytes after the planned arena, by use; `unknown_operators` are those with a kernel that no table above lists."""

    total_bytes: int  # on 64 bits
    bytes_by_use: dict[str, int]
    unknown_operators: tuple[str, ...]
    total_bytes_32_bit: int  # estimated for 32 bits

    @property
    def interval_32_bit(self) -> tuple[int, int]:
        """Bounds of the tail on 32 bits."""
        return self.total_bytes // 2, self.total_bytes


def compute_tail(model: Model) -> ArenaTail:
    """The tail of the arena of `model`, without the kernel data of unknown operators."""
    total_bytes, bytes_by_use = _sum_allocations(model, _SIZES_64_BIT)
    total_bytes_32_bit, _ = _sum_allocations(model, _SIZES_32_BIT)
    known_operators = _KERNEL_BYTES_BY_OPERATOR.keys() | _OPTION_LAYOUTS.keys() | _DATALESS_OPERATORS
    unknown_operators = sorted(
        {operator.name for operator in model.operators if operator.is_custom or operator.name not in known_operators}
    )
    return ArenaTail(total_bytes, bytes_by_use, tuple(unknown_operators), total_bytes_32_bit)


def _sum_allocations(model: Model, sizes: _StructureSizes) -> tuple[int, dict[str, int]]:
    total_bytes, bytes_by_use = 0, Counter[str]()
    for use, size, alignment in _list_allocations(model, sizes):
        aligned_size = -(-(total_bytes + size) // alignment) * alignment - total_bytes
        total_bytes += aligned_size
        bytes_by_use[use] += aligned_size
    return total_bytes, dict(bytes_by_use)


Allocation = tuple[str, int, int]  # what for, bytes, alignment


def _list_allocations(model: Model, sizes: _StructureSizes) -> Iterator[Allocation]:
    """All allocations, in order."""
    yield from _structure_allocations(model, sizes)
    yield from _kernel_allocations(model)
    yield from _variable_allocations(model, sizes.pointer)
    for interface_tensors in (model.inputs, model.outputs):
        yield "interface", sizes.pointer * len(interface_tensors), BUFFER_ALIGNMENT
        for tensor in interface_tensors:
            yield from _interface_allocations(tensor, sizes)


def _structure_allocations(model: Model, sizes: _StructureSizes) -> Iterator[Allocation]:
    yield "allocator", sizes.base_structures, 8
    yield "graph", sizes.subgraph * len(model.subgraphs), sizes.pointer
    for graph in model.subgraphs:
        yield "tensors", sizes.eval_tensor * len(graph.tensors), sizes.pointer
    for graph in model.subgraphs:
        yield "operators", sizes.node * len(graph.operators), sizes.pointer
    for operator in model.operators:
        if operator.name in _OPTION_LAYOUTS and not operator.is_custom:
            yield "options", *_OPTION_LAYOUTS[operator.name]


def _kernel_allocations(model: Model) -> Iterator[Allocation]:
    for operator in model.operators:
        if operator.name in _KERNEL_BYTES_BY_OPERATOR and not operator.is_custom:
            yield "kernels", _KERNEL_BYTES_BY_OPERATOR[operator.name], BUFFER_ALIGNMENT
    for operator in model.operators:
        yield from (("kernels", size, BUFFER_ALIGNMENT) for size in _prepare_allocation_sizes(operator))


def _variable_allocations(model: Model, pointer_bytes: int) -> Iterator[Allocation]:
    handle_count = sum(len(scratch_sizes(operator)) for operator in model.operators)
    for graph in model.subgraphs:
        yield "scratch handles", pointer_bytes * handle_count, pointer_bytes
        yield from (("variables", tensor.bytes, BUFFER_ALIGNMENT) for tensor in graph.tensors if tensor.is_variable)


def _prepare_allocation_sizes(operator: Operator) -> Iterator[int]:
    """Bytes that a kernel's prepare allocates, when shapes are known."""
    weights, input_tensor = operator.input(1), operator.input(0)
    yield from _per_channel_allocation_sizes(operator, weights)
    if operator.name == "SOFTMAX" and input_tensor is not None and input_tensor.dtype == "int16":
        yield from (_SOFTMAX_LUT_BYTES, _SOFTMAX_LUT_BYTES)
    if operator.name == "BATCH_MATMUL" and input_tensor is not None and weights is not None:
        yield from _matmul_allocation_sizes(operator, input_tensor, weights)
    if operator.name == "ADD_N" and input_tensor is not None and input_tensor.dtype == "int8":
        yield _ADD_N_BYTES
    if operator.name in _RESHAPING_OPERATORS and operator.outputs and operator.outputs[0] is not None:
        yield 4 + 4 * len(operator.outputs[0].shape)


def _per_channel_allocation_sizes(operator: Operator, weights: Tensor | None) -> Iterator[int]:
    """A multiplier and a shift for each filter; dense layers keep them only if their weights have several scales."""
    if weights is None or not weights.shape:
        return
    if operator.traits.is_per_channel or (operator.name == "FULLY_CONNECTED" and _is_per_axis(weights)):
        channel_count = weights.shape[-1 if operator.name == "DEPTHWISE_CONV_2D" else 0]
        yield from (4 * channel_count, 4 * channel_count)


def _matmul_allocation_sizes(operator: Operator, lhs: Tensor, rhs: Tensor) -> Iterator[int]:
    """Quantization, and a transposed copy of each side that is not laid out as the kernel needs it."""
    if lhs.dtype in ("int8", "int16"):
        yield 28
    for tensor, needs_copy in ((lhs, operator.options.get("adjX")), (rhs, not operator.options.get("adjY"))):
        if needs_copy:
            yield from (24, 4 + 4 * len(tensor.shape), tensor.bytes)


def _is_per_axis(tensor: Tensor) -> bool:
    return tensor.quantization is not None and tensor.quantization.is_per_axis


def _interface_allocations(tensor: Tensor, sizes: _StructureSizes) -> Iterator[Allocation]:
    yield "interface", sizes.tensor, sizes.pointer
    if tensor.quantization is not None:
        yield "interface", sizes.quantization, sizes.pointer
        yield "interface", 4 + 4 * len(tensor.quantization.scales), 4
