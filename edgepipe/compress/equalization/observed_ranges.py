"""Ranges of tensors on samples: the largest value, or magnitude, along an axis."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.equalization.input_arrays import BATCH_SIZE, pack_inputs
from edgepipe.compress.equalization.scalable_channels import ScalableChannels
from edgepipe.core.arrays import Array


def measure_maxima(
    model: Any,
    tensors: list[Any],
    axes: list[int],
    input_arrays: list[Array],
    transform: Callable[[Array], Array] = np.abs,
) -> list[Array]:
    """The largest transformed value of each tensor over all samples, for each index of its axis.

    Args:
        model: a tf_keras model.
        tensors: symbolic tensors of `model`.
        axes: one for each tensor.
        input_arrays: samples for each input of `model`, (samples, ...).
        transform: applied to the values first; by default the magnitude.
    """
    if not tensors:
        return []
    probe_model = tf_keras.Model(model.input, tensors)
    maxima = [np.full(tensor.shape[axis], -np.inf) for tensor, axis in zip(tensors, axes, strict=True)]
    for start in range(0, len(input_arrays[0]), BATCH_SIZE):
        batch_outputs = probe_model(pack_inputs(model, input_arrays, slice(start, start + BATCH_SIZE)), training=False)
        batch_outputs = batch_outputs if len(tensors) > 1 else [batch_outputs]
        for index, (output, axis) in enumerate(zip(batch_outputs, axes, strict=True)):
            channel_values = np.moveaxis(transform(np.asarray(output)), axis, -1).reshape(-1, output.shape[axis])
            maxima[index] = np.maximum(maxima[index], channel_values.max(axis=0))
    return maxima


def measure_label_ranges(model: Any, scalable_channels: ScalableChannels, input_arrays: list[Array]) -> Array:
    """The largest magnitude of each label over all tensors with their own range in TFLite; 0 without such a tensor."""
    ranged_tensors = [
        ranged_tensor for ranged_tensor in scalable_channels.ranged_tensors if ranged_tensor.tensor.dtype.is_floating
    ]
    tensor_maxima = measure_maxima(
        model,
        [ranged_tensor.tensor for ranged_tensor in ranged_tensors],
        [ranged_tensor.axis for ranged_tensor in ranged_tensors],
        input_arrays,
    )
    label_ranges = np.zeros(scalable_channels.label_count)
    for ranged_tensor, maxima in zip(ranged_tensors, tensor_maxima, strict=True):
        np.maximum.at(label_ranges, ranged_tensor.label_ids, maxima)
    return label_ranges
