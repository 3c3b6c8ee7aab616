"""How far an integer model is from the float model it was quantized from, on samples that did not calibrate it.

A conversion has collapsed if the signal-to-noise ratio of an output is below 5 dB, or below 8 dB while labels change.
Of 270 small models, the healthy ones have 10 to 60 dB in 8 bits, untrained ones sometimes 7; those that lost their
function (masks, exponentials and shared ranges as TensorFlow's quantizer treats them) have less than 8.
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
from edgepipe.core.metric import Finding, Metric, measured_metric, unavailable_metric
from edgepipe.core.units import Dimension, plural
from edgepipe.tflite.intermediate_tensors import list_activations, record_tensors
from edgepipe.tflite.interpreter import Runtime, list_calls, predict
from edgepipe.tflite.model import FLOAT_TYPES, Model, Tensor
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import convert_samples
from edgepipe.tflite.stream_ports import own_outputs, read_stream_ports

MAX_SAMPLES = 1_000  # that both models run
MIN_SAMPLES = 16  # that a large model runs
MACS_BUDGET = 2e10  # of all samples of one model
COLLAPSE_DECIBELS = 5.0  # signal-to-noise ratio
DOUBTFUL_DECIBELS = 8.0  # below it, labels decide
MIN_EQUAL_LABELS = 0.9
MAX_DECIBELS = 120.0  # beyond it, float32 itself rounds
MIN_STEPS = 2.0  # standard deviation of an output that is judged, in steps that it can have
PRESCRIBED_STEPS = (1 / 256, 1 / 128, 16 / 256)  # of outputs whose scale no quantizer chooses
MAX_SCALE = 1e6  # of an activation: one step of a mask fill, or of an outlier
LOCATING_SAMPLES = 16  # on which the tensor is found where the error arises
GENERAL_REMEDY = "see `edgepipe sensitivity`; keep_float_layers there, or try calibration percentile"
WIDER_REMEDY = ", or scheme mixed or int16x8"  # where activations have 8 bits throughout
REMEDY_BY_KIND = {  # of the operator that computes the first wrong tensor
    "LOG": (
        "a logarithm shows decades that integers do not hold (8 bits 2.4, 16 bits 4.5): keep it and what computes its "
        "input in float (keep_float_types: {LOG: null}, keep_float_layers), or compute these features outside the model"
    ),
}


@final
@dataclass(frozen=True)
class OutputFidelity:
    """One output: noise power over the variance of its float values; None if those hardly vary.

    `equal_fraction` counts the labels (of a sample, a pixel or a position of a sequence) that are equal; None for
    outputs without labels.
    """

    name: str
    relative_noise: float | None
    equal_fraction: float | None = None
    is_constant: bool = False  # in the integer model, on all samples
    notes: tuple[str, ...] = ()  # on channels that get few of its codes

    @property
    def decibels(self) -> float | None:
        """The signal-to-noise ratio."""
        return None if self.relative_noise is None else _decibels(self.relative_noise)

    @property
    def has_collapsed(self) -> bool:
        """Whether the output has lost what it says."""
        if self.decibels is None:
            return False
        loses_labels = self.equal_fraction is not None and self.equal_fraction < MIN_EQUAL_LABELS
        return self.decibels < (DOUBTFUL_DECIBELS if loses_labels else COLLAPSE_DECIBELS)

    def describe(self) -> str:
        """For a report: the ratio, or why there is none."""
        ratio_text = "not judged, varies by less than two steps" if self.decibels is None else f"{self.decibels:.1f} dB"
        return f"'{self.name}' {ratio_text}"


@final
@dataclass(frozen=True)
class Fidelity:
    """The fidelity of every float output, the samples it was measured on, and where a collapse arises."""

    outputs: tuple[OutputFidelity, ...]
    sample_count: int
    first_wrong_tensor: str = ""  # the first tensor with a lower ratio than an output may have
    first_wrong_kind: str = ""  # of the operator that computes it
    wide_scales: tuple[tuple[str, float], ...] = ()  # activations with an absurd scale, by name
    has_int16_activations: bool = False

    def findings(self) -> list[Finding]:
        """One for each output that has collapsed, and for each absurd scale."""
        return [
            *(self._collapse_finding(output) for output in self.outputs if output.has_collapsed),
            *(_scale_finding(name, scale) for name, scale in self.wide_scales),
        ]

    def _collapse_finding(self, output: OutputFidelity) -> Finding:
        place_text = f"; the first wrong tensor is '{self.first_wrong_tensor}'" if self.first_wrong_tensor else ""
        constant_text = "it is constant in the integer model, " if output.is_constant else ""
        return Finding(
            rule="fidelity",
            place=f"output '{output.name}'",
            observed=f"{constant_text}signal-to-noise {output.decibels:.1f} dB against the float model"
            f"{_labels_text(output)}, on {self._samples_text}{place_text}",
            suggestion=f"{REMEDY_BY_KIND.get(self.first_wrong_kind, GENERAL_REMEDY)}"
            f"{'' if self.has_int16_activations else WIDER_REMEDY}; "
            "allow_low_fidelity accepts the model as it is",
        )

    def metrics(self) -> list[Metric]:
        """The lowest signal-to-noise ratio of an output, and the lowest fraction of equal labels."""
        return [self._ratio_metric(), self._labels_metric()]

    @property
    def _samples_text(self) -> str:
        return f"{plural(self.sample_count, 'sample')} that did not calibrate"

    def _ratio_metric(self) -> Metric:
        ratios = [output.decibels for output in self.outputs if output.decibels is not None]
        outputs_text = f"dB, {', '.join(output.describe() for output in self.outputs)}, on {self._samples_text}"
        if not ratios:
            return unavailable_metric("signal_to_noise", Dimension.NUMBER, outputs_text)
        return measured_metric("signal_to_noise", min(ratios), Dimension.NUMBER, outputs_text)

    def _labels_metric(self) -> Metric:
        fractions = {o.name: o.equal_fraction for o in self.outputs if o.equal_fraction is not None}
        if not fractions:
            return unavailable_metric("float_labels_equal", Dimension.FRACTION, "no output has labels")
        fractions_text = ", ".join(f"'{name}' {fraction:.2%}" for name, fraction in fractions.items())
        labels_text = f"same label as the float model, {fractions_text}, on {self._samples_text}"
        return measured_metric("float_labels_equal", min(fractions.values()), Dimension.FRACTION, labels_text)


def unavailable_fidelity(reason: str) -> list[Metric]:
    """The metrics of a model that was not compared."""
    return [
        unavailable_metric("signal_to_noise", Dimension.NUMBER, reason),
        unavailable_metric("float_labels_equal", Dimension.FRACTION, reason),
    ]


def _scale_finding(name: str, scale: float) -> Finding:
    return Finding(
        rule="fidelity",
        place=f"tensor '{name}'",
        observed=f"one step is {scale:.2g}, {MAX_SCALE:g} or more: a mask fill or an outlier stretches the range",
        suggestion="use a smaller fill (-1e9 and infinity are handled where they only feed a softmax or a maximum), "
        "clip the tensor, or calibration percentile; allow_low_fidelity accepts the model as it is",
    )


def _labels_text(output: OutputFidelity) -> str:
    return "" if output.equal_fraction is None else f", {output.equal_fraction:.0%} of labels equal"


def _decibels(relative_noise: float) -> float:
    if not math.isfinite(relative_noise):
        return -MAX_DECIBELS
    return MAX_DECIBELS if relative_noise <= 10 ** (-MAX_DECIBELS / 10) else -10 * math.log10(relative_noise)


def measure_fidelity(lite: Model, content: bytes, samples: Arrays) -> Fidelity:
    """Compare the quantized .tflite `content` with the float model it was made from.

    Args:
        lite: the float .tflite.
        content: the quantized .tflite.
        samples: that did not calibrate, (samples, ...) or one array per input name.

    Raises:
        InputError: samples that do not fit, or a model that the runtime refuses.
    """
    sample_macs = max(lite.macs * _calls_per_sample(lite, samples), 1)
    sample_count = min(count_samples(samples), MAX_SAMPLES, max(MIN_SAMPLES, int(MACS_BUDGET / sample_macs)))
    compared_samples = take_samples(samples, slice(sample_count))
    with temporary_tflite(content) as path:
        quantized_model = read(path)
        outputs = tuple(_compare_outputs(lite, quantized_model, compared_samples))
        has_collapsed = any(output.has_collapsed for output in outputs)
        wrong_tensor = _find_wrong_tensor(lite, quantized_model, compared_samples) if has_collapsed else None
        wide_scales = tuple(_find_wide_scales(quantized_model))
    description = ("", "") if wrong_tensor is None else _describe_tensor(lite, wrong_tensor)
    return Fidelity(outputs, sample_count, *description, wide_scales, _has_int16_activations(quantized_model))


def _has_int16_activations(model: Model) -> bool:
    tensors = (tensor for operator in model.operators for tensor in operator.outputs)
    return any(tensor is not None and tensor.dtype == "int16" for tensor in tensors)


def _calls_per_sample(lite: Model, samples: Arrays) -> int:
    """More than one for the sequences of a streaming model."""
    ports = read_stream_ports(lite)
    if ports is None:
        return 1
    array = next(iter(samples.values())) if isinstance(samples, dict) else samples
    return int(array.shape[1]) // ports.steps


def _describe_tensor(lite: Model, tensor: Tensor) -> tuple[str, str]:
    """The name of a tensor, as users call it if it is an output, and the kind of the operator that computes it."""
    name_by_output = {output.key: name for name, output in lite.outputs_by_name.items()}
    producer = lite.producer_by_key.get(tensor.key)
    return name_by_output.get(tensor.key) or tensor.name.split(";")[0], "" if producer is None else producer.name


def _compare_outputs(lite: Model, quantized_model: Model, samples: Arrays) -> Iterator[OutputFidelity]:
    output_arrays = (_real_outputs(model.path, samples) for model in (lite, quantized_model))
    for (name, tensor), quantized_tensor, float_array, array in zip(
        own_outputs(lite).items(), own_outputs(quantized_model).values(), *output_arrays, strict=True
    ):
        if tensor.dtype in FLOAT_TYPES:
            step = _output_step(quantized_model, quantized_tensor)
            yield OutputFidelity(
                name,
                _relative_noise(array, float_array, MIN_STEPS * _attainable_step(float_array, step)),
                labels_equal(array, float_array),
                is_constant=bool((array == array[:1]).all()),
                notes=tuple(coarse_channel_notes(name, float_array, step)),
            )


def _attainable_step(float_array: Array, step: float) -> float:
    """The step that an 8-bit output could have: the prescribed one, or that of the range of its values.

    Not the step it has: a range that something has stretched must not hide that the output is lost.
    """
    if step in PRESCRIBED_STEPS or not float_array.size:
        return step
    return (max(float(float_array.max()), 0.0) - min(float(float_array.min()), 0.0)) / 255


def labels_equal(array: Array, float_array: Array) -> float | None:
    """The fraction of equal labels: the largest of several scores, or a probability of at least one half."""
    if float_array.ndim > 1 and float_array.shape[-1] > 1:
        return float(np.mean(array.argmax(axis=-1) == float_array.argmax(axis=-1)))
    is_probability = float_array.size > 0 and float_array.min() >= 0 and float_array.max() <= 1
    return float(np.mean((array >= 0.5) == (float_array >= 0.5))) if is_probability else None


def _find_wide_scales(model: Model) -> Iterator[tuple[str, float]]:
    """Computed activations with an absurd scale, the first of each scale."""
    tensor_by_scale: dict[float, str] = {}
    for tensor in (t for op in model.operators for t in op.outputs if t is not None and t.quantization is not None):
        assert tensor.quantization is not None
        if tensor.quantization.scales[0] >= MAX_SCALE:
            tensor_by_scale.setdefault(tensor.quantization.scales[0], tensor.name.split(";")[0])
    return ((name, scale) for scale, name in tensor_by_scale.items())


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
    if read_stream_ports(lite) is not None:
        few_samples = dict(zip(lite.inputs_by_name, list_calls(lite, convert_samples(lite, few_samples)), strict=True))
    float_records, integer_records = (
        list(record_tensors(model, few_samples, [pair[side] for pair in pairs], Runtime.BUILTIN))
        for side, model in enumerate((lite, quantized_model))
    )
    for position, (tensor, integer_tensor) in enumerate(pairs):
        float_array = np.stack([record[position] for record in float_records])
        codes = np.stack([record[position] for record in integer_records])
        noise = _relative_noise(_dequantize(codes, integer_tensor), float_array)
        if noise is not None and _decibels(noise) < DOUBTFUL_DECIBELS:
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
