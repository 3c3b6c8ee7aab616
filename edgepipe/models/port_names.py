"""The names of a model's inputs and outputs, as its users know them.

A port in a dictionary is named by its key, the others by Keras' layer. Nested structures give paths: `heads/boxes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tf_keras
from tensorflow.python.util import nest

from edgepipe.models.input_shapes import input_name
from edgepipe.models.keras_types import AnyKerasModel, TensorTree

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class PortNames:
    """The names of inputs and outputs, in the order of the model's own; each is unique on its side."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    signature: str = DEFAULT_SIGNATURE


def input_names(model: AnyKerasModel) -> list[str]:
    """The names of the model's inputs, in the order of `model.inputs`: dictionary keys, or names of input layers."""
    layer_names = [input_name(tensor) for tensor in model.inputs]
    return _name_ports(model, _structure(model, "_inputs_struct", "_nested_inputs"), layer_names)


def output_names(model: AnyKerasModel) -> list[str]:
    """The names of the model's outputs, in the order of `model.outputs`: dictionary keys, or those Keras reports.

    Keras 3 reports one layer's name for all of its outputs; they are numbered as tf_keras does: `head`, `head_1`.
    """
    layer_names = getattr(model, "output_names", None)
    if layer_names is None:  # a Keras 3 Sequential reports none
        layer_names = [str(tensor._keras_history[0].name) for tensor in model.outputs]
    return _name_ports(model, output_structure(model), layer_names)


def output_structure(model: AnyKerasModel) -> TensorTree:
    """The outputs as they were given to the model: one tensor, or lists and dictionaries of tensors."""
    return _structure(model, "_outputs_struct", "_nested_outputs")


def unstored_output_names(model: AnyKerasModel) -> list[str]:
    """The output names of a tf_keras model if loading it would lose them: a bridged model's layers differ from them."""
    if not isinstance(model, tf_keras.Model) or not model.outputs:
        return []
    layer_names = number_repeats([input_name(tensor) for tensor in model.outputs])
    stored_names = _name_ports(model, output_structure(model), layer_names)
    return [] if output_names(model) == stored_names else output_names(model)


def number_repeats(names: Sequence[str]) -> list[str]:
    """The names, repeated ones numbered: `head`, `head_1`."""
    unique_names: list[str] = []
    for name in names:
        candidate, number = name, 0
        while candidate in unique_names:
            number += 1
            candidate = f"{name}_{number}"
        unique_names.append(candidate)
    return unique_names


def _structure(model: AnyKerasModel, keras3_attribute: str, tf_keras_attribute: str) -> TensorTree:
    """The tensors as they were given to the model; None where Keras does not keep them."""
    if isinstance(model, tf_keras.Model):
        return getattr(model, tf_keras_attribute, None)
    return getattr(getattr(model, "_functional", None) or model, keras3_attribute, None)


def _name_ports(model: AnyKerasModel, structure: TensorTree, layer_names: Sequence[str]) -> list[str]:
    if isinstance(model, tf_keras.Model):
        paths = [path for path, _ in nest.flatten_with_tuple_paths(structure)]
    else:
        paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
    if structure is None or len(paths) != len(layer_names):
        return number_repeats(layer_names)
    return number_repeats([_port_name(path, name) for path, name in zip(paths, layer_names, strict=True)])


def _port_name(path: tuple[Any, ...], layer_name: str) -> str:
    has_key = any(not isinstance(step, int) for step in path)
    return ("/".join(map(str, path)) if has_key else "") or layer_name
