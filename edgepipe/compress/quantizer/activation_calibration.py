"""Ranges of activations, from representative samples that a float .tflite is run on.

Every activation is looked at, one sample at a time. Min-max and moving averages need its extremes alone; percentiles
and squared errors a histogram of its values, which a second pass over the same samples fills.

Percentiles: Migacz, "8-bit Inference with TensorRT", GTC 2017. Squared error: Nagel et al. 2021 (arXiv 2106.08295),
section 3.1.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.compress.schemes import Calibration
from edgepipe.core.arrays import Array, Arrays, count, take
from edgepipe.core.errors import InputError
from edgepipe.tflite.intermediate_tensors import activations, run
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model, Tensor

BINS = 2048
MOMENTUM = 0.95  # of moving averages, by sample: some twenty samples count
STEPS = 255  # between the ends of an 8-bit range
SHRUNK = np.linspace(1.0, 0.2, 41)  # how far each end of a range is drawn in, to find the least squared error
SHOWN = 5  # names in a note; more are counted
MOVED = 0.05  # share of a range by which the second half of the samples may move it without a word

OVERFLOW = 3e38
SMALLEST = 1e-30  # width of a range; below it a tensor is always zero
SILENT = 1.0  # width that such a tensor gets

Range = tuple[float, float]


@final
@dataclass(frozen=True)
class Ranges:
    """The range of each activation, zero within, by its name; and how far the last half of the samples moved it."""

    by_tensor: dict[str, Range]
    moved: dict[str, float]  # share of the final range, for those that samples still move
    dead: tuple[str, ...]  # activations that are zero on every sample
    samples: int
    calibration: Calibration

    def notes(self) -> list[str]:
        """What samples did not show, and a warning if more of them would move the ranges on."""
        return [*self._silent(), *self._moving()]

    def _silent(self) -> list[str]:
        if not self.dead:
            return []
        shown = ", ".join(f"'{name.split(';')[0]}'" for name in self.dead[:SHOWN])
        more = f" and {len(self.dead) - SHOWN} more" if len(self.dead) > SHOWN else ""
        return [f"always zero on the {self.samples} representative samples, so without a range: {shown}{more}"]

    def _moving(self) -> list[str]:
        if not self.moved:
            return []
        worst = max(self.moved, key=lambda name: self.moved[name])
        how = f"calibration by {self.calibration.told()}: the second half of the {self.samples} representative samples"
        which = f"{len(self.moved)} of {len(self.by_tensor)} ranges by more than {MOVED:.0%}"
        most = f"the most that of '{worst.split(';')[0]}' by {self.moved[worst]:.0%}"
        more = f"give more samples ({2 * self.samples}, say; in a pipeline: `representative`)"
        return [f"{how} still moved {which}, {most}; {more}"]


def calibrate(model: Model, samples: Arrays, how: Calibration) -> Ranges:
    """The range of every floating point activation of the float `model`.

    Raises:
        InputError: samples that do not fit, activations that are not finite, or a model that does not run.
    """
    tensors = _floating(model)
    low, high = _extremes(model, samples, tensors)
    number = count(samples)
    whole = _ranges(model, samples, tensors, (low, high), how)
    half = max(number // 2, 1)
    early = _ranges(model, take(samples, slice(half)), tensors, (low[:half], high[:half]), how)
    dead = [tensor.name for tensor, a, b in zip(tensors, low.min(axis=0), high.max(axis=0), strict=True) if a == b == 0]
    return Ranges(_named(tensors, whole), _moved(tensors, early, whole), tuple(dead), number, how)


def _floating(model: Model) -> list[Tensor]:
    found = {tensor.key: tensor for tensor in activations(model) if tensor.dtype == "float32"}
    return list(found.values())


def _extremes(model: Model, samples: Arrays, tensors: list[Tensor]) -> tuple[Array, Array]:
    """The smallest and the largest value of each tensor on each sample, (samples, tensors)."""
    low, high = [], []
    for values in run(model, samples, tensors, Runtime.BUILTIN):
        low.append([float(value.min()) if value.size else 0.0 for value in values])
        high.append([float(value.max()) if value.size else 0.0 for value in values])
    found = np.array(low), np.array(high)
    # NaN, infinity, and the largest float32, which kernels clip infinity to
    wrong = np.flatnonzero(~((np.abs(found[0]) < OVERFLOW) & (np.abs(found[1]) < OVERFLOW)).all(axis=0))
    if wrong.size:
        raise InputError(
            f"{model.path}: '{tensors[wrong[0]].name}' is not finite on the representative samples, and "
            f"{wrong.size - 1} more; such a model has no ranges"
        )
    return found


def _ranges(
    model: Model, samples: Arrays, tensors: list[Tensor], extremes: tuple[Array, Array], how: Calibration
) -> Array:
    """Low and high of each tensor, (tensors, 2), zero within."""
    if how.method == "moving_average":
        found = np.stack([_moving(part) for part in extremes], axis=1)
        return _with_zero(found)
    found = _with_zero(np.stack([extremes[0].min(axis=0), extremes[1].max(axis=0)], axis=1))
    if how.method == "min_max":
        return found
    histograms = _histograms(model, samples, tensors, found)
    chosen = [_chosen(counts, span, how) for counts, span in zip(histograms, found, strict=True)]
    return _with_zero(np.array(chosen).reshape(-1, 2))


def _chosen(counts: Array, span: Array, how: Calibration) -> Range:
    edges = np.linspace(span[0], span[1], BINS + 1)
    return _percentile(counts, edges, how.percentile) if how.method == "percentile" else _least_error(counts, edges)


def _moving(extremes: Array) -> Array:
    """The moving average along the first axis, which counts samples, from the first one on."""
    average = extremes[0]
    for row in extremes[1:]:
        average = MOMENTUM * average + (1 - MOMENTUM) * row
    return np.asarray(average)


def _with_zero(found: Array) -> Array:
    """Ranges that hold zero; one that holds nothing else is given a width, because a scale of zero runs nowhere."""
    low, high = np.minimum(found[:, 0], 0), np.maximum(found[:, 1], 0)
    return np.stack([low, np.where(high - low > SMALLEST, high, low + SILENT)], axis=1)


def _histograms(model: Model, samples: Arrays, tensors: list[Tensor], spans: Array) -> Array:
    """How many values of each tensor lie in each of equal bins over its span, (tensors, bins)."""
    counts = np.zeros((len(tensors), BINS), np.int64)
    widths = np.maximum(spans[:, 1] - spans[:, 0], np.finfo(np.float32).tiny)
    for values in run(model, samples, tensors, Runtime.BUILTIN):
        for row, value, low, width in zip(counts, values, spans[:, 0], widths, strict=True):
            bins = np.clip((value.ravel() - low) * (BINS / width), 0, BINS - 1).astype(np.int64)
            row += np.bincount(bins, minlength=BINS)
    return counts


def _percentile(counts: Array, edges: Array, share: float) -> Range:
    """The edges between which `share` per cent of the values lie, the rest halved between both sides."""
    if not counts.any():  # of a tensor without elements
        return float(edges[0]), float(edges[-1])
    tail = (1 - share / 100) / 2 * counts.sum()
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    first, last = int(np.searchsorted(below, tail, "right")), int(np.searchsorted(above, tail, "right"))
    return float(edges[min(first, BINS - 1)]), float(edges[max(BINS - last, 1)])


def _least_error(counts: Array, edges: Array) -> Range:
    """The range with the least squared error of clipping and rounding; each end is drawn in while the other stays."""
    filled = np.flatnonzero(counts)
    if not filled.size or edges[0] == edges[-1]:
        return float(edges[0]), float(edges[-1])
    values, weights = ((edges[:-1] + edges[1:]) / 2)[filled], counts[filled]
    low, high = float(edges[0]), float(edges[-1])
    for _ in range(2):
        high = min(SHRUNK * edges[-1], key=lambda end: _error(values, weights, low, float(end)))
        low = min(SHRUNK * edges[0], key=lambda end: _error(values, weights, float(end), float(high)))
    return float(low), float(high)


def _error(values: Array, weights: Array, low: float, high: float) -> float:
    scale = (high - low) / STEPS
    if scale <= 0:
        return float("inf")
    zero = np.rint(-low / scale)
    stored = np.clip(np.rint(values / scale) + zero, 0, STEPS)
    return float((weights * np.square((stored - zero) * scale - values)).sum())


def _named(tensors: list[Tensor], found: Array) -> dict[str, Range]:
    return {tensor.name: (float(low), float(high)) for tensor, (low, high) in zip(tensors, found, strict=True)}


def _moved(tensors: list[Tensor], early: Array, whole: Array) -> dict[str, float]:
    widths = np.maximum(whole[:, 1] - whole[:, 0], np.finfo(np.float32).tiny)
    moved = np.abs(whole - early).sum(axis=1) / widths
    return {tensor.name: float(by) for tensor, by in zip(tensors, moved, strict=True) if by > MOVED}
