"""A model with open input dimensions, such as `Input((None, None, 3))`, with the sizes that the device will see."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tf_keras

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.units import plural
from edgepipe.models.input_shapes import check_is_graph
from edgepipe.models.keras_types import AnyKerasModel, AnyKerasVariable
from edgepipe.models.port_names import input_names
from edgepipe.models.recurrent_layers import recurrent_layers


def fix_input_shapes(model: AnyKerasModel, shape_by_input: Mapping[str, tuple[int, ...]]) -> AnyKerasModel:
    """`model` with inputs of these sizes, and the same weights; `model` itself if that changes nothing.

    Args:
        model: a Keras 3 or tf_keras model.
        shape_by_input: sizes without the batch, by input; "" is the only input.

    Raises:
        InputError: sizes that do not fit the model, or that its layers do not take.
    """
    check_is_graph(model)
    shapes = _match_input_shapes(model, shape_by_input)
    return model if shapes == [tuple(tensor.shape) for tensor in model.inputs] else with_input_shapes(model, shapes)


def with_input_shapes(model: AnyKerasModel, shapes: Sequence[tuple[int | None, ...]]) -> AnyKerasModel:
    """A copy of `model` with inputs of these shapes, batch included, and the same weights; what a `stateful` layer
    remembers is not copied.

    Raises:
        InputError: shapes that its layers do not take.
    """
    package: Any = keras if isinstance(model, keras.Model) else tf_keras
    inputs = [
        package.Input(shape[1:], batch_size=shape[0], dtype=tensor.dtype, name=name)
        for shape, tensor, name in zip(shapes, model.inputs, input_names(model), strict=True)
    ]
    try:
        fixed_model = package.models.clone_model(model, input_tensors=_pack_like(model, inputs))
        for weight, copied_weight in zip(_learned_weights(model), _learned_weights(fixed_model), strict=True):
            copied_weight.assign(np.asarray(weight))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        sizes_text = ", ".join(f"'{name}' {shape}" for name, shape in zip(input_names(model), shapes, strict=True))
        raise InputError(
            f"'{model.name}' does not take inputs of the shape {sizes_text}: {type(error).__name__}: {reason[:200]}"
        ) from error
    return fixed_model


def _learned_weights(model: AnyKerasModel) -> list[AnyKerasVariable]:
    """The weights of `model` without the memory of its stateful layers, whose size depends on the batch."""
    remembered = [getattr(layer, "states", None) for layer in recurrent_layers(model) if layer.stateful]
    remembered_ids = {id(variable) for variable in keras.tree.flatten(remembered)}
    return [weight for weight in model.weights if id(weight) not in remembered_ids]


def _pack_like(model: AnyKerasModel, inputs: list[Any]) -> Any:
    """The inputs in the structure that the model was built with: a tensor, a list or a dictionary."""
    if isinstance(model, keras.Sequential | tf_keras.Sequential):
        return inputs[0]
    if isinstance(model, keras.Model):
        return keras.tree.pack_sequence_as(model._inputs_struct, inputs)
    return inputs[0] if len(inputs) == 1 else inputs


def _match_input_shapes(
    model: AnyKerasModel, shape_by_input: Mapping[str, tuple[int, ...]]
) -> list[tuple[int | None, ...]]:
    """The shape of each input, with its batch: as given, else as the model has it.

    Raises:
        InputError: an input that the model does not have, or sizes that contradict the model's.
    """
    names = input_names(model)
    if "" in shape_by_input and len(names) > 1:
        raise InputError(
            f"'{model.name}' has {len(names)} inputs; give an input shape by name, such as "
            f"{names[0]}={'x'.join(map(str, shape_by_input['']))} (inputs: {', '.join(names)})"
        )
    for name in shape_by_input:
        if name and name not in names:
            raise InputError(f"input shape of '{name}': '{model.name}' has no such input{did_you_mean(name, names)}")
    return [
        _match_shape(name, tuple(tensor.shape), shape_by_input.get(name, shape_by_input.get("")))
        for name, tensor in zip(names, model.inputs, strict=True)
    ]


def _match_shape(
    name: str, model_shape: tuple[int | None, ...], sizes: tuple[int, ...] | None
) -> tuple[int | None, ...]:
    if sizes is None:
        return model_shape
    fits = len(sizes) == len(model_shape) - 1 and all(
        own in (None, given) for own, given in zip(model_shape[1:], sizes, strict=True)
    )
    if not fits:
        raise InputError(
            f"input shape {'x'.join(map(str, sizes))} does not fit input '{name}' of the shape {model_shape}: it takes "
            f"{plural(len(model_shape) - 1, 'size')} without the batch, and only open ones (None) can be chosen"
        )
    return (model_shape[0], *sizes)
