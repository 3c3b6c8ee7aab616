"""What TensorFlow Lite Micro keeps at the end of its arena (the tail): structures, variables, and kernels' own data.

Allocations are replayed in the allocator's order, downwards from the end of the arena with their alignment, so that the
sum equals that of the allocator: on 64 bits that of the PyPI package, on 32 bits that of a 32-bit build.

Source: tensorflow/tflite-micro, micro_allocator.cc, micro_interpreter.cc, kernels.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgepipe.tflite.kernel_scratch import scratch_sizes
from edgepipe.tflite.model import Model, Operator, Tensor
from edgepipe.tflite.resource_variables import count_resource_variables, first_assignments
from edgepipe.tflite.structure_sizes import DATALESS_OPERATORS, SIZES_32_BIT, SIZES_64_BIT, StructureSizes

BUFFER_ALIGNMENT = 16  # of kernel data
UNKNOWN_KERNEL_BYTES = 1024  # upper bound for an operator whose kernel is not in the tables

# Kernels that resize their output, in a copy of its shape.
_RESHAPING_OPERATORS = frozenset(
    ("GATHER", "GATHER_ND", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "L2_POOL_2D", "EMBEDDING_LOOKUP", "BATCH_MATMUL")
)
_ADD_N_BYTES = 40  # bytes for int8
_SOFTMAX_LUT_BYTES = 2 * 513  # bytes of one of SOFTMAX's two tables for int16

Allocation = tuple[str, int, int]  # what for, bytes, alignment


@dataclass
class TailReplay:
    """The end of the arena while it fills."""

    used_bytes: int = 0
    bytes_by_use: Counter[str] = field(default_factory=Counter)

    def add(self, allocations: Iterable[Allocation]) -> None:
        """Place `allocations`, in order."""
        for use, size, alignment in allocations:
            aligned_size = -(-(self.used_bytes + size) // alignment) * alignment - self.used_bytes
            self.used_bytes += aligned_size
            self.bytes_by_use[use] += aligned_size


@dataclass(frozen=True)
class ArenaTail:
    """Bytes after the planned arena, by use, without kernels' data of the `unknown_operators`, which no table lists."""

    total_bytes: int  # on 64 bits
    bytes_by_use: dict[str, int]
    unknown_operators: tuple[str, ...]
    total_bytes_32_bit: int
    unknown_count: int

    @property
    def interval_32_bit(self) -> tuple[int, int]:
        """Bounds of the tail on 32 bits: the same number twice if all kernels are known."""
        return self.total_bytes_32_bit, self.total_bytes_32_bit + UNKNOWN_KERNEL_BYTES * self.unknown_count


def compute_tail(model: Model) -> ArenaTail:
    """The tail of the arena of `model`, without the kernel data of unknown operators."""
    replay = replay_tail(model, SIZES_64_BIT)
    known_operators = SIZES_64_BIT.kernels.keys() | SIZES_64_BIT.options.keys() | DATALESS_OPERATORS
    unknown_names = [
        operator.name for operator in model.operators if operator.is_custom or operator.name not in known_operators
    ]
    return ArenaTail(
        replay.used_bytes,
        dict(replay.bytes_by_use),
        tuple(sorted(set(unknown_names))),
        replay_tail(model, SIZES_32_BIT).used_bytes,
        len(unknown_names),
    )


def replay_tail(model: Model, sizes: StructureSizes) -> TailReplay:
    """The tail after all allocations for `model` in a build with `sizes`."""
    replay = TailReplay()
    replay.add(initial_allocations(model, sizes))
    for _, allocations in prepare_allocations(model, sizes):
        replay.add(allocations)
    replay.add(variable_allocations(model, sizes))
    replay.add(interface_allocations(model, sizes))
    return replay


