"""Compares an int8 model with the fake-quant model it was made from, tensor by tensor.

Every fake-quant of a float .tflite writes codes, and the quantizer says which tensor of the int8 model it has become.
Their difference is counted in steps (LSB): 1 is rounding; more is amplified rounding, or something that integer kernels
compute differently.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.trained_ranges import fake_quant_tensors
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.tflite.intermediate_tensors import list_activations, record_tensors
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model, Quantization, Tensor
from edgepipe.tflite.reader import read

MAX_SAMPLES = 256
MIN_SAMPLES = 4
MACS_BUDGET = 2e9  # of all samples: some seconds
UINT8_SHIFT = 128  # of codes and zero points in uint8, in which TensorFlow's converter stores fake-quant, over int8
MAX_DIFFERENCE = 255
SCALE_TOLERANCE = 1e-5  # relative float32 error of a scale that is computed in two places
# the op of a fake-quant layer, edgepipe's or tfmot's, after the name of the layer before it
FAKE_QUANT_OP = re.compile(r"(?:quant_)?([^/;]+?)(?:_fake_quant)?/[^/;]+/FakeQuantWithMinMax(?:Vars|Args)(?:;|$)")


@final
@dataclass(frozen=True)
class TensorAgreement:
    """How far the int8 values of one tensor are from the fake-quantized ones, over all samples; or why unknown."""

    layer: str
    scale: float
    equal_fraction: float = 0.0  # fraction of values that are equal
    p99_lsb: float = 0.0
    max_lsb: int = 0
    mean_lsb: float = 0.0  # signed, int8 - fake-quant: a bias is more than rounding
    missing_reason: str = ""


@final
@dataclass(frozen=True)
class Agreement:
    """Every tensor with a trained range, in the order of computation, and how often the predicted labels agree."""

    tensors: tuple[TensorAgreement, ...]
    labels_equal: float | None  # fraction of samples with the same argmax of output 0; None if it is a scalar
    sample_count: int


def measure_agreement(
    fake_quant_model: Model, content: bytes, tensor_by_fake_quant: Mapping[str, str], samples: Arrays
) -> Agreement:
    """Compare the int8 .tflite `content` with the float .tflite with fake-quant that it was made from.

    Args:
        fake_quant_model: the float .tflite with fake-quant.
        content: the int8 .tflite.
        tensor_by_fake_quant: the tensor of the int8 model that each fake-quant has become, both by name.
        samples: that did not calibrate, (samples, ...) or one array per input name.

    Raises:
        InputError: LiteRT's kernels cannot run the model.
    """
    compared_samples = take_samples(samples, slice(_choose_sample_count(fake_quant_model, count_samples(samples))))
    with temporary_tflite(content) as path:
        int8_model = read(path)
        pairs = _pair_tensors(fake_quant_model, int8_model, tensor_by_fake_quant)
        histograms, labels_equal = _count_differences(fake_quant_model, int8_model, pairs, compared_samples)
    agreements = tuple(_tensor_agreement(pair, histogram) for pair, histogram in zip(pairs, histograms, strict=True))
    return Agreement(agreements, labels_equal, count_samples(compared_samples))


@final
@dataclass(frozen=True)
class _TensorPair:
    """The integer tensor of a fake-quant, and the tensor of the int8 model that it has become, if there is one."""

    fake_quant: Tensor
    int8_tensor: Tensor | None

    @property
    def layer_name(self) -> str:
        """The layer before the fake-quant, or the first operation that the converter names it after."""
        match = FAKE_QUANT_OP.search(self.fake_quant.name)
        return match.group(1) if match else self.fake_quant.name.split(";")[0]

    @property
    def trained_quantization(self) -> Quantization:
        """Scale and zero point, the latter in the type of the fake-quant."""
        assert self.fake_quant.quantization is not None, "it is the output of a QUANTIZE"
        return self.fake_quant.quantization

    @property
    def code_shift(self) -> int:
        """What the codes of the fake-quant are higher by than those of int8."""
        return UINT8_SHIFT if self.fake_quant.dtype == "uint8" else 0

    @property
    def mismatch_reason(self) -> str:
        """Why the values cannot be compared; empty if they can."""
        if self.int8_tensor is None:
            return "no tensor of the .tflite has this range: it was fused away"
        quantization, trained = self.int8_tensor.quantization, self.trained_quantization
        if quantization is None or self.int8_tensor.dtype != "int8":
            return f"the .tflite has {self.int8_tensor.dtype} there"
        scale, zero_point = quantization.scales[0], quantization.zero_points[0]
        is_equal = abs(scale / trained.scales[0] - 1) < SCALE_TOLERANCE
        if is_equal and zero_point == trained.zero_points[0] - self.code_shift:
            return ""
        return f"the .tflite has the scale {scale:.6g}, zero point {zero_point} there"


def _choose_sample_count(model: Model, available_samples: int) -> int:
    return min(available_samples, MAX_SAMPLES, max(MIN_SAMPLES, int(MACS_BUDGET / max(model.macs, 1))))


def _pair_tensors(
    fake_quant_model: Model, int8_model: Model, tensor_by_fake_quant: Mapping[str, str]
) -> list[_TensorPair]:
    tensor_by_name = {tensor.name: tensor for tensor in list_activations(int8_model)}
    return [
        _TensorPair(tensor, tensor_by_name.get(tensor_by_fake_quant.get(tensor.name, "")))
        for tensor in fake_quant_tensors(fake_quant_model)
        if tensor.name in tensor_by_fake_quant  # the rest are weights
    ]


def _count_differences(
    fake_quant_model: Model, int8_model: Model, pairs: list[_TensorPair], samples: Arrays
) -> tuple[list[Array], float | None]:
    """For each pair, how many values differ by -255 .. 255 steps; and the fraction of samples with equal labels."""
    compared_pairs = [pair for pair in pairs if not pair.mismatch_reason]
    histograms = {id(pair): np.zeros(2 * MAX_DIFFERENCE + 1, np.int64) for pair in pairs}
    records = (
        record_tensors(model, samples, [*tensors, model.outputs[0]], Runtime.BUILTIN)
        for model, tensors in (
            (fake_quant_model, [pair.fake_quant for pair in compared_pairs]),
            (int8_model, [pair.int8_tensor for pair in compared_pairs if pair.int8_tensor is not None]),
        )
    )
    label_agreements = []
    for (*fake_arrays, fake_output), (*int8_arrays, int8_output) in zip(*records, strict=True):
        label_agreements.append(fake_output.argmax() == int8_output.argmax())
        for pair, fake_array, int8_array in zip(compared_pairs, fake_arrays, int8_arrays, strict=True):
            differences = int8_array.astype(np.int64).ravel() + pair.code_shift - fake_array.astype(np.int64).ravel()
            histograms[id(pair)] += np.bincount(differences + MAX_DIFFERENCE, minlength=2 * MAX_DIFFERENCE + 1)
    has_labels = fake_quant_model.outputs[0].element_count > 1
    return list(histograms.values()), float(np.mean(label_agreements)) if has_labels else None


def _tensor_agreement(pair: _TensorPair, histogram: Array) -> TensorAgreement:
    scale = pair.trained_quantization.scales[0]
    if pair.mismatch_reason:
        return TensorAgreement(pair.layer_name, scale, missing_reason=pair.mismatch_reason)
    differences, value_count = np.arange(-MAX_DIFFERENCE, MAX_DIFFERENCE + 1), histogram.sum()
    absolute_histogram = np.bincount(np.abs(differences), weights=histogram)
    return TensorAgreement(
        layer=pair.layer_name,
        scale=scale,
        equal_fraction=float(histogram[MAX_DIFFERENCE] / value_count),
        p99_lsb=float(np.searchsorted(np.cumsum(absolute_histogram), 0.99 * value_count)),
        max_lsb=int(np.flatnonzero(absolute_histogram).max()),
        mean_lsb=float((differences * histogram).sum() / value_count),
    )
