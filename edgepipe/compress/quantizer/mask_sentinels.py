"""Mask fills (-1e9, the least float, minus infinity): constants that stand for "ignore this", not for a number.

A sentinel in a tensor's range would leave no codes for its real values: attention becomes uniform. A sentinel is
recognized by where it goes: from a large negative constant through SELECT, ADD, SUB, MUL, padding and operators that
move values, into operators for which anything far below the other values is the same (softmax, maxima). Tensors on that
way are calibrated on their real values; what is masked saturates just below them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.kernel_requirements import KERNEL_REQUIREMENTS, ScaleRule
from edgepipe.compress.quantizer.mutable_graph import MutableGraph

MIN_SENTINEL = 9_000.0  # magnitude from which a constant may be one; frameworks use 1e4, 65504, 1e9 and the least float
SENTINEL = 10_000.0  # magnitude of what all of them are replaced with
SOFTMAX_MARGIN = 6.0  # below the least real score, so that exp gives less than one code of an 8-bit probability

SOFTMAX_SINKS = frozenset({"SOFTMAX", "LOG_SOFTMAX", "EXP", "LOGISTIC"})
MAXIMUM_SINKS = frozenset({"MAX_POOL_2D", "REDUCE_MAX", "ARG_MAX", "TOPK_V2", "MAXIMUM"})
COMBINING_OPERATORS = frozenset({"ADD", "SUB", "MUL", "SELECT", "SELECT_V2", "PADV2", "CONCATENATION", "PACK"})
ENTRY_OPERATORS = frozenset({"ADD", "SUB", "MUL", "SELECT", "SELECT_V2", "PADV2"})


@final
@dataclass(frozen=True)
class MaskedTensors:
    """The constants that are sentinels, and the computed tensors that hold masked values, by index."""

    constants: set[int] = field(default_factory=set)
    tensors: set[int] = field(default_factory=set)


def find_masked_tensors(index: GraphIndex) -> MaskedTensors:
    """The sentinels of a float graph, and the tensors on their way to a softmax or maximum.

    A constant whose way ends anywhere else is an ordinary number.
    """
    masked_tensors = MaskedTensors()
    for constant in sorted(index.float_tensors):
        if _may_be_sentinel(index, constant) and (reached_tensors := _follow(index, constant)):
            masked_tensors.constants.add(constant)
            masked_tensors.tensors.update(reached_tensors)
    return masked_tensors


def _may_be_sentinel(index: GraphIndex, tensor: int) -> bool:
    readers = index.readers_by_tensor.get(tensor, [])
    if not readers or any(index.kinds[number] not in ENTRY_OPERATORS for number in readers):
        return False
    constant = index.constant(tensor)
    return constant is not None and bool(constant.size) and float(np.abs(constant).max()) >= MIN_SENTINEL


def _follow(index: GraphIndex, constant: int) -> set[int]:
    """The tensors that a constant reaches; empty if it reaches anything but softmaxes and maxima."""
    reached_tensors: set[int] = set()
    pending_tensors = [constant]
    while pending_tensors:
        tensor = pending_tensors.pop()
        readers = index.readers_by_tensor.get(tensor, [])
        if tensor in index.graph_outputs or not readers:
            return set()
        for number in readers:
            kind = index.kinds[number]
            if kind in SOFTMAX_SINKS | MAXIMUM_SINKS:
                continue
            if kind not in COMBINING_OPERATORS and not moves_values(kind):
                return set()
            new_tensors = set(index.float_outputs(number)) - reached_tensors
            reached_tensors |= new_tensors
            pending_tensors += sorted(new_tensors)
    return reached_tensors


def moves_values(kind: str) -> bool:
    """Whether an operator only moves the values of its first input, so that a sentinel stays one."""
    requirement = KERNEL_REQUIREMENTS.get(kind)
    return requirement is not None and requirement.scale_rule is ScaleRule.OF_INPUT and kind not in MAXIMUM_SINKS


def replace_sentinels(graph: MutableGraph) -> bool:
    """Make all sentinels of a float graph finite and equal; True if there are any."""
    index = GraphIndex(graph)
    constants = find_masked_tensors(index).constants
    for tensor in constants:
        constant = index.constant(tensor)
        assert constant is not None, "sentinels are constants"
        finite_constant = np.where(np.abs(constant) >= MIN_SENTINEL, np.sign(constant) * SENTINEL, constant)
        replacement = graph.add_float_tensor(graph.name(tensor), constant.shape, finite_constant)
        for number in index.readers_by_tensor[tensor]:
            operator = index.operators[number]
            operator.inputs = [replacement if int(each) == tensor else int(each) for each in operator.inputs]
    return bool(constants)


def masked_tensor_names(index: GraphIndex) -> set[str]:
    """The names of the tensors that hold masked values, in a graph from `replace_sentinels`."""
    return {index.names[tensor] for tensor in find_masked_tensors(index).tensors}


def extend_masked_ranges(index: GraphIndex, ranges: Mapping[str, ActivationRange]) -> dict[str, ActivationRange]:
    """Ranges in which masked values, saturated, lie far enough below the real ones for every reader.

    Args:
        index: a float graph from `replace_sentinels`.
        ranges: of the real values, by tensor name.
    """
    masked_tensors, extended_ranges = find_masked_tensors(index), dict(ranges)
    for number in reversed(range(len(index.operators))):
        for tensor in index.float_outputs(number):
            if tensor in masked_tensors.tensors and index.names[tensor] in ranges:
                low, high = extended_ranges[index.names[tensor]]
                extended_ranges[index.names[tensor]] = _extend_range(index, tensor, (low, high), extended_ranges)
    for tensor in masked_tensors.constants:
        real_range = _smallest_value(index, tensor), _largest_value(index, tensor, ranges)
        extended_ranges[index.names[tensor]] = _extend_range(index, tensor, real_range, extended_ranges)
    return extended_ranges


def _extend_range(
    index: GraphIndex, tensor: int, real_range: ActivationRange, ranges: Mapping[str, ActivationRange]
) -> ActivationRange:
    """The range of a tensor that holds sentinels, given the extended ranges of what is computed from it."""
    low, high = real_range
    bounds = [_needed_bound(index, number, tensor, low, ranges) for number in index.readers_by_tensor.get(tensor, [])]
    return min([low, *bounds]), max([high, *bounds])


def _needed_bound(
    index: GraphIndex, number: int, tensor: int, low: float, ranges: Mapping[str, ActivationRange]
) -> float:
    """The value at which masked elements of a tensor, whose real values begin at `low`, may saturate for one reader."""
    kind = index.kinds[number]
    if kind in SOFTMAX_SINKS:
        return low - SOFTMAX_MARGIN
    outputs = index.float_outputs(number)
    if kind in MAXIMUM_SINKS or not outputs:
        return low
    output_low, output_high = ranges[index.names[outputs[0]]]
    others = [each for each in index.inputs[number] if each != tensor and each in index.float_tensors]
    if kind in ("ADD", "SUB") and others:
        other_high = _largest_value(index, others[0], ranges)
        is_subtracted = kind == "SUB" and index.inputs[number][1] == tensor
        return other_high - output_low if is_subtracted else output_low - other_high
    if kind == "MUL":
        return _needed_factor(index, number, tensor, output_low, output_high)
    return output_low


def _needed_factor(index: GraphIndex, number: int, tensor: int, output_low: float, output_high: float) -> float:
    """The bound of a factor: a sentinel keeps its sign, as it multiplies a mask of 0 and 1 (or -1); a tensor that is
    scaled by a constant is bounded by the quotient."""
    constant = index.constant(tensor)
    if constant is not None:
        return float(np.sign(constant.flat[np.abs(constant).argmax()])) * max(-output_low, output_high)
    others = [index.constant(each) for each in index.inputs[number] if each != tensor]
    scale = float(others[0].flat[0]) if others and others[0] is not None and others[0].size == 1 else 1.0
    return output_low / scale if 0 < scale < MIN_SENTINEL else output_low


def _smallest_value(index: GraphIndex, tensor: int) -> float:
    constant = index.constant(tensor)
    assert constant is not None, "sentinels are constants"
    real_values = constant[np.abs(constant) < MIN_SENTINEL]
    return float(real_values.min()) if real_values.size else 0.0


def _largest_value(index: GraphIndex, tensor: int, ranges: Mapping[str, ActivationRange]) -> float:
    constant = index.constant(tensor)
    if constant is None:
        return ranges[index.names[tensor]][1]
    real_values = constant[np.abs(constant) < MIN_SENTINEL]
    return float(real_values.max()) if real_values.size else 0.0
