"""What samples show of tensors: the largest value, or magnitude, along an axis."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.equalization.input_arrays import BATCH, given
from edgepipe.compress.equalization.scalable_channels import Channels
from edgepipe.core.arrays import Array


def largest(
    model: Any, tensors: list[Any], axes: list[int], fed: list[Array], of: Callable[[Array], Array] = np.abs
) -> list[Array]:
    """For each of `tensors` of `model` the largest `of` its values for each index of its axis, over all samples."""
    if not tensors:
        return []
    probe = tf_keras.Model(model.input, tensors)
    found = [np.full(tensor.shape[axis], -np.inf) for tensor, axis in zip(tensors, axes, strict=True)]
    for start in range(0, len(fed[0]), BATCH):
        values = probe(given(model, fed, slice(start, start + BATCH)), training=False)
        values = values if len(tensors) > 1 else [values]
        for place, (value, axis) in enumerate(zip(values, axes, strict=True)):
            flat = np.moveaxis(of(np.asarray(value)), axis, -1).reshape(-1, value.shape[axis])
            found[place] = np.maximum(found[place], flat.max(axis=0))
    return found


def by_label(model: Any, channels: Channels, fed: list[Array]) -> Array:
    """The largest magnitude of each label, over all tensors that have a range of their own in TFLite; 0 without one."""
    watched = [one for one in channels.watched if one.tensor.dtype.is_floating]
    found = largest(model, [one.tensor for one in watched], [one.axis for one in watched], fed)
    sizes = np.zeros(channels.number)
    for one, values in zip(watched, found, strict=True):
        np.maximum.at(sizes, one.ids, values)
    return sizes