def initial_allocations(model: Model, sizes: StructureSizes) -> Iterator[Allocation]:
    """What is allocated before the kernels' prepare functions run."""
    yield from (("allocator", size, alignment) for size, alignment in sizes.base)
    yield from _table_allocations(model, sizes)
    yield "allocator", sizes.builtin_allocator, sizes.pointer
    yield "graph", sizes.subgraph * len(model.subgraphs), sizes.pointer
    for graph in model.subgraphs:
        yield "tensors", sizes.eval_tensor * len(graph.tensors), sizes.pointer
    for graph in model.subgraphs:
        yield "operators", sizes.node * len(graph.operators), sizes.pointer
    for operator in model.operators:
        if operator.name in sizes.options and not operator.is_custom:
            yield "options", *sizes.options[operator.name]
    for operator in model.operators:
        if operator.name in sizes.kernels and not operator.is_custom:
            yield "kernels", sizes.kernels[operator.name], BUFFER_ALIGNMENT


def _table_allocations(model: Model, sizes: StructureSizes) -> Iterator[Allocation]:
    """The application's table of resource variables, which it makes for a model that has some."""
    count = count_resource_variables(model) if sizes.table_length is None else sizes.table_length
    if count:
        yield "resource variables", sizes.variable_table, BUFFER_ALIGNMENT
        yield "resource variables", sizes.resource_variable * count, BUFFER_ALIGNMENT


def prepare_allocations(model: Model, sizes: StructureSizes) -> Iterator[tuple[Operator, list[Allocation]]]:
    """What the prepare function of each operator's kernel allocates, when shapes are known."""
    variable_bytes_by_operator = first_assignments(model)
    for operator in model.operators:
        kernel_sizes = _prepare_allocation_sizes(operator, sizes)
        allocations: list[Allocation] = [("kernels", size, BUFFER_ALIGNMENT) for size in kernel_sizes]
        if operator in variable_bytes_by_operator:
            allocations.append(("resource variables", variable_bytes_by_operator[operator], BUFFER_ALIGNMENT))
        yield operator, allocations


def variable_allocations(model: Model, sizes: StructureSizes) -> Iterator[Allocation]:
    """What is allocated when all kernels are prepared: handles of scratch memory, and variables."""
    handle_count = sum(len(scratch_sizes(operator)) for operator in model.operators)
    for graph in model.subgraphs:
        yield "scratch handles", sizes.pointer * handle_count, sizes.pointer
        yield from (("variables", tensor.bytes, BUFFER_ALIGNMENT) for tensor in graph.tensors if tensor.is_variable)


def interface_allocations(model: Model, sizes: StructureSizes) -> Iterator[Allocation]:
    """What is allocated last, when the plan is made: the tensors of inputs and outputs."""
    for interface_tensors in (model.inputs, model.outputs):
        yield "interface", sizes.pointer * len(interface_tensors), BUFFER_ALIGNMENT
        for tensor in interface_tensors:
            yield "interface", sizes.tensor, sizes.pointer
            if tensor.quantization is not None:
                yield "interface", sizes.quantization, sizes.pointer
                yield "interface", 4 + 4 * len(tensor.quantization.scales), 4


def _prepare_allocation_sizes(operator: Operator, sizes: StructureSizes) -> Iterator[int]:
    """Bytes that a kernel's prepare allocates, when shapes are known."""
    weights, input_tensor = operator.input(1), operator.input(0)
    yield from _per_channel_allocation_sizes(operator, weights)
    if operator.name == "SOFTMAX" and input_tensor is not None and input_tensor.dtype == "int16":
        yield from (_SOFTMAX_LUT_BYTES, _SOFTMAX_LUT_BYTES)
    if operator.name == "BATCH_MATMUL" and input_tensor is not None and weights is not None:
        yield from _matmul_allocation_sizes(operator, input_tensor, weights, sizes.eval_tensor)
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


def _matmul_allocation_sizes(operator: Operator, lhs: Tensor, rhs: Tensor, eval_tensor_bytes: int) -> Iterator[int]:
    """Quantization, and a transposed copy of each side that is not laid out as the kernel needs it."""
    if lhs.dtype in ("int8", "int16"):
        yield 28
    for tensor, needs_copy in ((lhs, operator.options.get("adjX")), (rhs, not operator.options.get("adjY"))):
        if needs_copy:
            yield from (eval_tensor_bytes, 4 + 4 * len(tensor.shape), tensor.bytes)


def _is_per_axis(tensor: Tensor) -> bool:
    return tensor.quantization is not None and tensor.quantization.is_per_axis
