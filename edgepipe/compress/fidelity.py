"""How far an integer model is from the float model it was quantized from, on samples that did not calibrate it.

A conversion has collapsed if an output's noise is more than half of what that output varies by: then half of what the
model says is lost. Healthy 8-bit models stay far below: a signal-to-noise ratio of 20 dB is one per cent.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from edgepipe.compress.quantizer.coarse_parts import coarse_channel_notes
from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.metric import Finding
from edgepipe.core.units import plural
from edgepipe.tflite.intermediate_tensors import list_activations, record_tensors
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import FLOAT_TYPES, Model, Tensor
from edgepipe.tflite.reader import read

MAX_SAMPLES = 1_000  # that both models run
MIN_SAMPLES = 16  # that a large model runs
MACS_BUDGET = 2e10  # of all samples of one model
COLLAPSE_NOISE = 0.5  # noise power over the variance of an output
LOCATING_SAMPLES = 16  # on which the tensor is found where the error arises
GENERAL_REMEDY = (
    "see `edgepipe sensitivity`; try scheme mixed or int16x8, keep_float_layers there, or calibration percentile"
)
REMEDY_BY_KIND = {  # of the operator that computes the first wrong tensor
    "LOG": (
        "a logarithm shows decades that integers do not hold (8 bits 2.4, 16 bits 4.5): keep it and what computes its "
        "input in float (keep_float_types: {LOG: null}, keep_float_layers), compute these features outside the model, "
        "or try scheme int16x8"
    ),
}


@final
@dataclass(frozen=True)
class OutputFidelity:
    """One output: noise power over the variance of its float values; None if those vary by less than one step."""

    name: str
    relative_noise: float | None
    notes: tuple[str, ...] = ()  # on channels that get few of its codes

    @property
    def has_collapsed(self) -> bool:
        """Whether more than half of what the output says is lost."""
        return self.relative_noise is not None and not self.relative_noise <= COLLAPSE_NOISE


@final
@dataclass(frozen=True)
class Fidelity:
    """The fidelity of every float output, the samples it was measured on, and where a collapse arises."""

    outputs: tuple[OutputFidelity, ...]
    sample_count: int
    first_wrong_tensor: str = ""  # the first tensor whose noise is more than half of its variance
    first_wrong_kind: str = ""  # of the operator that computes it

    def findings(self) -> list[Finding]:
        """One for each output that has collapsed."""
        place_text = f"; the first wrong tensor is '{self.first_wrong_tensor}'" if self.first_wrong_tensor else ""
        return [
            Finding(
                rule="fidelity",
                place=f"output '{output.name}'",
                observed=f"noise is {output.relative_noise:.2g} times what the float output varies by, on "
                f"{plural(self.sample_count, 'sample')} that did not calibrate{place_text}",
                suggestion=f"{REMEDY_BY_KIND.get(self.first_wrong_kind, GENERAL_REMEDY)}; "
                "allow_low_fidelity accepts the model as it is",
            )
            for output in self.outputs
            if output.has_collapsed
        ]


def measure_fidelity(lite: Model, content: bytes, samples: Arrays) -> Fidelity:
    """Compare the quantized .tflite `content` with the float model it was made from.

    Args:
        lite: the float .tflite.
        content: the quantized .tflite.
        samples: that did not calibrate, (samples, ...) or one array per input name.

    Raises:
        InputError: samples that do not fit, or a model that the runtime refuses.
    """
    sample_count = min(count_samples(samples), MAX_SAMPLES, max(MIN_SAMPLES, int(MACS_BUDGET / max(lite.macs, 1))))
    compared_samples = take_samples(samples, slice(sample_count))
    with temporary_tflite(content) as path:
        quantized_model = read(path)
        triples = zip(
            _real_outputs(lite.path, compared_samples),
            _real_outputs(path, compared_samples),
            (_output_step(quantized_model, tensor) for tensor in quantized_model.outputs),
            strict=True,
        )
        outputs = tuple(
            OutputFidelity(
                tensor.name,
                _relative_noise(quantized_array, float_array, step),
                tuple(coarse_channel_notes(tensor.name, float_array, step)),
            )
            for tensor, (float_array, quantized_array, step) in zip(lite.outputs, triples, strict=True)
            if tensor.dtype in FLOAT_TYPES
        )
        has_collapsed = any(output.has_collapsed for output in outputs)
        wrong_tensor = _find_wrong_tensor(lite, quantized_model, compared_samples) if has_collapsed else None
    if wrong_tensor is None:
        return Fidelity(outputs, sample_count)
    producer = lite.producer_by_key.get(wrong_tensor.key)
    return Fidelity(outputs, sample_count, wrong_tensor.name.split(";")[0], "" if producer is None else producer.name)


def _real_outputs(path: Path, samples: Arrays) -> list[Array]:
    outputs = predict(path, samples, Runtime.BUILTIN).real_values
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def _output_step(model: Model, tensor: Tensor) -> float:
    """The scale of an output, behind a DEQUANTIZE too; 0 for one that is computed in float."""
    producer = model.producer_by_key.get(tensor.key)
    is_dequantized = producer is not None and producer.name == "DEQUANTIZE"
    source = producer.input(0) if is_dequantized and producer is not None else tensor
    return source.quantization.scales[0] if source is not None and source.quantization is not None else 0.0


def _relative_noise(array: Array, float_array: Array, step: float = 0.0) -> float | None:
    """Noise power over variance; None if the float values vary by less than `step`, or are not finite."""
    exact = float_array.astype(np.float64)
    variance = float(np.square(exact - exact.mean(axis=0)).sum())
    least_variance = max(step**2 * exact.size, float(np.finfo(np.float32).tiny))
    if not math.isfinite(variance) or variance <= least_variance:
        return None
    return float(np.square(array.astype(np.float64) - exact).sum()) / variance


def _find_wrong_tensor(lite: Model, quantized_model: Model, samples: Arrays) -> Tensor | None:
    """The first float tensor, in the order of computation, that has collapsed; None if none is named alike."""
    pairs = list(_same_tensors(lite, quantized_model))
    few_samples = take_samples(samples, slice(min(LOCATING_SAMPLES, count_samples(samples))))
    float_records, integer_records = (
        list(record_tensors(model, few_samples, [pair[side] for pair in pairs], Runtime.BUILTIN))
        for side, model in enumerate((lite, quantized_model))
    )
    for position, (tensor, integer_tensor) in enumerate(pairs):
        float_array = np.stack([record[position] for record in float_records])
        codes = np.stack([record[position] for record in integer_records])
        noise = _relative_noise(_dequantize(codes, integer_tensor), float_array)
        if noise is not None and noise > COLLAPSE_NOISE:
            return tensor
    return None


def _same_tensors(lite: Model, quantized_model: Model) -> Iterator[tuple[Tensor, Tensor]]:
    """The float activations that the quantized model has under the same name and in the same shape."""
    tensor_by_name = {tensor.name: tensor for tensor in list_activations(quantized_model)}
    for tensor in list_activations(lite):
        same_tensor = tensor_by_name.get(tensor.name)
        if same_tensor is not None and same_tensor.shape == tensor.shape and tensor.dtype in FLOAT_TYPES:
            yield tensor, same_tensor


def _dequantize(codes: Array, tensor: Tensor) -> Array:
    if tensor.quantization is None:
        return codes
    return (codes.astype(np.float64) - tensor.quantization.zero_points[0]) * tensor.quantization.scales[0]
