"""Equality with a constant: Masking(-10), -999 for a missing value. x == c stays decidable in integers.

In the range of x, a constant far from all other values would leave no codes for those. Where what equals the constant
is masked, and so read by nothing else, the range is that of the other values, a little wider on the constant's side:
the constant, and what equals it, saturate to a code of their own just beyond the real values. Who feeds -999 in the
scale of a quantized input, saturates to that code too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.kernel_requirements import EQUALITY_OPERATORS
from edgepipe.core.arrays import Array

MARGIN = 0.1  # of the range: values so far beyond those of the samples are clipped, and not taken for the constant
MAX_STRETCH = 2.0  # growth of a range, with the constant in it, from which a note says so
MOVING_OPERATORS = frozenset(
    {"RESHAPE", "EXPAND_DIMS", "SQUEEZE", "STRIDED_SLICE", "SLICE", "TRANSPOSE", "UNPACK", "SPLIT", "SPLIT_V", "TILE"}
)
# operators through which a comparison decides what is masked
MASK_OPERATORS = MOVING_OPERATORS | {
    *("CAST", "SELECT", "SELECT_V2", "LOGICAL_NOT", "LOGICAL_AND", "LOGICAL_OR", "REDUCE_ANY", "REDUCE_ALL"),
    *("REDUCE_MAX", "REDUCE_MIN", "MUL", "SUB", "BROADCAST_TO", "EQUAL", "NOT_EQUAL"),
}


@final
@dataclass(frozen=True)
class EqualitySentinel:
    """A constant that tensors are compared with: those that hold the same values, moved, and who else reads them."""

    value: float
    root: int  # the tensor that the others are moved from
    tensors: frozenset[int]
    comparisons: frozenset[int]  # operators
    gates: tuple[int, ...]  # operators that mask what equals the constant
    other_readers: tuple[int, ...]  # operators that read it as a number

    def real_values(self, array: Array) -> Array:
        """The values that do not equal the constant."""
        return np.asarray(array[array != np.float32(self.value)])


def find_equality_sentinels(index: GraphIndex) -> list[EqualitySentinel]:
    """The constants that a float graph compares computed tensors with, one for each tensor."""
    values_by_root: dict[int, set[float]] = {}
    for number, kind in enumerate(index.kinds):
        if kind in EQUALITY_OPERATORS and (operands := _compared_operands(index, number)):
            values_by_root.setdefault(_find_root(index, operands[0]), set()).add(operands[1])
    return [
        _describe_sentinel(index, root, next(iter(values)))
        for root, values in values_by_root.items()
        if len(values) == 1
    ]


def _compared_operands(index: GraphIndex, number: int) -> tuple[int, float] | None:
    """The computed tensor and the single constant of a comparison; None if there is no such pair."""
    operands = index.inputs[number]
    constants = [index.constant(each) if each in index.float_tensors else None for each in operands]
    for tensor, constant in zip(operands, constants[::-1], strict=True):
        is_computed = tensor in index.float_tensors and index.constant(tensor) is None
        if is_computed and constant is not None and constant.size and (constant == constant.flat[0]).all():
            return tensor, float(constant.flat[0])
    return None


def _find_root(index: GraphIndex, tensor: int) -> int:
    producer = index.producer_by_tensor.get(tensor)
    if producer is None or index.kinds[producer] not in MOVING_OPERATORS:
        return tensor
    return _find_root(index, index.inputs[producer][index.float_inputs(producer)[0]])


def _describe_sentinel(index: GraphIndex, root: int, value: float) -> EqualitySentinel:
    tensors = frozenset(_follow_moves(index, root))
    readers = dict.fromkeys(number for tensor in sorted(tensors) for number in index.readers_by_tensor.get(tensor, []))
    comparisons = frozenset(
        number
        for number in readers
        if index.kinds[number] in EQUALITY_OPERATORS and _compared_operands(index, number) is not None
    )
    others = [number for number in readers if number not in comparisons and index.kinds[number] not in MOVING_OPERATORS]
    gates = tuple(number for number in others if _is_gate(index, number, tensors, comparisons))
    return EqualitySentinel(
        value, root, tensors, comparisons, gates, tuple(number for number in others if number not in gates)
    )


def _follow_moves(index: GraphIndex, root: int) -> Iterator[int]:
    yield root
    for number in index.readers_by_tensor.get(root, []):
        if index.kinds[number] in MOVING_OPERATORS:
            for output in index.float_outputs(number):
                yield from _follow_moves(index, output)


def _is_gate(index: GraphIndex, number: int, tensors: frozenset[int], comparisons: frozenset[int]) -> bool:
    """Whether an operator keeps or drops the compared values by what a comparison says."""
    if index.kinds[number] not in ("MUL", "SELECT", "SELECT_V2"):
        return False
    masks = [each for each in index.inputs[number] if each not in tensors]
    return any(_follows_from(index, mask, comparisons) for mask in masks)


def _follows_from(index: GraphIndex, tensor: int, comparisons: frozenset[int]) -> bool:
    """Whether a tensor is computed from the result of a comparison by operators on masks."""
    pending_tensors, visited_operators = [tensor], set()
    while pending_tensors:
        producer = index.producer_by_tensor.get(pending_tensors.pop())
        if producer is None or producer in visited_operators:
            continue
        if producer in comparisons:
            return True
        visited_operators.add(producer)
        if index.kinds[producer] in MASK_OPERATORS:
            pending_tensors += index.inputs[producer]
    return False


def value_filters(index: GraphIndex) -> dict[str, Callable[[Array], Array]]:
    """What takes the values of a tensor that do not equal its constant, by tensor name."""
    return {
        index.names[tensor]: sentinel.real_values
        for sentinel in find_equality_sentinels(index)
        for tensor in sentinel.tensors
    }


@final
@dataclass(frozen=True)
class SeparatedRanges:
    """Ranges of activations in which compared constants have codes of their own, and notes where they cannot."""

    by_tensor: dict[str, ActivationRange] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def separate_equal_values(
    index: GraphIndex, ranges: Mapping[str, ActivationRange], feeds: Mapping[str, Array]
) -> SeparatedRanges:
    """Ranges in which compared constants have codes of their own.

    Args:
        index: a float graph.
        ranges: of the values that do not equal the constants, by tensor name.
        feeds: samples of the graph's inputs, by tensor name.
    """
    separated = SeparatedRanges(dict(ranges))
    for sentinel in find_equality_sentinels(index):
        if index.names[sentinel.root] in ranges:
            separated = _separate(index, sentinel, separated, feeds)
    return separated


def _separate(
    index: GraphIndex, sentinel: EqualitySentinel, separated: SeparatedRanges, feeds: Mapping[str, Array]
) -> SeparatedRanges:
    low, high = separated.by_tensor[index.names[sentinel.root]]
    readers = [] if low <= sentinel.value <= high else _number_readers(index, sentinel, separated.by_tensor, feeds)
    widest_range = min(low, sentinel.value), max(high, sentinel.value)
    new_range = widest_range if readers else _add_margin(low, high, sentinel.value)
    members = {index.names[tensor]: new_range for tensor in sentinel.tensors}
    stretch = (new_range[1] - new_range[0]) / (high - low)
    notes = [_stretch_note(index, sentinel, readers[0], stretch)] if readers and stretch > MAX_STRETCH else []
    return replace(separated, by_tensor={**separated.by_tensor, **members}, notes=(*separated.notes, *notes))


def _number_readers(
    index: GraphIndex, sentinel: EqualitySentinel, ranges: Mapping[str, ActivationRange], feeds: Mapping[str, Array]
) -> list[int]:
    """The operators that read the constant as a number, if the samples hold it at all."""
    feed = feeds.get(index.names[sentinel.root])
    if feed is not None and not (feed == np.float32(sentinel.value)).any():
        return []
    is_output = [-1] if any(tensor in index.graph_outputs for tensor in sentinel.tensors) else []
    passing_gates = [number for number in sentinel.gates if _passes(index, number, sentinel.value, ranges)]
    return [*sentinel.other_readers, *passing_gates, *is_output]


def _passes(index: GraphIndex, gate: int, value: float, ranges: Mapping[str, ActivationRange]) -> bool:
    """Whether values that equal the constant come through a gate: a step whose features are not all missing."""
    low, high = ranges[index.names[index.outputs[gate][0]]]
    return low <= value <= high


def _add_margin(low: float, high: float, value: float) -> ActivationRange:
    """A range that is wider on the side of a value beyond it, at most up to the value."""
    margin = MARGIN * (high - low)
    if value < low:
        return max(value, low - margin), high
    return low, min(value, high + margin) if value > high else high


def _stretch_note(index: GraphIndex, sentinel: EqualitySentinel, reader: int, stretch: float) -> str:
    reader_text = "the model outputs it" if reader < 0 else f"{index.kinds[reader]} reads it as a number"
    return (
        f"'{index.names[sentinel.root].split(';')[0]}' is compared with {sentinel.value:g}, and {reader_text}: with "
        f"it the range is {stretch:.3g} times that of the other values; replace it by a number among them, where masked"
    )
