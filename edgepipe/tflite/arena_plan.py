"""Lifetimes of tensors, and where TensorFlow Lite Micro's planner places them in the arena.

Lifetimes and placement follow TensorFlow Lite Micro: an input lives from the start, an output to the end, any other
tensor from the operator that writes it to the last one that reads it; buffers are placed from the largest to the
smallest, each at the lowest offset where it overlaps none that lives at the same time. Constants stay in the file and
variables are allocated separately, so neither is planned.

Source: tensorflow/tflite-micro, micro_allocation_info.cc and memory_planner/greedy_memory_planner.cc
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite.kernel_scratch import HOST_POINTER_BYTES, scratch_sizes
from edgepipe.tflite.model import PACKING_BY_DTYPE, Model, Operator, Tensor, TensorKey

ALIGNMENT = 16  # bytes; MicroArenaBufferAlignment()
MAX_BUFFERS = 10_000  # placing them takes a second or two; the largest networks have some hundreds
MAX_ARENA_BYTES = 2**31 - 1  # the planner counts in 32-bit integers
OFFLINE_PLAN_KEY = "OfflineMemoryAllocation"  # the metadata in which Vela and others fix offsets
UNSET = -1


@dataclass(frozen=True)
class ArenaBuffer:
    """One planned piece of the arena: a tensor, or scratch memory of an operator's kernel.

    It is alive from `first_step` to `last_step`, both inclusive; `aligned_size` is `bytes` rounded up to 16.
    """

    name: str
    kind: str  # input, output, activation, unused, scratch
    subgraph_index: int
    tensor_index: int | None  # its index in the subgraph; None for scratch memory
    size: int
    aligned_size: int
    first_step: int
    last_step: int
    offset: int

    @property
    def end_offset(self) -> int:
        """The first byte after it."""
        return self.offset + self.aligned_size

    def is_alive(self, step: int) -> bool:
        """Whether it holds something at `step`."""
        return self.first_step <= step <= self.last_step


@dataclass(frozen=True)
class ArenaPlan:
    """The planned arena. Step 0 is before the first operator; `steps` names what runs at each."""

    buffers: tuple[ArenaBuffer, ...]
    step_operators: tuple[Operator | None, ...]  # None: a subgraph begins

    @property
    def peak_bytes(self) -> int:
        """Bytes of the planned arena: what TensorFlow Lite Micro calls the head."""
        return max((buffer.end_offset for buffer in self.buffers), default=0)

    @cached_property
    def live_bytes_by_step(self) -> tuple[int, ...]:
        """Bytes of the tensors alive at each step, without alignment, gaps and scratch memory."""
        return self._sum_by_step([buffer for buffer in self.buffers if buffer.kind != "scratch"])

    @cached_property
    def scratch_bytes_by_step(self) -> tuple[int, ...]:
        """Bytes of kernels' scratch memory at each step."""
        return self._sum_by_step([buffer for buffer in self.buffers if buffer.kind == "scratch"])

    @property
    def naive_peak_bytes(self) -> int:
        """The largest sum of tensors alive at once: no plan needs less."""
        return max(self.live_bytes_by_step, default=0)

    @property
    def peak_step(self) -> int:
        """The first step at which `naive_peak` is reached."""
        return self.live_bytes_by_step.index(self.naive_peak_bytes)

    @property
    def peak_operator(self) -> Operator | None:
        """The operator at which `naive_peak` is reached; None where there is none."""
        return self.step_operators[self.peak_step]

    @property
    def buffers_at_peak(self) -> tuple[ArenaBuffer, ...]:
        """The tensors that make up `naive_peak`, the largest first."""
        live_buffers = [
            buffer for buffer in self.buffers if buffer.kind != "scratch" and buffer.is_alive(self.peak_step)
        ]
        return tuple(sorted(live_buffers, key=lambda buffer: -buffer.size))

    def _sum_by_step(self, buffers: list[ArenaBuffer]) -> tuple[int, ...]:
        byte_changes = np.zeros(len(self.step_operators) + 1, np.int64)
        for buffer in buffers:
            byte_changes[max(buffer.first_step, 0)] += buffer.size if buffer.last_step >= 0 else 0
            byte_changes[buffer.last_step + 1] -= buffer.size if buffer.last_step >= 0 else 0
        return tuple(np.cumsum(byte_changes)[:-1].tolist())


