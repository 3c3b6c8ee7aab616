"""Dead channels: filters whose weights are all zero, so that their output is their bias, whatever the input."""

from collections.abc import Iterator

import numpy as np

from edgepipe.core.metric import Record
from edgepipe.tflite.model import Model, Operator, Tensor


class DeadChannels(Record):
    """How many filters of one layer output a constant."""

    operator: str
    tensor: str
    filters: int
    dead: int


def find_dead_channels(model: Model) -> list[DeadChannels]:
    """The layers with dead channels, in order of execution.

    A filter is dead if all its weights equal their zero point and its bias, if there is one, is a constant: it costs
    time and memory and says nothing about the input. Weights that edgepipe cannot decode are left out.
    """
    dead_layers = []
    for operator, weights, axis in _iterate_filter_layers(model):
        if not model.unreadable_reason(weights):
            filter_count, dead_count = _count_filters_and_dead(model, weights, axis)
            if dead_count:
                dead_layers.append(
                    DeadChannels(operator=operator.location, tensor=weights.name, filters=filter_count, dead=dead_count)
                )
    return dead_layers


def count_filters(model: Model) -> int:
    """How many filters the layers of `model` have in all."""
    return sum(weights.shape[axis] for _, weights, axis in _iterate_filter_layers(model))


def _iterate_filter_layers(model: Model) -> Iterator[tuple[Operator, Tensor, int]]:
    """Each layer whose weights and bias are constants, with its weights and the axis that counts its filters."""
    for operator in model.operators:
        filter_layout = operator.traits.filter_layout
        weights = model.find_constant(operator.input(1)) if filter_layout is not None else None
        if filter_layout is None or weights is None or len(weights.shape) <= filter_layout.filter_axis:
            continue
        bias = operator.input(filter_layout.bias_position)
        if bias is None or model.find_constant(bias) is not None:
            yield operator, weights, filter_layout.filter_axis


def _count_filters_and_dead(model: Model, weights: Tensor, axis: int) -> tuple[int, int]:
    other_axes = tuple(index for index in range(len(weights.shape)) if index != axis)
    alive_count = int(np.count_nonzero(model.nonzero_mask(weights).any(axis=other_axes)))
    return weights.shape[axis], weights.shape[axis] - alive_count
