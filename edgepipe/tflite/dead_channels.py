"""Dead channels: filters whose weights are all zero, so that what they give is their bias, whatever the input."""

import numpy as np

from edgepipe.core.metric import Record
from edgepipe.tflite.model import Model, Operator, Tensor

# Position of the bias among the inputs, and the axis of the weights that counts the filters.
FILTERS = {
    "CONV_2D": (2, 0),
    "DEPTHWISE_CONV_2D": (2, 3),
    "FULLY_CONNECTED": (2, 0),
    "TRANSPOSE_CONV": (3, 0),
    "CONV_3D": (2, 4),
}


class DeadChannels(Record):
    """How many filters of one layer give a constant."""

    operator: str
    tensor: str
    filters: int
    dead: int


def dead_channels(model: Model) -> list[DeadChannels]:
    """The layers with dead channels, in order of execution.

    A filter is dead if all its weights equal their zero point and its bias, if there is one, is a constant: it costs
    time and memory and says nothing about the input. Weights that edgepipe cannot decode are left out.
    """
    made_by = {tensor.key: op for op in model.operators for tensor in op.outputs if tensor is not None}
    found = []
    for operator in model.operators:
        weights = _weights(operator, made_by)
        if weights is not None and not model.why_unreadable(weights):
            filters, dead = _count(model, operator, weights)
            if dead:
                found.append(DeadChannels(operator=operator.place, tensor=weights.name, filters=filters, dead=dead))
    return found


def filters(model: Model) -> int:
    """How many filters the layers of `model` have in all."""
    made_by = {tensor.key: op for op in model.operators for tensor in op.outputs if tensor is not None}
    found = ((operator, _weights(operator, made_by)) for operator in model.operators)
    return sum(weights.shape[FILTERS[operator.name][1]] for operator, weights in found if weights is not None)


def _weights(operator: Operator, made_by: dict[tuple[int, int], Operator]) -> Tensor | None:
    """The constant weights of a layer, behind a DEQUANTIZE too; None if it has none or its bias is computed."""
    if operator.name not in FILTERS:
        return None
    bias, axis = FILTERS[operator.name]
    weights, shift = (_constant(operator.input(position), made_by) for position in (1, bias))
    if weights is None or len(weights.shape) <= axis or (operator.input(bias) is not None and shift is None):
        return None
    return weights


def _constant(tensor: Tensor | None, made_by: dict[tuple[int, int], Operator]) -> Tensor | None:
    source = made_by.get(tensor.key) if tensor is not None else None
    if source is not None and source.name == "DEQUANTIZE":
        tensor = source.input(0)
    return tensor if tensor is not None and tensor.constant else None


def _count(model: Model, operator: Operator, weights: Tensor) -> tuple[int, int]:
    axis = FILTERS[operator.name][1]
    others = tuple(index for index in range(len(weights.shape)) if index != axis)
    alive = int(np.count_nonzero(model.nonzero(weights).any(axis=others)))
    return weights.shape[axis], weights.shape[axis] - alive
