"""Samples in the order of a model's inputs, or random inputs."""

from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.compress.qat.lowering.lower import check_equal_outputs
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.models.bridge import random_batch
from edgepipe.models.id_inputs import find_tf_keras_id_limits

MAX_SAMPLES = 256  # samples whose tensors are held in memory at once; channel means and ranges converge well before
BATCH_SIZE = 64


def prepare_inputs(model: Any, samples: Arrays | None) -> list[Array]:
    """At most 256 samples for each input of `model`, in order; small random inputs without samples.

    Raises:
        InputError: no sample, other names than the inputs', or other shapes.
    """
    if samples is None:
        return _random_inputs(model)
    input_names = list(model.input_names)
    samples_by_input = samples if isinstance(samples, dict) else dict.fromkeys(input_names[:1], samples)
    if sorted(samples_by_input) != sorted(input_names):
        raise InputError(
            f"the samples are named {', '.join(samples_by_input)}, the model's inputs {', '.join(input_names)}"
        )
    if not count_samples(samples):
        raise InputError("there are no representative samples; give at least one, or use data_free")
    arrays = [np.asarray(take_samples(samples_by_input[name], slice(MAX_SAMPLES))) for name in input_names]
    for name, tensor, array in zip(input_names, model.inputs, arrays, strict=True):
        if tuple(tensor.shape[1:]) != array.shape[1:]:
            raise InputError(
                f"samples of '{name}' have the shape {array.shape[1:]}, it takes {tuple(tensor.shape[1:])}"
            )
    return [array.astype(tensor.dtype.as_numpy_dtype) for tensor, array in zip(model.inputs, arrays, strict=True)]


def _random_inputs(model: Any) -> list[Array]:
    named_inputs = zip(model.inputs, model.input_names, strict=True)
    input_specs = [(tuple(tensor.shape), tensor.dtype.name, name) for tensor, name in named_inputs]
    return [np.asarray(array) for array in random_batch(input_specs, find_tf_keras_id_limits(model), seed=0)]


def pack_inputs(model: Any, input_arrays: list[Array], sample_slice: slice = slice(None)) -> Any:
    """The argument that `model` is called with."""
    tensors = [tf.constant(array[sample_slice]) for array in input_arrays]
    nested_inputs = model._nested_inputs
    return (
        tensors[0]
        if len(tensors) == 1 and not isinstance(nested_inputs, dict)
        else tf.nest.pack_sequence_as(nested_inputs, tensors)
    )


def measure_difference(model_before: Any, model_after: Any, input_arrays: list[Array]) -> float:
    """The largest difference of the outputs of both models, relative to the largest output.

    Raises:
        InputError: it is above 1e-4.
    """
    batch_starts = range(0, len(input_arrays[0]), BATCH_SIZE)
    return max(
        check_equal_outputs(
            model_before, model_after, pack_inputs(model_before, input_arrays, slice(start, start + BATCH_SIZE))
        )
        for start in batch_starts
    )


def describe_samples(samples: Arrays | None) -> str:
    """The samples as a report describes them."""
    if samples is None:
        return "data-free"
    sample_count = count_samples(samples)
    return (
        plural(sample_count, "sample")
        if sample_count <= MAX_SAMPLES
        else f"the first {MAX_SAMPLES} of {sample_count} samples"
    )
