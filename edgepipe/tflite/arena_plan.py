"""When each tensor lives, and where TensorFlow Lite Micro's planner puts it in the arena.

Lifetimes and placement follow TensorFlow Lite Micro: an input lives from the start, an output to the end, any other
tensor from the operator that writes it to the last one that reads it; buffers are placed from the largest to the
smallest, each at the lowest offset where it overlaps none that lives at the same time. Constants stay in the file and
variables are allocated apart, so neither is planned.

Source: tensorflow/tflite-micro, micro_allocation_info.cc and memory_planner/greedy_memory_planner.cc
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite.kernel_scratch import scratch
from edgepipe.tflite.model import Model, Operator, Tensor

ALIGNMENT = 16  # bytes; MicroArenaBufferAlignment()
MAX_BUFFERS = 10_000  # placing them takes a second or two; the largest networks have some hundreds
MAX_BYTES = 2**31 - 1  # the planner counts in 32-bit integers
OFFLINE = "OfflineMemoryAllocation"  # the metadata in which Vela and others fix offsets
UNSET = -1
_BODIES = {
    "IF": ("thenSubgraphIndex", "elseSubgraphIndex"),
    "WHILE": ("condSubgraphIndex", "bodySubgraphIndex"),
    "CALL_ONCE": ("initSubgraphIndex",),
}


@dataclass(frozen=True)
class Buffer:
    """One planned piece of the arena: a tensor, or scratch memory of an operator's kernel.

    `first` and `last` are steps of the plan, both inclusive; `size` is `bytes` rounded up to 16.
    """

    name: str
    kind: str  # input, output, activation, unused, scratch
    subgraph: int
    tensor: int | None  # its index in the subgraph; None for scratch memory
    bytes: int
    size: int
    first: int
    last: int
    offset: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size

    def lives(self, step: int) -> bool:
        """Whether it holds something at `step`."""
        return self.first <= step <= self.last


@dataclass(frozen=True)
class Plan:
    """The planned arena. Step 0 is before the first operator; `steps` names what runs at each."""

    buffers: tuple[Buffer, ...]
    steps: tuple[Operator | None, ...]  # None: a subgraph begins

    @property
    def peak(self) -> int:
        """Bytes of the planned arena: what TensorFlow Lite Micro calls the head."""
        return max((buffer.end for buffer in self.buffers), default=0)

    @cached_property
    def live_bytes(self) -> tuple[int, ...]:
        """Bytes of the tensors alive at each step, without alignment, gaps and scratch memory."""
        return self._over_time([buffer for buffer in self.buffers if buffer.kind != "scratch"])

    @cached_property
    def scratch_bytes(self) -> tuple[int, ...]:
        """Bytes of kernels' scratch memory at each step."""
        return self._over_time([buffer for buffer in self.buffers if buffer.kind == "scratch"])

    @property
    def naive_peak(self) -> int:
        """The most bytes of tensors that live at once: no plan needs less."""
        return max(self.live_bytes, default=0)

    @property
    def peak_step(self) -> int:
        """The first step at which `naive_peak` is reached."""
        return self.live_bytes.index(self.naive_peak)

    @property
    def peak_operator(self) -> Operator | None:
        """The operator at which `naive_peak` is reached; None where there is none."""
        return self.steps[self.peak_step]

    @property
    def alive_at_peak(self) -> tuple[Buffer, ...]:
        """The tensors that make up `naive_peak`, the largest first."""
        alive = [buffer for buffer in self.buffers if buffer.kind != "scratch" and buffer.lives(self.peak_step)]
        return tuple(sorted(alive, key=lambda buffer: -buffer.bytes))

    def _over_time(self, buffers: list[Buffer]) -> tuple[int, ...]:
        change = np.zeros(len(self.steps) + 1, np.int64)
        for buffer in buffers:
            change[max(buffer.first, 0)] += buffer.bytes if buffer.last >= 0 else 0
            change[buffer.last + 1] -= buffer.bytes if buffer.last >= 0 else 0
        return tuple(np.cumsum(change)[:-1].tolist())


def plan(model: Model) -> Plan:
    """Lifetimes and offsets of everything that TensorFlow Lite Micro would plan for `model`.

    Raises:
        InputError: control flow that comes back to its own subgraph or leads nowhere, more than `MAX_BUFFERS` buffers,
            more than 2 GiB, or a damaged offline plan.
    """
    walk = _Walk(model)
    walk.subgraph(0)
    wanted = list(walk.buffers())
    if len(wanted) > MAX_BUFFERS:
        raise InputError(f"{model.path}: {len(wanted)} tensors to plan; at most {MAX_BUFFERS} are planned")
    total = sum(item.size for item in wanted)
    if total > MAX_BYTES:
        raise InputError(f"{model.path}: its tensors take {total} bytes together; the planner counts to {MAX_BYTES}")
    offsets = place([(item.size, item.first, item.last) for item in wanted], _fixed(model, wanted))
    placed = tuple(Buffer(**{**vars(item), "offset": offset}) for item, offset in zip(wanted, offsets, strict=True))
    return Plan(placed, tuple(walk.steps))


def place(wanted: list[tuple[int, int, int]], fixed: list[int | None] | None = None) -> list[int]:
    """Offsets for buffers of (size, first step, last step), as TensorFlow Lite Micro's GreedyMemoryPlanner finds them.

    Buffers with a `fixed` offset come first and stay there; the others go from the largest to the smallest, of equal
    ones the last first, each into the lowest gap between the buffers that live at the same time.
    """
    held = fixed or [None] * len(wanted)
    order = [index for index, offset in enumerate(held) if offset is not None]
    free = [index for index, offset in reversed(list(enumerate(held))) if offset is None]
    order += sorted(free, key=lambda index: -wanted[index][0])
    sizes, firsts, lasts = (np.array([item[part] for item in wanted], np.int64) for part in range(3))
    offsets = np.zeros(len(wanted), np.int64)
    placed = np.empty(0, np.int64)  # indices, by offset
    for index in order:
        given = held[index]
        active = placed[(firsts[placed] <= lasts[index]) & (firsts[index] <= lasts[placed])]
        offsets[index] = given if given is not None else _lowest_gap(offsets[active], sizes[active], sizes[index])
        at = np.searchsorted(offsets[placed], offsets[index], side="right")
        placed = np.insert(placed, at, index)
    return [int(offset) for offset in offsets]