def plan_arena(model: Model, pointer_bytes: int = HOST_POINTER_BYTES) -> ArenaPlan:
    """Lifetimes and offsets of everything that TensorFlow Lite Micro would plan for `model`.

    `pointer_bytes` matters to the scratch memory of ADD_N alone.

    Raises:
        InputError: control flow that calls its own subgraph or one that is not there, more than `MAX_BUFFERS`
            buffers, more than 2 GiB, or a damaged offline plan.
    """
    lifetime_walk = _LifetimeWalk(model, pointer_bytes)
    lifetime_walk.visit_subgraph(0)
    buffers = list(lifetime_walk.iterate_buffers())
    if len(buffers) > MAX_BUFFERS:
        raise InputError(f"{model.path}: {len(buffers)} tensors to plan; at most {MAX_BUFFERS} are planned")
    total_bytes = sum(buffer.aligned_size for buffer in buffers)
    if total_bytes > MAX_ARENA_BYTES:
        raise InputError(
            f"{model.path}: its tensors take {total_bytes} bytes together; the planner counts to {MAX_ARENA_BYTES}"
        )
    offsets = place_buffers(
        [(buffer.aligned_size, buffer.first_step, buffer.last_step) for buffer in buffers],
        _read_fixed_offsets(model, buffers),
    )
    placed_buffers = tuple(
        ArenaBuffer(**{**vars(buffer), "offset": offset}) for buffer, offset in zip(buffers, offsets, strict=True)
    )
    return ArenaPlan(placed_buffers, tuple(lifetime_walk.step_operators))


def place_buffers(
    buffer_requests: list[tuple[int, int, int]], fixed_offsets: list[int | None] | None = None
) -> list[int]:
    """Offsets for buffers of (size, first step, last step), as TensorFlow Lite Micro's GreedyMemoryPlanner finds them.

    Buffers with a fixed offset are placed first; the others from the largest to the smallest, of equal ones the last
    first, each in the lowest gap between the buffers that live at the same time.
    """
    offset_by_index = fixed_offsets or [None] * len(buffer_requests)
    placement_order = [index for index, offset in enumerate(offset_by_index) if offset is not None]
    free_indices = [index for index, offset in reversed(list(enumerate(offset_by_index))) if offset is None]
    placement_order += sorted(free_indices, key=lambda index: -buffer_requests[index][0])
    sizes, first_steps, last_steps = (
        np.array([request[column] for request in buffer_requests], np.int64) for column in range(3)
    )
    offsets = np.zeros(len(buffer_requests), np.int64)
    placed_indices = np.empty(0, np.int64)  # indices, by offset
    for index in placement_order:
        offset = offset_by_index[index]
        overlapping_indices = placed_indices[
            (first_steps[placed_indices] <= last_steps[index]) & (first_steps[index] <= last_steps[placed_indices])
        ]
        offsets[index] = (
            offset
            if offset is not None
            else _find_lowest_gap(offsets[overlapping_indices], sizes[overlapping_indices], sizes[index])
        )
        insert_position = np.searchsorted(offsets[placed_indices], offsets[index], side="right")
        placed_indices = np.insert(placed_indices, insert_position, index)
    return [int(offset) for offset in offsets]


def _find_lowest_gap(start_offsets: Array, sizes: Array, size: int) -> int:
    """The lowest offset with room for `size` bytes between buffers sorted by their start."""
    end_offsets = np.maximum.accumulate(np.concatenate([[0], start_offsets + sizes]))
    fitting_gaps = np.flatnonzero(start_offsets - end_offsets[:-1] >= size)
    return int(end_offsets[fitting_gaps[0]] if len(fitting_gaps) else end_offsets[-1])


