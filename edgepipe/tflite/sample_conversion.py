"""Converts samples to a model's inputs and its outputs to real numbers: shapes, types, scales and zero points.

Float samples are quantized the way TensorFlow Lite's reference QUANTIZE kernel does it: x / scale in float32, rounded
half away from zero, plus the zero point, clipped to the type (tensorflow/lite/kernels/internal/reference/quantize.h).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepipe.core import arrays
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.tflite.model import FLOAT_TYPES, INTEGER_TYPES, NUMPY_TYPES, Model, Tensor
from edgepipe.tflite.sequence_run import check_sequences
from edgepipe.tflite.split_outputs import join_outputs
from edgepipe.tflite.stream_ports import own_inputs, own_outputs, read_stream_ports


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of a model for a set of samples; one array, or one for each named output of several.

    `stored_values` have the output's type, (samples, *shape); `real_values` are dequantized to float32 where the output
    is quantized, else the same, and the parts of a split output are joined. `scales` and `zero_points` go by output
    name. `provenance` says what ran.
    """

    stored_values: Arrays
    real_values: Arrays
    scales: dict[str, float]
    zero_points: dict[str, int]
    provenance: str


def build_outputs(model: Model, raw_outputs: list[Array], provenance: str) -> ModelOutputs:
    """The `ModelOutputs` of stored values, one array for each output of `model` in its order, states left out."""
    tensor_by_name = own_outputs(model)
    array_by_output = dict(zip(tensor_by_name.items(), raw_outputs, strict=True))
    stored_values = {name: array for (name, _), array in array_by_output.items()}
    real_values = {name: dequantize_array(array, tensor) for (name, tensor), array in array_by_output.items()}
    quantization_by_name = {name: tensor.quantization for name, tensor in tensor_by_name.items() if tensor.quantization}
    return ModelOutputs(
        stored_values=_sole_or_named(stored_values),
        real_values=_sole_or_named(join_outputs(model, real_values)),
        scales={name: quantization.scales[0] for name, quantization in quantization_by_name.items()},
        zero_points={name: quantization.zero_points[0] for name, quantization in quantization_by_name.items()},
        provenance=provenance,
    )


def _sole_or_named(array_by_name: dict[str, Array]) -> Arrays:
    return array_by_name if len(array_by_name) > 1 else next(iter(array_by_name.values()))


def convert_samples(model: Model, x: Arrays) -> list[Array]:
    """The samples in the type of each input of `model`, in its order, checked against its shapes.

    Of a streaming model, samples are whole sequences of the inputs that are no states; see `convert_calls`.

    Raises:
        InputError: a wrong number of inputs or samples, a wrong shape or type, no sample, or non-finite values.
    """
    ports = read_stream_ports(model)
    if ports is None:
        return convert_calls(model, x)
    array_by_input = _map_inputs(model, own_inputs(model), x)
    check_sequences(model, ports, array_by_input)
    return _fit_arrays(model, own_inputs(model), array_by_input, are_sequences=True)


def convert_calls(model: Model, x: Arrays) -> list[Array]:
    """As `convert_samples`, each sample one call: of a streaming model they hold its states too."""
    return _fit_arrays(model, model.inputs_by_name, _map_inputs(model, model.inputs_by_name, x), are_sequences=False)


def _fit_arrays(
    model: Model, tensor_by_name: dict[str, Tensor], array_by_input: dict[str, Array], are_sequences: bool
) -> list[Array]:
    sample_counts = {name: len(array) if np.ndim(array) else 0 for name, array in array_by_input.items()}
    if len(set(sample_counts.values())) > 1 or 0 in sample_counts.values():
        raise InputError(
            f"{model.path}: the inputs need the same number of samples, at least one; found {sample_counts}"
        )
    return [
        _fit_samples(model.path, name, tensor, array_by_input[name], are_sequences)
        for name, tensor in tensor_by_name.items()
    ]


def quantize_array(x: Array, tensor: Tensor) -> Array:
    """round(x / scale) + zero point, halves away from zero, clipped to the type of `tensor`; x must be finite."""
    if tensor.quantization is None:
        raise ValueError(f"tensor '{tensor.name}' has no scale")
    dtype_limits = np.iinfo(tensor.dtype)
    ratios = np.asarray(x, np.float32) / np.float32(tensor.quantization.scales[0])
    # In float64 the sum with one half is exact, so that 0.49999997 is not rounded up.
    rounded_ratios = np.copysign(np.floor(np.abs(ratios.astype(np.float64)) + 0.5), ratios)
    stored_values: Array = np.clip(
        rounded_ratios + tensor.quantization.zero_points[0], dtype_limits.min, dtype_limits.max
    )
    return stored_values.astype(tensor.dtype)


