"""Samples on their way into a model and results on their way out: shapes, types, scales and zero points.

Float samples are quantized the way TensorFlow Lite's reference QUANTIZE kernel does it: x / scale in float32, rounded
half away from zero, plus the zero point, clipped to the type (tensorflow/lite/kernels/internal/reference/quantize.h).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepipe.core import arrays
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.tflite.model import FLOATS, INTEGERS, NUMPY_TYPES, Model, Tensor


@dataclass(frozen=True)
class Outputs:
    """What a model gave for a set of samples; one array, or one for each named output of several.

    `raw` is as stored, (samples, *shape); `values` are real numbers: dequantized to float32 where the output is
    quantized, else the same as `raw`. `scales` and `zero_points` go by output name. `how` says what ran.
    """

    raw: Arrays
    values: Arrays
    scales: dict[str, float]
    zero_points: dict[str, int]
    how: str


def outputs(model: Model, results: list[Array], how: str) -> Outputs:
    """The `Outputs` of stored results, one array for each output of `model` in its order."""
    named = dict(zip(model.output_names.items(), results, strict=True))
    raw = {name: array for (name, _), array in named.items()}
    values = {name: dequantized(array, tensor) for (name, tensor), array in named.items()}
    scaled = {name: tensor.quantization for name, tensor in model.output_names.items() if tensor.quantization}
    single = next(iter(raw)) if len(raw) == 1 else None
    return Outputs(
        raw=raw if single is None else raw[single],
        values=values if single is None else values[single],
        scales={name: found.scales[0] for name, found in scaled.items()},
        zero_points={name: found.zero_points[0] for name, found in scaled.items()},
        how=how,
    )


def stored(model: Model, x: Arrays) -> list[Array]:
    """The samples in the type of each input of `model`, in its order, checked against its shapes.

    Raises:
        InputError: another number of inputs or samples, another shape or type, no sample, or values not finite.
    """
    given = _by_input(model, x)
    counts = {name: len(array) if np.ndim(array) else 0 for name, array in given.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise InputError(f"{model.path}: the inputs need the same number of samples, at least one; found {counts}")
    return [_fitted(model.path, name, tensor, given[name]) for name, tensor in model.input_names.items()]


def quantized(x: Array, tensor: Tensor) -> Array:
    """round(x / scale) + zero point, halves away from zero, clipped to the type of `tensor`; x must be finite."""
    if tensor.quantization is None:
        raise ValueError(f"tensor '{tensor.name}' has no scale")
    limits = np.iinfo(tensor.dtype)
    scaled = np.asarray(x, np.float32) / np.float32(tensor.quantization.scales[0])
    # In float64 the sum with one half is exact, so that 0.49999997 is not rounded up.
    rounded = np.copysign(np.floor(np.abs(scaled.astype(np.float64)) + 0.5), scaled)
    shifted: Array = np.clip(rounded + tensor.quantization.zero_points[0], limits.min, limits.max)
    return shifted.astype(tensor.dtype)


def dequantized(raw: Array, tensor: Tensor) -> Array:
    """scale * (raw - zero point) in float32; an array whose tensor has no scale stays as it is."""
    if tensor.quantization is None or tensor.dtype in FLOATS:
        return raw
    shifted: Array = (raw.astype(np.int64) - tensor.quantization.zero_points[0]).astype(np.float32)
    return shifted * np.float32(tensor.quantization.scales[0])


def _by_input(model: Model, x: Arrays) -> dict[str, Array]:
    """The arrays by the names of `Model.input_names`; a dict may use tensor names instead."""
    names = model.input_names
    if not isinstance(x, dict):
        if len(names) != 1:
            raise InputError(f"{model.path}: one array given for {len(names)} inputs; name them: {', '.join(names)}")
        return {next(iter(names)): np.asarray(x)}
    aliases = {alias: name for name, tensor in names.items() for alias in (tensor.name, tensor.name.split(":")[0])}
    given = {name if name in names else aliases.get(name, name): np.asarray(array) for name, array in x.items()}
    if set(given) != set(names) or len(given) != len(x):
        raise InputError(f"{model.path}: inputs given: {', '.join(x)}; the model's inputs: {', '.join(names)}")
    return given


def _fitted(path: Path, name: str, tensor: Tensor, x: Array) -> Array:
    check_type(path, name, tensor)
    wanted = tensor.signature[1:]
    fits = x.ndim == len(tensor.shape) and all(w in (-1, n) for w, n in zip(wanted, x.shape[1:], strict=True))
    if not fits:
        shown = str(wanted).replace("-1", "any")
        raise InputError(f"{path}: input '{name}' takes samples of shape {shown}, found {arrays.shapes(x)}")
    if x.dtype == tensor.dtype:
        return x
    return _converted(f"{path}: input '{name}'", tensor, x)


def _whole(x: Array) -> bool:
    """Integers, or floats that are: indices of an embedding often come as floats."""
    return np.issubdtype(x.dtype, np.integer) or (np.issubdtype(x.dtype, np.floating) and bool((x == np.rint(x)).all()))


def check_type(path: Path, name: str, tensor: Tensor) -> None:
    """Raise an `InputError` unless numpy has the type of `tensor`, so that samples can fill it."""
    if tensor.dtype not in NUMPY_TYPES:
        raise InputError(f"{path}: input '{name}' is {tensor.dtype}, which edgepipe cannot fill with samples")


def _converted(place: str, tensor: Tensor, x: Array) -> Array:
    numeric = np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_
    if tensor.dtype in FLOATS and numeric and not np.issubdtype(x.dtype, np.complexfloating):
        return x.astype(tensor.dtype)
    if tensor.dtype in INTEGERS and tensor.quantization is not None and np.issubdtype(x.dtype, np.floating):
        if not np.isfinite(x).all():
            raise InputError(f"{place}: the samples hold values that are not finite, which no integer can stand for")
        return quantized(x, tensor)
    if tensor.dtype in INTEGERS and tensor.quantization is None and _whole(x):
        limits = np.iinfo(tensor.dtype)
        if limits.min <= x.min() and x.max() <= limits.max:
            return x.astype(tensor.dtype)
        raise InputError(f"{place}: takes {tensor.dtype}, found values from {x.min()} to {x.max()}")
    real = " or real numbers (float)" if tensor.dtype in FLOATS or tensor.quantization is not None else " (no scale)"
    raise InputError(f"{place}: takes {tensor.dtype}{real}, found {x.dtype}; convert the samples")
