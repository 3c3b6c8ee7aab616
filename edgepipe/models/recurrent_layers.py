"""The recurrent layers of a Keras 3 or tf_keras model: unrolled, without dropout, and whether they keep a state."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import Keras3Layer
from edgepipe.models.keras_types import AnyKerasLayer, AnyKerasModel

MAX_UNROLLED_STEPS = 256  # unrolling more steps gives a graph that no converter finishes in reasonable time
_NO_DROPOUT = {"dropout": 0.0, "recurrent_dropout": 0.0}
# tf_keras calls a function of its own, which holds a loop, unless it was told to unroll when the layer was made
_LOOP_OPTIONS = {"unroll": True, "_could_use_gpu_kernel": False}


def recurrent_layers(model: AnyKerasModel) -> list[AnyKerasLayer]:
    """The recurrent layers of `model`, those inside wrappers and nested models too."""
    return [layer for layer in all_layers(model) if hasattr(layer, "unroll")]


def rolled_layers(model: AnyKerasModel) -> list[AnyKerasLayer]:
    """The recurrent layers of `model` that run as loops."""
    return [layer for layer in recurrent_layers(model) if not layer.unroll]


@contextmanager
def unrolled(model: AnyKerasModel) -> Iterator[None]:
    """Recurrent layers repeat their step instead of running a loop, when `model` is called inside the block.

    A cell of Keras multiplies the weights of all its gates at once, whatever its option `implementation`.
    """
    changes: list[tuple[AnyKerasLayer, str, Any]] = [
        (layer, option, setting) for layer in rolled_layers(model) for option, setting in _LOOP_OPTIONS.items()
    ]
    changes += [(cell, "implementation", 2) for cell in _dropout_cells(model)]
    with changed_attributes([change for change in changes if hasattr(change[0], change[1])]):
        yield


@contextmanager
def without_recurrent_dropout(model: AnyKerasModel) -> Iterator[None]:
    """Recurrent cells of Keras 3 draw no dropout masks inside the block.

    They draw them in inference too, where they are not used: a random state that moves on cannot be frozen.
    """
    cells = _dropout_cells(model)
    with changed_attributes([(cell, *change) for cell in cells for change in _NO_DROPOUT.items()]):
        yield


def _dropout_cells(model: AnyKerasModel) -> list[AnyKerasLayer]:
    """The recurrent cells of Keras 3; all of them can drop out."""
    return [
        layer for layer in all_layers(model) if isinstance(layer, keras.Layer) and hasattr(layer, "reset_dropout_mask")
    ]


def check_stateless(model: AnyKerasModel) -> None:
    """Raise an `InputError` if a recurrent layer of `model` carries its state from one call to the next."""
    names = [f"'{layer.name}'" for layer in recurrent_layers(model) if layer.stateful]
    if names:
        raise InputError(
            f"stateful=True in {', '.join(names)}: a .tflite keeps no state between its calls; set stateful=False to "
            "convert whole windows, or make the states inputs and outputs of each call with `streaming: 1` "
            "(--streaming 1, or as many steps as a call shall take)"
        )


def all_layers(model: AnyKerasModel) -> Iterator[AnyKerasLayer]:
    """The layers of `model`, those inside wrappers and nested models too."""
    for layer in model._flatten_layers(include_self=False):
        yield layer
        if isinstance(layer, Keras3Layer):  # hides its layer from tf_keras
            yield from layer.keras3_layer._flatten_layers()


@contextmanager
def changed_attributes(changes: list[tuple[AnyKerasLayer, str, Any]]) -> Iterator[None]:
    """Attributes of layers have other values inside the block: (layer, attribute, value)."""
    previous_values = [
        (layer, attribute, attribute in vars(layer), getattr(layer, attribute)) for layer, attribute, _ in changes
    ]
    for layer, attribute, value in changes:
        setattr(layer, attribute, value)
    try:
        yield
    finally:
        for layer, attribute, is_own, value in previous_values:
            if is_own or attribute not in vars(layer):  # else the attribute is that of the class; or a property
                setattr(layer, attribute, value)
            else:
                delattr(layer, attribute)
