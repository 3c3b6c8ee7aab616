"""Which operators of a float graph can be computed in integers, and why the others cannot."""

from collections.abc import Mapping

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.kernel_requirements import (
    EQUALITY_OPERATORS,
    INTEGER_CASTS,
    TABULATED_OPERATORS,
    BitWidth,
    ScaleRule,
    requirement_of,
)
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy
from edgepipe.tflite.operator_facts import traits_of

MAX_COMPARED_WIDTH = 255.0  # of the range of an 8-bit tensor that is compared
MAX_NAMES_SHOWN = 3  # operators that a note names; the rest are counted


def float_reason(index: GraphIndex, number: int, bits: BitWidth, ranges: Mapping[str, ActivationRange]) -> str:
    """Why an operator cannot be computed in integers of these bits; empty if it can.

    Args:
        index: the float graph.
        number: of the operator.
        bits: of its activations.
        ranges: of activations, by tensor name.
    """
    requirement = requirement_of(index.kinds[number])
    if requirement is None:
        return "LiteRT has no integer kernel for it"
    if index.kinds[number] in TABULATED_OPERATORS and bits == 16:
        return "LiteRT has no integer kernel for it, and a table, which stands for it in 8 bits, is too large for 16"
    if bits not in requirement.bit_widths:
        return f"LiteRT has no {bits}-bit kernel for it"
    if index.kinds[number] in TABULATED_OPERATORS and not _has_one_variable(index, number):
        return "LiteRT has no integer kernel for it, and a table holds functions of one tensor and single numbers only"
    if index.kinds[number] == "CAST" and index.graph.dtype(index.inputs[number][0]) not in INTEGER_CASTS[bits]:
        return f"LiteRT has no integer kernel for a cast from {index.graph.dtype(index.inputs[number][0])}"
    if not _has_constant_weights(index, number):
        return "its integer kernels take constant weights and biases only"
    if bits == 8 and _compares_wide_ranges(index, number, ranges):
        return f"LiteRT's 8-bit kernels compare wrongly where a range is wider than {MAX_COMPARED_WIDTH:g}"
    return ""


def float_reason_notes(index: GraphIndex, policy: BitWidthPolicy, ranges: Mapping[str, ActivationRange]) -> list[str]:
    """A note on each kind of operator that stays in float although `policy` gives it bits, with the reason."""
    names_by_reason: dict[tuple[str, str], list[str]] = {}
    for number, kind in enumerate(index.kinds):
        bits = policy(kind, index.output_names(number))
        if bits is None or not (index.float_inputs(number) or index.float_outputs(number)):
            continue
        if kind == "CAST" and not index.float_outputs(number):
            continue  # of an input that the user keeps in float
        if reason := float_reason(index, number, bits, ranges):
            names_by_reason.setdefault((kind, reason), []).append(index.output_names(number)[0].split(";")[0])
    return [
        f"{kind} stays in float in {_names_text(names)}: {reason}" for (kind, reason), names in names_by_reason.items()
    ]


def _names_text(names: list[str]) -> str:
    rest_text = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:MAX_NAMES_SHOWN]) + rest_text


def _has_one_variable(index: GraphIndex, number: int) -> bool:
    """Whether an operator is a function of one float tensor and of constants that are single numbers."""
    constants = [index.constant(tensor) for tensor in index.inputs[number]]
    is_float = all(tensor in index.float_tensors for tensor in index.inputs[number])
    has_single_numbers = all(constant is None or constant.size == 1 for constant in constants)
    return is_float and has_single_numbers and sum(constant is None for constant in constants) == 1


def _has_constant_weights(index: GraphIndex, number: int) -> bool:
    """Whether the weights and biases of an operator that has filters are constants; FULLY_CONNECTED computes some."""
    layout = traits_of(index.kinds[number]).filter_layout
    if layout is None:
        return True
    inputs = index.inputs[number]
    has_constant_weights = index.constant(inputs[1]) is not None
    bias = inputs[layout.bias_position] if len(inputs) > layout.bias_position else -1
    has_constant_bias = bias < 0 or index.constant(bias) is not None
    return has_constant_bias and (has_constant_weights or index.kinds[number] == "FULLY_CONNECTED")


def _compares_wide_ranges(index: GraphIndex, number: int, ranges: Mapping[str, ActivationRange]) -> bool:
    """Whether an operator compares 8-bit tensors with scales of 1 or more: LiteRT's kernels compute nonsense then.

    Equality with a constant holds, because both sides have one scale.
    """
    requirement = requirement_of(index.kinds[number])
    if requirement is None or requirement.scale_rule is not ScaleRule.COMPARED:
        return False
    if index.kinds[number] in EQUALITY_OPERATORS and any(
        index.constant(index.inputs[number][position]) is not None for position in index.float_inputs(number)
    ):
        return False
    computed_ranges = [ranges[index.names[t]] for t in index.inputs[number] if index.names[t] in ranges]
    return any(max(high, 0.0) - min(low, 0.0) >= MAX_COMPARED_WIDTH for low, high in computed_ranges)
