"""What a model computes over whole sequences, to which its streaming graph must be equal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from edgepipe.core.arrays import Array
from edgepipe.models.fixed_inputs import with_input_shapes
from edgepipe.models.freeze import call_model
from edgepipe.models.keras_types import AnyKerasLayer, AnyKerasModel, AnyKerasVariable
from edgepipe.models.recurrent_layers import changed_attributes, recurrent_layers
from edgepipe.models.streaming import sequence_shapes

WHOLE_BATCH = 32  # sequences in one call of the whole model


def run_whole(
    model: AnyKerasModel, steps: int, has_step_entries: Sequence[bool], sequences: Sequence[Array]
) -> list[Array]:
    """The outputs of `model` for whole sequences, (samples, ...).

    A stateful model of as many steps as one call is run call by call, as its user would; any other one reads the whole
    sequence at once.

    Args:
        model: the Keras model.
        steps: of a call.
        has_step_entries: of each output, whether it has an entry for every step.
        sequences: of each input, (samples, steps, ...).

    Raises:
        InputError: the model does not take sequences of that length.
    """
    stateful_layers = [layer for layer in recurrent_layers(model) if layer.stateful]
    if stateful_layers and model.inputs[0].shape[1] == steps:
        return _run_stateful(model, stateful_layers, steps, has_step_entries, sequences)
    shapes = sequence_shapes(model, sequences[0].shape[1])
    if not stateful_layers:
        shapes = [(None, *shape[1:]) for shape in shapes]
    own_shapes = [tuple(tensor.shape) for tensor in model.inputs]
    whole_model = model if own_shapes == shapes else with_input_shapes(model, shapes)
    changes = [(layer, "stateful", False) for layer in recurrent_layers(whole_model) if layer.stateful]
    batch_size = 1 if stateful_layers else WHOLE_BATCH
    with changed_attributes(changes):
        batches = [
            _call(whole_model, [array[start : start + batch_size] for array in sequences])
            for start in range(0, len(sequences[0]), batch_size)
        ]
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def _call(model: AnyKerasModel, arrays: Sequence[Array]) -> list[Array]:
    return [np.asarray(output) for output in call_model(model, [tf.constant(array) for array in arrays])]


def _run_stateful(
    model: AnyKerasModel,
    stateful_layers: list[AnyKerasLayer],
    steps: int,
    has_step_entries: Sequence[bool],
    sequences: Sequence[Array],
) -> list[Array]:
    """The outputs of a stateful model of as many steps as a call, its states zero where a sequence begins."""
    batch_size, count = int(model.inputs[0].shape[0]), len(sequences[0])
    batches = []
    with _restored_states(stateful_layers):
        for start in range(0, count, batch_size):
            for variable in _state_variables(stateful_layers):
                variable.assign(np.zeros(variable.shape, np.float32))
            indices = np.minimum(np.arange(start, start + batch_size), count - 1)
            batches.append(_join_calls(model, steps, has_step_entries, [array[indices] for array in sequences]))
    return [np.concatenate(arrays)[:count] for arrays in zip(*batches, strict=True)]


def _join_calls(model: AnyKerasModel, steps: int, has_step_entries: Sequence[bool], batch: list[Array]) -> list[Array]:
    call_outputs = [
        _call(model, [array[:, start : start + steps] for array in batch])
        for start in range(0, batch[0].shape[1], steps)
    ]
    return [
        np.concatenate(arrays, axis=1) if has_entries else arrays[-1]
        for has_entries, arrays in zip(has_step_entries, zip(*call_outputs, strict=True), strict=True)
    ]


def _state_variables(layers: list[AnyKerasLayer]) -> list[AnyKerasVariable]:
    return [variable for layer in layers for variable in tf.nest.flatten(layer.states)]


@contextmanager
def _restored_states(layers: list[AnyKerasLayer]) -> Iterator[None]:
    variables = _state_variables(layers)
    values = [np.asarray(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
