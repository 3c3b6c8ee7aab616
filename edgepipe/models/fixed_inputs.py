"""A model with open input dimensions, such as `Input((None, None, 3))`, with the sizes that the device will see."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tf_keras

from edgepipe.core.errors import InputError
from edgepipe.models.input_shapes import check_is_graph, input_names, match_input_shapes
from edgepipe.models.keras_types import AnyKerasModel


def fix_input_shapes(model: AnyKerasModel, shape_by_input: Mapping[str, tuple[int, ...]]) -> AnyKerasModel:
    """`model` with inputs of these sizes, and the same weights; `model` itself if that changes nothing.

    Args:
        model: a Keras 3 or tf_keras model.
        shape_by_input: sizes without the batch, by input; "" is the only input.

    Raises:
        InputError: sizes that do not fit the model, or that its layers do not take.
    """
    check_is_graph(model)
    shapes = match_input_shapes(model, shape_by_input)
    if shapes == [tuple(tensor.shape) for tensor in model.inputs]:
        return model
    package: Any = keras if isinstance(model, keras.Model) else tf_keras
    inputs = [
        package.Input(shape[1:], batch_size=shape[0], dtype=tensor.dtype, name=name)
        for shape, tensor, name in zip(shapes, model.inputs, input_names(model), strict=True)
    ]
    try:
        fixed_model = package.models.clone_model(model, input_tensors=_pack_like(model, inputs))
        fixed_model.set_weights([np.asarray(weight) for weight in model.weights])
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        sizes_text = ", ".join(f"'{name}' {shape}" for name, shape in zip(input_names(model), shapes, strict=True))
        raise InputError(
            f"'{model.name}' does not take inputs of the shape {sizes_text}: {type(error).__name__}: {reason[:200]}"
        ) from error
    return fixed_model


def _pack_like(model: AnyKerasModel, inputs: list[Any]) -> Any:
    """The inputs in the structure that the model was built with: a tensor, a list or a dictionary."""
    if isinstance(model, keras.Sequential | tf_keras.Sequential):
        return inputs[0]
    if isinstance(model, keras.Model):
        return keras.tree.pack_sequence_as(model._inputs_struct, inputs)
    return inputs[0] if len(inputs) == 1 else inputs
