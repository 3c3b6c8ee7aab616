"""Subclassed Keras 3 models as functional ones: traced where a trace shows everything, otherwise kept as one layer."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import InputError
from edgepipe.models.keras3_graph import is_model
from edgepipe.models.keras_types import KerasModel, KerasTensor, TensorTree
from edgepipe.models.layer_trace import is_keras_graph, trace_layer

_BUILD_HINT = "build it with its input shape, `model.build((None, ...))`, or call it on a batch once"


def to_functional(model: KerasModel, samples: Arrays | None = None) -> KerasModel:
    """`model` itself if it has a graph of layers, else a functional model that computes the same with the same weights.

    The graph is traced from `call` with symbolic tensors. If that cannot show everything (TensorFlow functions, a
    different computation in training, weights owned by the model itself), the model becomes the only layer of the
    graph. Input shapes come from `samples`, else from what the model was built with.

    Raises:
        InputError: no input shape is known, or the model can neither be traced nor rebuilt from its get_config().
    """
    if is_model(model) or not isinstance(model, keras.Model):
        return model
    inputs = _build_inputs(model, samples)
    traced_function = trace_layer(model, (inputs,), {})
    if traced_function is not None and is_keras_graph(traced_function):
        outputs = traced_function.call(keras.tree.flatten(inputs))
        return keras.Model(inputs, outputs, name=model.name)
    _check_rebuilds(model)
    return keras.Model(inputs, model(inputs), name=model.name)


def _build_inputs(model: KerasModel, samples: Arrays | None) -> TensorTree:
    if samples is not None:
        if isinstance(samples, np.ndarray):
            inputs: TensorTree = _build_input(samples.shape, samples.dtype.name, "input")
        else:
            inputs = {name: _build_input(array.shape, array.dtype.name, name) for name, array in samples.items()}
        if not model.built:
            model(inputs)
        return inputs
    config = model.get_build_config() if model.built else None
    build_shapes = list((config.get("shapes_dict") or config).values()) if config else []
    if len(build_shapes) != 1:
        raise InputError(
            f"'{model.name}' is a subclassed model ({type(model).__name__}) whose input shape is not known; "
            f"{_BUILD_HINT}"
        )
    return _build_inputs_from_shape(build_shapes[0], "input")


def _build_inputs_from_shape(nested_shape: Any, name: str) -> TensorTree:
    if isinstance(nested_shape, dict):
        return {key: _build_inputs_from_shape(sub_shape, key) for key, sub_shape in nested_shape.items()}
    if any(isinstance(dimension, (list, tuple, dict)) for dimension in nested_shape):
        return [_build_inputs_from_shape(sub_shape, f"{name}_{index}") for index, sub_shape in enumerate(nested_shape)]
    return _build_input(nested_shape, "float32", name)


def _build_input(shape: Sequence[int | None], dtype: str, name: str) -> KerasTensor:
    input_dtype = "float32" if dtype.startswith("float") or dtype == "uint8" else dtype
    return keras.Input(tuple(shape)[1:], dtype=input_dtype, name=name)


def _check_rebuilds(model: KerasModel) -> None:
    """Raise an `InputError` unless Keras can save a model that is kept as one layer."""
    try:
        type(model).from_config(model.get_config())
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"'{model.name}' is a subclassed model ({type(model).__name__}) whose `call` cannot be traced with "
            f"symbolic tensors, and its get_config() does not rebuild it ({type(error).__name__}: {first_line[:150]}); "
            "write `call` with keras.ops and layers, or add get_config(), or build the model functionally"
        ) from error
