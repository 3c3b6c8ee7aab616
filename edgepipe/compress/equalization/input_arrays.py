"""Samples in the order of a model's inputs, or random ones."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.lower import check_equal
from edgepipe.core.arrays import Array, Arrays, count, take
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import random_values

MOST = 256  # samples whose tensors are all held at once; means and ranges of channels settle long before
BATCH = 64


def feeds(model: Any, samples: Arrays | None) -> list[Array]:
    """At most 256 samples for each input of `model`, in order; small random ones if there are none.

    Raises:
        InputError: no sample, other names than the inputs', or other shapes.
    """
    if samples is None:
        return _random(model)
    names = list(model.input_names)
    named = samples if isinstance(samples, dict) else dict.fromkeys(names[:1], samples)
    if sorted(named) != sorted(names):
        raise InputError(f"the samples are named {', '.join(named)}, the model's inputs {', '.join(names)}")
    if not count(samples):
        raise InputError("there are no representative samples; give at least one, or none at all (data-free)")
    chosen = [np.asarray(take(named[name], slice(MOST))) for name in names]
    for name, tensor, array in zip(names, model.inputs, chosen, strict=True):
        if tuple(tensor.shape[1:]) != array.shape[1:]:
            raise InputError(
                f"samples of '{name}' have the shape {array.shape[1:]}, it takes {tuple(tensor.shape[1:])}"
            )
    return [array.astype(tensor.dtype.as_numpy_dtype) for tensor, array in zip(model.inputs, chosen, strict=True)]


def _random(model: Any) -> list[Array]:
    sizes = [layer.input_dim for layer in model.layers if isinstance(layer, tf_keras.layers.Embedding)]
    named = zip(model.inputs, model.input_names, strict=True)
    specs = [(tuple(tensor.shape), tensor.dtype.name, name) for tensor, name in named]
    return [np.asarray(value) for value in random_values(specs, min(sizes, default=2), seed=0)]


def given(model: Any, fed: list[Array], chosen: slice = slice(None)) -> Any:
    """What `model` is called with."""
    tensors = [tf.constant(array[chosen]) for array in fed]
    nested = model._nested_inputs
    return (
        tensors[0] if len(tensors) == 1 and not isinstance(nested, dict) else tf.nest.pack_sequence_as(nested, tensors)
    )


def difference(before: Any, after: Any, fed: list[Array]) -> float:
    """The largest difference of the outputs of both models, relative to the largest output.

    Raises:
        InputError: it is above 1e-4.
    """
    starts = range(0, len(fed[0]), BATCH)
    return max(check_equal(before, after, given(before, fed, slice(start, start + BATCH))) for start in starts)


def told(samples: Arrays | None) -> str:
    """What a report calls them."""
    if samples is None:
        return "data-free"
    total = count(samples)
    return f"{total} samples" if total <= MOST else f"the first {MOST} of {total} samples"
