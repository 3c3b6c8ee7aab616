"""Dead channels: filters whose weights are all zero, so that what they give is their bias, whatever the input."""

import numpy as np

from edgepipe.core.metric import Record
from edgepipe.tflite.model import Model, Operator, Tensor

# Position of the bias among the inputs, and the axis of the weights that counts the filters.
FILTER_LAYOUT = {
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


def find_dead_channels(model: Model) -> list[DeadChannels]:
    """The layers with dead channels, in order of execution.

    A filter is dead if all its weights equal their zero point and its bias, if there is one, is a constant: it costs
    time and memory and says nothing about the input. Weights that edgepipe cannot decode are left out.
    """
    producer_by_tensor = {tensor.key: op for op in model.operators for tensor in op.outputs if tensor is not None}
    dead_layers = []
    for operator in model.operators:
        weights = _find_weights(operator, producer_by_tensor)
        if weights is not None and not model.unreadable_reason(weights):
            filters, dead = _count_dead(model, operator, weights)
            if dead:
                dead_layers.append(
                    DeadChannels(operator=operator.location, tensor=weights.name, filters=filters, dead=dead)
                )
    return dead_layers


def count_filters(model: Model) -> int:
    """How many filters the layers of `model` have in all."""
    producer_by_tensor = {tensor.key: op for op in model.operators for tensor in op.outputs if tensor is not None}
    layer_weights = ((operator, _find_weights(operator, producer_by_tensor)) for operator in model.operators)
    return sum(
        weights.shape[FILTER_LAYOUT[operator.name][1]] for operator, weights in layer_weights if weights is not None
    )


def _find_weights(operator: Operator, producer_by_tensor: dict[tuple[int, int], Operator]) -> Tensor | None:
    """The constant weights of a layer, behind a DEQUANTIZE too; None if it has none or its bias is computed."""
    if operator.name not in FILTER_LAYOUT:
        return None
    bias_index, axis = FILTER_LAYOUT[operator.name]
    weights, bias_tensor = (
        _find_constant(operator.input(position), producer_by_tensor) for position in (1, bias_index)
    )
    if (
        weights is None
        or len(weights.shape) <= axis
        or (operator.input(bias_index) is not None and bias_tensor is None)
    ):
        return None
    return weights


def _find_constant(tensor: Tensor | None, producer_by_tensor: dict[tuple[int, int], Operator]) -> Tensor | None:
    producer = producer_by_tensor.get(tensor.key) if tensor is not None else None
    if producer is not None and producer.name == "DEQUANTIZE":
        tensor = producer.input(0)
    return tensor if tensor is not None and tensor.is_constant else None


def _count_dead(model: Model, operator: Operator, weights: Tensor) -> tuple[int, int]:
    axis = FILTER_LAYOUT[operator.name][1]
    other_axes = tuple(index for index in range(len(weights.shape)) if index != axis)
    alive_count = int(np.count_nonzero(model.nonzero_mask(weights).any(axis=other_axes)))
    return weights.shape[axis], weights.shape[axis] - alive_count