def _lowest_gap(starts: Array, sizes: Array, wanted: int) -> int:
    """The lowest offset with room for `wanted` bytes between buffers sorted by their start."""
    ends = np.maximum.accumulate(np.concatenate([[0], starts + sizes]))
    fits = np.flatnonzero(starts - ends[:-1] >= wanted)
    return int(ends[fits[0]] if len(fits) else ends[-1])


class _Walk:
    """Goes through the operators in the order of execution and notes when each tensor is first and last used."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.steps: list[Operator | None] = [None]
        self.open: list[int] = []  # subgraphs that are being walked through
        self.life: dict[tuple[int, int], tuple[int, int]] = {}
        self.kinds: dict[tuple[int, int], str] = {}
        self.scratch: list[Buffer] = []

    @property
    def now(self) -> int:
        return len(self.steps) - 1

    def created(self, tensor: Tensor) -> None:
        self.life[tensor.subgraph, tensor.index] = (self.now, self.now)

    def used(self, tensor: Tensor) -> None:
        first, _ = self.life.get((tensor.subgraph, tensor.index), (UNSET, UNSET))
        self.life[tensor.subgraph, tensor.index] = (first, self.now)

    def subgraph(self, index: int) -> None:
        if index in self.open:
            raise InputError(f"{self.model.path}: subgraph {index} leads back to itself; no runtime ends on it")
        if len(self.steps) > 4 * len(self.model.operators) + 1000:
            raise InputError(f"{self.model.path}: subgraphs call each other more often than there are operators")
        self.open.append(index)
        graph = self.model.subgraphs[index]
        for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
            for tensor in tensors:
                self.created(tensor)
                self.kinds.setdefault((index, tensor.index), kind if index == 0 else "activation")
        for operator in graph.operators:
            self.operator(operator)
        for tensor in graph.outputs:
            self.used(tensor)
        self.open.pop()

    def operator(self, operator: Operator) -> None:
        self.steps.append(operator)
        started = self.now
        for tensor in operator.outputs:
            if tensor is not None:
                self.created(tensor)
        for option in _BODIES.get(operator.name, ()):
            self.steps.append(None)
            self.subgraph(body(self.model, operator, option))
        for tensor in operator.tensors:
            self.used(tensor)
        for size in scratch(operator):
            name = f"scratch of {operator.place}"
            self.scratch.append(_buffer(name, "scratch", operator.subgraph, None, size, started, self.now))

    def buffers(self) -> Iterator[Buffer]:
        """What is to be placed, in the planner's order: the tensors of all subgraphs, then scratch memory."""
        for tensor in self.model.tensors:
            if not tensor.constant and not tensor.variable and tensor.bytes:
                key = (tensor.subgraph, tensor.index)
                first, last = self.life.get(key, (UNSET, UNSET))
                kind = self.kinds.get(key, "activation" if key in self.life else "unused")
                yield _buffer(tensor.name, kind, tensor.subgraph, tensor.index, unpacked_bytes(tensor), first, last)
        yield from self.scratch


def body(model: Model, operator: Operator, option: str) -> int:
    """The subgraph that the `option` of a control-flow operator names.

    Raises:
        InputError: there is none.
    """
    found = operator.options.get(option)
    if not isinstance(found, int) or not 0 <= found < len(model.subgraphs):
        count = len(model.subgraphs)
        raise InputError(f"{model.path}: {operator.place} leads to subgraph {found} of {count}; the file is damaged")
    return found


def unpacked_bytes(tensor: Tensor) -> int:
    """What a tensor takes in the arena, where numbers of 4 bits take a byte each."""
    return tensor.elements if tensor.dtype in ("int4", "uint4", "int2") else tensor.bytes


def _buffer(name: str, kind: str, subgraph: int, tensor: int | None, size: int, first: int, last: int) -> Buffer:
    return Buffer(name, kind, subgraph, tensor, size, -(-size // ALIGNMENT) * ALIGNMENT, first, last, 0)


def _fixed(model: Model, wanted: list[Buffer]) -> list[int | None] | None:
    """The offsets that the file's metadata fixes: version, subgraph, count, then one for each tensor, -1 for none."""
    content = model.metadata.get(OFFLINE)
    if content is None:
        return None
    numbers = [number for (number,) in struct.iter_unpack("<i", content[: len(content) // 4 * 4])]
    if len(numbers) < 3 or numbers[2] != len(model.tensors) or len(numbers) < 3 + numbers[2]:
        found = numbers[2] if len(numbers) > 2 else 0
        raise InputError(f"{model.path}: its offline plan has {found} offsets for {len(model.tensors)} tensors")
    if any(offset < UNSET for offset in numbers[3:]):
        raise InputError(f"{model.path}: its offline plan has an offset of {min(numbers[3:])}; it must be -1 or more")
    by_tensor = dict(zip(((t.subgraph, t.index) for t in model.tensors), numbers[3:], strict=False))
    found_offsets = [by_tensor.get((item.subgraph, item.tensor or 0), UNSET) if item.kind != "scratch" else UNSET
                     for item in wanted]  # fmt: skip
    return [None if offset == UNSET else offset for offset in found_offsets]
