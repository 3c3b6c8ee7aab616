"""Subclassed Keras 3 models as functional ones: traced where that shows everything, otherwise wrapped whole."""

from typing import Any

import keras
import numpy as np

from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import InputError
from edgepipe.models.keras3_graph import is_model, own_weights_used, trace

_FIRST = "build it with its input shape, `model.build((None, ...))`, or call it on a batch once"


def functional(model: Any, data: Arrays | None = None) -> Any:
    """`model` itself if it has a graph of layers, else a functional model that does and holds the same.

    What the code of `call` does to symbolic tensors becomes the graph. Where that cannot be seen - TensorFlow
    functions, other computations in training, weights of the model's own - the model stays one layer of a graph of one.
    Shapes come from `data` (samples first), else from what the model was built with.

    Raises:
        InputError: no input shape is known; or the model can neither be traced nor rebuilt from its get_config().
    """
    if is_model(model) or not isinstance(model, keras.Model):
        return model
    inputs = _inputs(model, data)
    function = trace(model, (inputs,), {})
    if function is not None and not own_weights_used(function):
        outputs = function.call(keras.tree.flatten(inputs))
        return keras.Model(inputs, outputs, name=model.name)
    _check_rebuilds(model)
    return keras.Model(inputs, model(inputs), name=model.name)


def _inputs(model: Any, data: Arrays | None) -> Any:
    if data is not None:
        if isinstance(data, np.ndarray):
            inputs: Any = _input(data.shape, data.dtype.name, "input")
        else:
            inputs = {name: _input(part.shape, part.dtype.name, name) for name, part in data.items()}
        if not model.built:
            model(inputs)
        return inputs
    config = model.get_build_config() if model.built else None
    shapes = list((config.get("shapes_dict") or config).values()) if config else []
    if len(shapes) != 1:
        raise InputError(
            f"'{model.name}' is a subclassed model ({type(model).__name__}) whose input shape is not known; {_FIRST}"
        )
    return _from_shapes(shapes[0], "input")


def _from_shapes(shape: Any, name: str) -> Any:
    if isinstance(shape, dict):
        return {key: _from_shapes(part, key) for key, part in shape.items()}
    if any(isinstance(part, (list, tuple, dict)) for part in shape):
        return [_from_shapes(part, f"{name}_{index}") for index, part in enumerate(shape)]
    return _input(shape, "float32", name)


def _input(shape: Any, dtype: str, name: str) -> Any:
    floats = "float32" if dtype.startswith("float") or dtype == "uint8" else dtype
    return keras.Input(tuple(shape)[1:], dtype=floats, name=name)


def _check_rebuilds(model: Any) -> None:
    """A model that is kept whole must be one that Keras can save."""
    try:
        type(model).from_config(model.get_config())
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"'{model.name}' is a subclassed model ({type(model).__name__}) whose `call` cannot be traced with "
            f"symbolic tensors, and its get_config() does not rebuild it ({type(error).__name__}: {first[:150]}); "
            "write `call` with keras.ops and layers, or add get_config(), or build the model functionally"
        ) from error