class _LifetimeWalk:
    """Walks the operators in execution order and records when each tensor is first and last used."""

    def __init__(self, model: Model, pointer_bytes: int) -> None:
        self.model = model
        self.pointer_bytes = pointer_bytes
        self.step_operators: list[Operator | None] = [None]
        self.open_subgraph_indices: list[int] = []  # on the current call path
        self.lifetime_by_tensor: dict[TensorKey, tuple[int, int]] = {}
        self.kind_by_tensor: dict[TensorKey, str] = {}
        self.scratch_buffers: list[ArenaBuffer] = []

    @property
    def current_step(self) -> int:
        return len(self.step_operators) - 1

    def mark_created(self, tensor: Tensor) -> None:
        self.lifetime_by_tensor[tensor.key] = (self.current_step, self.current_step)

    def mark_used(self, tensor: Tensor) -> None:
        first_step, _ = self.lifetime_by_tensor.get(tensor.key, (UNSET, UNSET))
        self.lifetime_by_tensor[tensor.key] = (first_step, self.current_step)

    def visit_subgraph(self, index: int) -> None:
        if index in self.open_subgraph_indices:
            raise InputError(f"{self.model.path}: subgraph {index} calls itself; no runtime would finish")
        if len(self.step_operators) > 4 * len(self.model.operators) + 1000:
            raise InputError(f"{self.model.path}: subgraphs call each other more often than there are operators")
        self.open_subgraph_indices.append(index)
        subgraph = self.model.subgraphs[index]
        for kind, tensors in (("input", subgraph.inputs), ("output", subgraph.outputs)):
            for tensor in tensors:
                self.mark_created(tensor)
                self.kind_by_tensor.setdefault(tensor.key, kind if index == 0 else "activation")
        for operator in subgraph.operators:
            self.visit_operator(operator)
        for tensor in subgraph.outputs:
            self.mark_used(tensor)
        self.open_subgraph_indices.pop()

    def visit_operator(self, operator: Operator) -> None:
        self.step_operators.append(operator)
        start_step = self.current_step
        for tensor in operator.outputs:
            if tensor is not None:
                self.mark_created(tensor)
        for body_option in operator.traits.body_option_names:
            self.step_operators.append(None)
            self.visit_subgraph(body_subgraph_index(self.model, operator, body_option))
        for tensor in operator.tensors:
            self.mark_used(tensor)
        for size in scratch_sizes(operator, self.pointer_bytes):
            name = f"scratch of {operator.location}"
            self.scratch_buffers.append(
                _build_buffer(name, "scratch", operator.subgraph_index, None, size, start_step, self.current_step)
            )

    def iterate_buffers(self) -> Iterator[ArenaBuffer]:
        """The buffers to place, in the planner's order: the tensors of all subgraphs, then scratch memory."""
        for tensor in self.model.tensors:
            if not tensor.is_constant and not tensor.is_variable and tensor.bytes:
                tensor_key = tensor.key
                first_step, last_step = self.lifetime_by_tensor.get(tensor_key, (UNSET, UNSET))
                kind = self.kind_by_tensor.get(
                    tensor_key, "activation" if tensor_key in self.lifetime_by_tensor else "unused"
                )
                yield _build_buffer(
                    tensor.name,
                    kind,
                    tensor.subgraph_index,
                    tensor.index,
                    unpacked_bytes(tensor),
                    first_step,
                    last_step,
                )
        yield from self.scratch_buffers


def body_subgraph_index(model: Model, operator: Operator, option: str) -> int:
    """The subgraph that the `option` of a control-flow operator names.

    Raises:
        InputError: there is none.
    """
    index = operator.options.get(option)
    if not isinstance(index, int) or not 0 <= index < len(model.subgraphs):
        subgraph_count = len(model.subgraphs)
        raise InputError(
            f"{model.path}: {operator.location} leads to subgraph {index} of {subgraph_count}; the file is damaged"
        )
    return index


def unpacked_bytes(tensor: Tensor) -> int:
    """What a tensor takes in the arena, where packed numbers take a byte each."""
    return tensor.element_count if tensor.dtype in PACKING_BY_DTYPE else tensor.bytes


def _build_buffer(
    name: str, kind: str, subgraph_index: int, tensor_index: int | None, size: int, first_step: int, last_step: int
) -> ArenaBuffer:
    return ArenaBuffer(
        name, kind, subgraph_index, tensor_index, size, -(-size // ALIGNMENT) * ALIGNMENT, first_step, last_step, 0
    )


def _read_fixed_offsets(model: Model, buffers: list[ArenaBuffer]) -> list[int | None] | None:
    """The offsets that the file's metadata fixes: version, subgraph, count, then one for each tensor, -1 for none."""
    content = model.metadata.get(OFFLINE_PLAN_KEY)
    if content is None:
        return None
    plan_numbers = [number for (number,) in struct.iter_unpack("<i", content[: len(content) // 4 * 4])]
    if len(plan_numbers) < 3 or plan_numbers[2] != len(model.tensors) or len(plan_numbers) < 3 + plan_numbers[2]:
        offset_count = plan_numbers[2] if len(plan_numbers) > 2 else 0
        raise InputError(f"{model.path}: its offline plan has {offset_count} offsets for {len(model.tensors)} tensors")
    if any(offset < UNSET for offset in plan_numbers[3:]):
        raise InputError(
            f"{model.path}: its offline plan has an offset of {min(plan_numbers[3:])}; it must be -1 or more"
        )
    offset_by_key = dict(zip((tensor.key for tensor in model.tensors), plan_numbers[3:], strict=False))
    file_offsets = [
        UNSET if buffer.tensor_index is None else offset_by_key.get((buffer.subgraph_index, buffer.tensor_index), UNSET)
        for buffer in buffers
    ]
    return [None if offset == UNSET else offset for offset in file_offsets]
