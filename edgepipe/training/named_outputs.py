"""Labels and losses by the names of a model's outputs, in the structure that the model's Keras takes."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from edgepipe.core.errors import InputError
from edgepipe.models.port_names import output_names, output_structure


def arrange_by_output(model: Any, title: str, values_by_name: Any) -> Any:
    """Values given by output name, in the structure of the model's outputs; anything else as it is.

    Args:
        model: Keras 3 or tf_keras.
        title: of the values, for the error message.
        values_by_name: labels or losses, a mapping or a single one.

    Raises:
        InputError: their names are not those of the outputs.
    """
    if not isinstance(values_by_name, Mapping):
        return values_by_name
    names = output_names(model)
    if sorted(values_by_name) != sorted(names):
        raise InputError(
            f"the {title} are named {', '.join(values_by_name)}, the outputs of '{model.name}' {', '.join(names)}; use "
            "the same names"
        )
    pack = tf.nest.pack_sequence_as if isinstance(model, tf_keras.Model) else keras.tree.pack_sequence_as
    return pack(output_structure(model), [values_by_name[name] for name in names])