def dequantize_array(stored_values: Array, tensor: Tensor) -> Array:
    """scale * (stored - zero point) in float32; an array whose tensor has no scale stays as it is."""
    if tensor.quantization is None or tensor.dtype in FLOAT_TYPES:
        return stored_values
    centred_values: Array = (stored_values.astype(np.int64) - tensor.quantization.zero_points[0]).astype(np.float32)
    return centred_values * np.float32(tensor.quantization.scales[0])


def _map_inputs(model: Model, tensor_by_name: dict[str, Tensor], x: Arrays) -> dict[str, Array]:
    """The arrays by the names of the inputs; a dict may use tensor names instead."""
    if not isinstance(x, dict):
        if len(tensor_by_name) != 1:
            raise InputError(
                f"{model.path}: one array given for {len(tensor_by_name)} inputs; "
                f"name them: {', '.join(tensor_by_name)}"
            )
        return {next(iter(tensor_by_name)): np.asarray(x)}
    name_by_alias = {
        alias: name for name, tensor in tensor_by_name.items() for alias in (tensor.name, tensor.name.split(":")[0])
    }
    array_by_input = {
        name if name in tensor_by_name else name_by_alias.get(name, name): np.asarray(array)
        for name, array in x.items()
    }
    if set(array_by_input) != set(tensor_by_name) or len(array_by_input) != len(x):
        raise InputError(f"{model.path}: inputs given: {', '.join(x)}; the model's inputs: {', '.join(tensor_by_name)}")
    return array_by_input


def _fit_samples(path: Path, name: str, tensor: Tensor, x: Array, are_sequences: bool) -> Array:
    check_type(path, name, tensor)
    sample_shape = (-1, *tensor.shape_signature[2:]) if are_sequences else tensor.shape_signature[1:]
    is_fitting = x.ndim == len(tensor.shape) and all(
        w in (-1, n) for w, n in zip(sample_shape, x.shape[1:], strict=True)
    )
    if not is_fitting:
        shape_text = str(sample_shape).replace("-1", "any")
        raise InputError(f"{path}: input '{name}' takes samples of shape {shape_text}, found {arrays.format_shapes(x)}")
    if x.dtype == tensor.dtype:
        return x
    return _convert_input(f"{path}: input '{name}'", tensor, x)


def _is_whole(x: Array) -> bool:
    """Integers, or floats that are: indices of an embedding often come as floats."""
    return np.issubdtype(x.dtype, np.integer) or (np.issubdtype(x.dtype, np.floating) and bool((x == np.rint(x)).all()))


def _counts_in_ones(tensor: Tensor) -> bool:
    """Whether the stored integers are the numbers themselves."""
    quantization = tensor.quantization
    return quantization is None or (quantization.scales, quantization.zero_points) == ((1.0,), (0,))


def check_type(path: Path, name: str, tensor: Tensor) -> None:
    """Raise an `InputError` unless numpy has the type of `tensor`, so that samples can fill it."""
    if tensor.dtype not in NUMPY_TYPES:
        raise InputError(f"{path}: input '{name}' is {tensor.dtype}, which edgepipe cannot fill with samples")


def _convert_input(subject: str, tensor: Tensor, x: Array) -> Array:
    is_numeric = np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_
    if tensor.dtype in FLOAT_TYPES and is_numeric and not np.issubdtype(x.dtype, np.complexfloating):
        return x.astype(tensor.dtype)
    if tensor.dtype in INTEGER_TYPES and tensor.quantization is not None and np.issubdtype(x.dtype, np.floating):
        if not np.isfinite(x).all():
            raise InputError(f"{subject}: the samples hold values that are not finite, which integers cannot represent")
        return quantize_array(x, tensor)
    if tensor.dtype in INTEGER_TYPES and _counts_in_ones(tensor) and _is_whole(x):
        dtype_limits = np.iinfo(tensor.dtype)
        if dtype_limits.min <= x.min() and x.max() <= dtype_limits.max:
            return x.astype(tensor.dtype)
        raise InputError(f"{subject}: takes {tensor.dtype}, found values from {x.min()} to {x.max()}")
    if tensor.dtype in INTEGER_TYPES and tensor.quantization is None and np.issubdtype(x.dtype, np.floating):
        fraction = x[x != np.rint(x)].flat[0]
        raise InputError(
            f"{subject}: takes {tensor.dtype} (no scale), found {fraction:g} in {x.dtype} samples; give whole numbers"
        )
    real_hint = (
        " or real numbers (float)" if tensor.dtype in FLOAT_TYPES or tensor.quantization is not None else " (no scale)"
    )
    raise InputError(f"{subject}: takes {tensor.dtype}{real_hint}, found {x.dtype}; convert the samples")
