"""Golden vectors: inputs, what the reference kernels here compute from them, and how far a device may differ.

The distribution that passes is stated before the device runs. By default its largest and its mean difference are twice
those between this machine's own optimized kernels and the reference kernels, and two steps (LSB) and a tenth of one at
least: optimized kernels round once where the reference rounds twice.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.core.units import plural
from edgepipe.tflite import interpreter
from edgepipe.tflite.interpreter import Runtime, Session
from edgepipe.tflite.model import FLOAT_TYPES, Model, Tensor
from edgepipe.tflite.parity import Parity, compare
from edgepipe.tflite.sample_conversion import ModelOutputs, check_type, convert_samples, dequantize_array
from edgepipe.tflite.stream_ports import read_stream_ports

DEFAULT_SAMPLES = 200
MAX_BYTES = 16 << 20  # of all inputs, and of all outputs
MIN_LSB = 2
MIN_MEAN_LSB = 0.1
MIN_RELATIVE_DIFFERENCE = 1e-5  # of the largest output, in float
SLACK = 2.0


class Tolerance(Record):
    """The differences that pass: of integers the largest and the mean in LSB, of floats the largest."""

    max_lsb: int | None
    mean_lsb: float
    max_difference: float
    source: str

    def text(self) -> str:
        """For messages and the report."""
        if self.max_lsb is None:
            return f"at most {self.max_difference:.3g} ({self.source})"
        return f"at most {self.max_lsb} LSB, and {self.mean_lsb:.2g} on average ({self.source})"

    def allows(self, parity: Parity) -> bool:
        """Whether the differences stay within it; float outputs of a mixed model count too."""
        if self.max_lsb is None or parity.max_lsb is None:
            return parity.max_difference <= self.max_difference
        return parity.max_lsb <= self.max_lsb and mean_lsb(parity) <= self.mean_lsb


def mean_lsb(parity: Parity) -> float:
    """The mean absolute difference of integer outputs, in LSB."""
    total = sum(parity.histogram.values())
    return sum(abs(step) * count for step, count in parity.histogram.items()) / total if total else 0.0


@dataclass(frozen=True)
class GoldenVectors:
    """`calls` has one array for each input of the model, (calls, *shape); `expected` one for each output."""

    model: Model
    calls: list[Array]
    expected: list[Array]
    tolerance: Tolerance
    provenance: str
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many calls there are."""
        return len(self.calls[0])

    def record(self) -> dict[str, Any]:
        """As JSON documents show them."""
        return {"count": self.count, "provenance": self.provenance, "tolerance": self.tolerance.model_dump()}

    def to_bytes(self) -> bytes:
        """The inputs as the .npz that the runner reads."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"input_{index}": array for index, array in enumerate(self.calls)}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    def compare(self, outputs: list[Array]) -> Parity:
        """How far `outputs` are from what is expected.

        Raises:
            InputError: they have other shapes or types.
        """
        return _compare(self.model, self.expected, outputs)


@dataclass(frozen=True)
class GoldenOptions:
    """What golden vectors are made of.

    `samples` are as the model takes them, of a streaming model whole sequences; None for random numbers. At most
    `max_samples` calls are made, fewer where inputs or outputs are large. `max_lsb` is the largest difference that
    passes; None derives it from this machine's own kernels.
    """

    samples: Arrays | None = None
    max_samples: int = DEFAULT_SAMPLES
    max_lsb: int | None = None


def build_golden_vectors(model: Model, options: GoldenOptions) -> GoldenVectors:
    """Golden vectors of `model`, which is run here by the reference and by the optimized kernels.

    Raises:
        InputError: samples that do not fit, or a model that does not run here.
    """
    interpreter.check_runs(model.path, Runtime.REFERENCE)
    interpreter.check_runs(model.path, Runtime.XNNPACK)
    calls, provenance = _build_calls(model, options.samples, options.max_samples)
    reference = Session(model, Runtime.REFERENCE, threads=1)
    count, notes = _affordable_count(reference, calls)
    calls = [array[:count] for array in calls]
    expected = _run_calls(reference, calls)
    optimized = _run_calls(Session(model, Runtime.XNNPACK, threads=1), calls)
    tolerance = _tolerance(_compare(model, expected, optimized), expected, options.max_lsb)
    return GoldenVectors(model, calls, expected, tolerance, f"{plural(count, 'call')} with {provenance}", notes)


def _build_calls(model: Model, samples: Arrays | None, max_samples: int) -> tuple[list[Array], str]:
    if samples is None:
        return [_random_calls(tensor, model.path, index, max_samples) for index, tensor in enumerate(model.inputs)], (
            "random numbers"
        )
    arrays = convert_samples(model, samples)
    if read_stream_ports(model) is not None:
        return [array[:max_samples] for array in _as_calls(model, interpreter.list_calls(model, arrays))], "samples"
    return [array[:max_samples] for array in _as_calls(model, arrays)], "samples"


def _as_calls(model: Model, arrays: list[Array]) -> list[Array]:
    """Samples grouped into calls of the batch that the model has: (calls, batch, ...)."""
    batch = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    count = len(arrays[0]) // batch
    if count == 0:
        raise InputError(f"{model.path}: takes batches of {batch}, found {plural(len(arrays[0]), 'sample')}")
    return [array[: count * batch].reshape(count, batch, *array.shape[1:]) for array in arrays]


def _random_calls(tensor: Tensor, path: Path, seed: int, count: int) -> Array:
    """Uniform over the whole type of integers with a scale, 0 and 1 for other integers, normal for floats."""
    check_type(path, tensor.name, tensor)
    rng, shape = np.random.default_rng(seed), (count, *tensor.shape)
    if tensor.dtype in FLOAT_TYPES:
        return rng.standard_normal(shape).astype(tensor.dtype)
    if tensor.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if tensor.quantization is None:
        return rng.integers(0, 2, shape).astype(tensor.dtype)  # indices and counts: small ones are always allowed
    limits = np.iinfo(tensor.dtype)
    return rng.integers(limits.min, limits.max, shape, tensor.dtype, endpoint=True)


def _affordable_count(session: Session, calls: list[Array]) -> tuple[int, tuple[str, ...]]:
    """How many calls stay within `MAX_BYTES`, and a note if not all."""
    first_outputs = _run_calls(session, [array[:1] for array in calls])
    largest = max(sum(array[:1].nbytes for array in calls), sum(array.nbytes for array in first_outputs), 1)
    count = max(1, min(len(calls[0]), MAX_BYTES // largest))
    if count == len(calls[0]):
        return count, ()
    return count, (f"golden vectors: {count} of {len(calls[0])}, as one takes {largest:,} bytes",)


def _run_calls(session: Session, calls: list[Array]) -> list[Array]:
    with interpreter.wrap_runtime_errors(session.model.path, session.runtime):
        opened = session.open_interpreter([array.shape[1:] for array in calls])
        outputs = [session.invoke(opened, [array[index] for array in calls]) for index in range(len(calls[0]))]
    return [np.stack(arrays) for arrays in zip(*outputs, strict=True)]


def _compare(model: Model, expected: list[Array], outputs: list[Array]) -> Parity:
    if len(expected) != len(outputs):
        raise InputError(f"{len(outputs)} outputs where the model has {len(expected)}")
    for name, reference, candidate in zip(model.outputs_by_name, expected, outputs, strict=True):
        _check_finite(name, reference, candidate)
    return compare(_all_outputs(model, expected), _all_outputs(model, outputs))


def _check_finite(name: str, reference: Array, candidate: Array) -> None:
    if reference.dtype.kind == "f" and reference.shape == candidate.shape:
        count = int((np.isfinite(reference) != np.isfinite(candidate)).sum())
        if count:
            raise InputError(f"output '{name}': {count:,} values are infinite or not a number on one side only")


def _all_outputs(model: Model, arrays: list[Array]) -> ModelOutputs:
    """Every output by its place, states of a streaming model and parts of a split output included."""
    finite_arrays = [np.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0) if a.dtype.kind == "f" else a for a in arrays]
    named = {f"{index}": pair for index, pair in enumerate(zip(model.outputs, finite_arrays, strict=True))}
    quantization_by_name = {name: t.quantization for name, (t, _) in named.items() if t.quantization is not None}
    return ModelOutputs(
        stored_values={name: array for name, (_, array) in named.items()},
        real_values={name: dequantize_array(array, tensor) for name, (tensor, array) in named.items()},
        scales={name: quantization.scales[0] for name, quantization in quantization_by_name.items()},
        zero_points={name: quantization.zero_points[0] for name, quantization in quantization_by_name.items()},
        provenance="golden vectors",
    )


def _tolerance(own_parity: Parity, expected: list[Array], max_lsb: int | None) -> Tolerance:
    magnitude = max((float(np.abs(a.astype(np.float64)).max(initial=0.0)) for a in expected), default=0.0)
    float_limit = max(SLACK * own_parity.max_difference, MIN_RELATIVE_DIFFERENCE * magnitude)
    own_max, own_mean = own_parity.max_lsb, mean_lsb(own_parity)
    if own_max is None:
        source = f"twice what this machine's own kernels differ, {own_parity.max_difference:.3g}"
        return Tolerance(max_lsb=None, mean_lsb=0.0, max_difference=float_limit, source=source)
    return Tolerance(
        max_lsb=max(MIN_LSB, round(SLACK * own_max)) if max_lsb is None else max_lsb,
        mean_lsb=max(MIN_MEAN_LSB, SLACK * own_mean) if max_lsb is None else float(max_lsb),
        max_difference=float_limit,
        source=f"this machine's own kernels differ by {own_max} and {own_mean:.2g}",
    )
