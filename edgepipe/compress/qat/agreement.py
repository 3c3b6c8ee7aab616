"""Where a fake-quant model and the int8 model that was converted from it part, tensor by tensor.

Every range of the fake-quant model belongs to one tensor of the .tflite: it bears the name of the layer and the same
scale and zero point. Values are compared in steps of that scale (LSB): 1 is rounding, more is rounding that was
amplified on the way or something that the converter computes otherwise.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer

from edgepipe.compress.qat.fake_quant import SUFFIX
from edgepipe.compress.qat.lowering.lower import nodes
from edgepipe.compress.qat.scales import Range, fake_range
from edgepipe.core.arrays import Array, Arrays
from edgepipe.tflite.intermediate_tensors import activations, run
from edgepipe.tflite.model import Model, Tensor

CLOSE = 1e-5  # relative: what float32 leaves of a scale that was computed in two places


@dataclass(frozen=True)
class TensorAgreement:
    """One tensor: how far the int8 values are from the fake-quantized ones, over all samples; or why unknown."""

    layer: str
    scale: float
    equal: float = 0.0  # share of values that are the same
    p99_lsb: float = 0.0
    max_lsb: int = 0
    mean_lsb: float = 0.0  # signed, int8 - fake-quant: away from zero it is no rounding
    missing: str = ""


@dataclass(frozen=True)
class Agreement:
    """Every tensor with a range of its own, in order of computation, and the labels that come out."""

    tensors: list[TensorAgreement]
    labels_equal: float | None  # samples whose largest entry of the first output is the same; None if it has one only


def agreement(model: Any, lite: Model, x: Arrays) -> Agreement:
    """Compare the fake-quant `model` with `lite`, converted from it, on all samples of `x`.

    Raises:
        InputError: the reference kernels refuse the model.
    """
    ranged = _all_ranged(model, lite)
    probe = tf_keras.Model(model.inputs, [*(entry.output for entry in ranged), model.outputs[0]])
    *fake, scores = (np.asarray(v) for v in _list(probe.predict(_given(model, x), batch_size=32, verbose=0)))
    twins = _twins(ranged, [values[0] for values in fake], lite, x)
    known = [(twin, values, entry) for twin, values, entry in zip(twins, fake, ranged, strict=True) if twin is not None]
    histograms, labels = [np.zeros(511, np.int64) for _ in known], []
    for sample, (*real, output) in enumerate(run(lite, x, [*(twin for twin, _, _ in known), lite.outputs[0]])):
        labels.append(output.argmax() == scores[sample].argmax())
        for (_, values, entry), integers, histogram in zip(known, real, histograms, strict=True):
            histogram += np.bincount(_steps(integers, values[sample], entry.range) + 255, minlength=511)
    told = iter(histograms)
    tensors = [
        _told(entry, next(told)) if twin is not None else _missing(entry)
        for entry, twin in zip(ranged, twins, strict=True)
    ]
    return Agreement(tensors, float(np.mean(labels)) if scores[0].size > 1 else None)


def samples_for(lite: Model, available: int) -> int:
    """How many samples the slow reference kernels run in a few seconds, at least four and at most 256."""
    return min(available, 256, max(4, int(2e9 / max(lite.macs, 1))))


@dataclass(frozen=True)
class _Ranged:
    """One call of a fake-quant layer: the layer before it, its range, its output, and the tensors of the same size."""

    layer: str
    range: Range
    output: Any
    alike: list[Tensor]

    def candidates(self) -> list[Tensor]:
        """The tensors that may be the twin: of the same range and size, and of the layer's name if any is."""
        alike = [tensor for tensor in self.alike if _same_range(tensor, self.range)]
        return [tensor for tensor in alike if self.names(tensor)] or alike

    def names(self, tensor: Tensor) -> bool:
        """Whether the tensor bears the layer's name, with or without tfmot's prefix."""
        return bool({self.layer, f"quant_{self.layer}"} & {*re.split("[/;:]", tensor.name)})


def _all_ranged(model: Any, lite: Model) -> list[_Ranged]:
    """Every call of a fake-quant layer, in the order of computation."""
    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for tensor in activations(lite):
        by_size[tensor.elements].append(tensor)
    found = []
    for node in nodes(model):
        if isinstance(node.layer, QuantizeLayer):
            size, end = math.prod(node.outputs.shape[1:]), _end(node, model, lite)
            alike = by_size[size] if end is None else [end] if end.elements == size else []
            name = node.layer.name.removesuffix(SUFFIX)
            found.append(_Ranged(name, fake_range(node.layer), node.outputs, alike))
    return found


def _end(node: Any, model: Any, lite: Model) -> Tensor | None:
    """The output that `node` gives, if it does: a certain tensor, which bears no layer's name."""
    ends = (index for index, output in enumerate(model.outputs) if output is node.outputs)
    return next((lite.outputs[index] for index in ends), None)


def _twins(ranged: list[_Ranged], first: list[Array], lite: Model, x: Arrays) -> list[Tensor | None]:
    """The tensor that belongs to each range; of several (a shared layer's calls), the one with the nearest values."""
    candidates = [entry.candidates() for entry in ranged]
    tensors = {tensor.index: tensor for found in candidates for tensor in found}
    alone = {key: values[:1] for key, values in x.items()} if isinstance(x, dict) else x[:1]
    real = dict(zip(tensors, next(run(lite, alone, list(tensors.values()))), strict=True))
    twins: list[Tensor | None] = []
    for entry, found, values in zip(ranged, candidates, first, strict=True):
        left = [tensor for tensor in found if tensor.index in tensors]
        distances = [np.abs(_steps(real[tensor.index], values, entry.range)).mean() for tensor in left]
        twins.append(tensors.pop(left[int(np.argmin(distances))].index) if left else None)
    return twins


def _missing(entry: _Ranged) -> TensorAgreement:
    named = [tensor.quantization for tensor in entry.alike if entry.names(tensor) and tensor.quantization]
    reason = "no tensor of the .tflite has this range: it was fused away"
    if named:
        reason = f"the .tflite has the scale {named[0].scales[0]:.6g}, zero point {named[0].zero_points[0]} there"
    return TensorAgreement(entry.layer, entry.range.scale, missing=reason)


def _same_range(tensor: Tensor, wanted: Range) -> bool:
    found = tensor.quantization
    if found is None or found.per_axis or tensor.dtype != "int8":
        return False
    return abs(found.scales[0] / wanted.scale - 1) < CLOSE and found.zero_points[0] == wanted.zero_point


def _steps(integers: Array, values: Array, wanted: Range) -> Array:
    """int8 - fake-quant in LSB, flat."""
    fake = np.clip(np.rint(values.ravel() / wanted.scale) + wanted.zero_point, -128, 127)
    steps: Array = integers.astype(np.int64).ravel() - fake.astype(np.int64)
    return steps


def _told(entry: _Ranged, histogram: Array) -> TensorAgreement:
    steps, total = np.arange(-255, 256), histogram.sum()
    absolute = np.bincount(np.abs(steps), weights=histogram)
    return TensorAgreement(
        layer=entry.layer,
        scale=entry.range.scale,
        equal=float(histogram[255] / total),
        p99_lsb=float(np.searchsorted(np.cumsum(absolute), 0.99 * total)),
        max_lsb=int(np.flatnonzero(absolute).max()),
        mean_lsb=float((steps * histogram).sum() / total),
    )


def _given(model: Any, x: Arrays) -> Any:
    return [x[name] for name in model.input_names] if isinstance(x, dict) else x


def _list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]
