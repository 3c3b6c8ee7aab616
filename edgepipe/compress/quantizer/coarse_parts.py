"""Parts of one 8-bit tensor that get few codes, because other parts have a far wider range.

Boxes in pixels and scores from 0 to 1 in one tensor have one scale: 320 / 255 leaves a score two codes. No quantizer
can mend that, the model's author can.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy
from edgepipe.core.arrays import Array
from edgepipe.tflite.model import Model, Operator, Tensor

CODE_COUNT = 255  # steps of an 8-bit range
MIN_CODES = 20  # of a part that is not named
MIN_WIDTH = 1e-6  # of the range of a part that says anything
JOINING_OPERATORS = ("CONCATENATION", "PACK")
PROBABILITY_STEP = 1 / 256  # prescribed for SOFTMAX and LOGISTIC: a class that is rare needs no codes
MAX_PARTS_SHOWN = 5
REMEDY = (
    "make them separate outputs (split_outputs does, of a concatenation), scale them alike (boxes as shares of the "
    "picture), or use scheme int16x8"
)
INNER_REMEDY = "scale them alike before they are joined, or use scheme int16x8 or mixed"


def joined_part_notes(
    lite: Model,
    ranges: Mapping[str, ActivationRange],
    policy: BitWidthPolicy,
    joined_names: Collection[str],
) -> list[str]:
    """A note on each concatenation in 8 bits with a part that gets fewer than `MIN_CODES` codes.

    Args:
        lite: the float model, decomposed.
        ranges: of its activations, by tensor name.
        policy: the bits of each operator.
        joined_names: the tensors that are still computed as they are in `lite`; others have been split.
    """
    return [
        _join_note(lite, operator, coarse_parts, ranges)
        for operator in lite.operators
        if operator.name in JOINING_OPERATORS and policy(operator.name, [each.name for each in _outputs(operator)]) == 8
        if all(tensor.name in joined_names for tensor in _outputs(operator))
        if (coarse_parts := list(_coarse_inputs(operator, ranges)))
    ]


def _outputs(operator: Operator) -> list[Tensor]:
    return [tensor for tensor in operator.outputs if tensor is not None]


def _coarse_inputs(operator: Operator, ranges: Mapping[str, ActivationRange]) -> Iterator[tuple[Tensor, float]]:
    """The computed inputs of a concatenation with few codes, and how many."""
    joint_name = _outputs(operator)[0].name
    if joint_name not in ranges:
        return
    for tensor in operator.inputs:
        if tensor is None or tensor.is_constant or tensor.name not in ranges:
            continue
        code_count = count_codes(ranges[tensor.name], ranges[joint_name])
        if has_few_codes(ranges[tensor.name], code_count):
            yield tensor, code_count


def count_codes(part_range: ActivationRange, joint_range: ActivationRange) -> float:
    """How many codes a part gets in the range of the tensor that it is joined into."""
    return CODE_COUNT * _width(part_range) / max(_width(joint_range), MIN_WIDTH)


def has_few_codes(part_range: ActivationRange, code_count: float) -> bool:
    """Whether a part that says anything gets too few codes to say it."""
    return _width(part_range) > MIN_WIDTH and code_count < MIN_CODES


def _width(activation_range: ActivationRange) -> float:
    """Of a range with zero included."""
    return max(activation_range[1], 0.0) - min(activation_range[0], 0.0)


def _join_note(
    lite: Model, operator: Operator, coarse_parts: list[tuple[Tensor, float]], ranges: Mapping[str, ActivationRange]
) -> str:
    joint = _outputs(operator)[0]
    is_output = joint.key in {tensor.key for tensor in lite.outputs}
    parts_text = ", ".join(
        f"'{_short_name(tensor)}' ({range_text(ranges[tensor.name])}) gets {code_count:.1f}"
        for tensor, code_count in coarse_parts[:MAX_PARTS_SHOWN]
    )
    rest_text = f" and {len(coarse_parts) - MAX_PARTS_SHOWN} more" if len(coarse_parts) > MAX_PARTS_SHOWN else ""
    return (
        f"'{_short_name(joint)}' ({range_text(ranges[joint.name])}) joins very different ranges: of its {CODE_COUNT} "
        f"steps {parts_text}{rest_text}; {REMEDY if is_output else INNER_REMEDY}"
    )


def _short_name(tensor: Tensor) -> str:
    return tensor.name.split(";")[0]


def range_text(activation_range: ActivationRange) -> str:
    """A range for a note."""
    return f"{activation_range[0]:.3g} to {activation_range[1]:.3g}"


def coarse_channel_notes(name: str, float_array: Array, step: float) -> list[str]:
    """A note on the channels of an output that span fewer than `MIN_CODES` of its steps from zero, while others do not.

    Args:
        name: of the output.
        float_array: its values in float, (samples, ..., channels).
        step: of its integers; 0 for an output that is computed in float.
    """
    if step in (0, PROBABILITY_STEP) or float_array.ndim < 2 or not float_array.size:
        return []
    channel_arrays = float_array.reshape(-1, float_array.shape[-1])
    widths = np.maximum(channel_arrays.max(axis=0), 0) - np.minimum(channel_arrays.min(axis=0), 0)
    is_constant = np.ptp(channel_arrays, axis=0) < MIN_WIDTH
    channels = np.flatnonzero(~is_constant & (widths < MIN_CODES * step))
    if not channels.size or widths.max() < MIN_CODES * step:
        return []
    channels_text = ", ".join(map(str, channels[:MAX_PARTS_SHOWN]))
    rest_text = f" and {channels.size - MAX_PARTS_SHOWN} more" if channels.size > MAX_PARTS_SHOWN else ""
    return [
        f"output '{name}': {channels.size} of its {widths.size} channels (number {channels_text}{rest_text}, counted "
        f"from 0) span fewer than {MIN_CODES} of its steps, because others span far more; {REMEDY}"
    ]
