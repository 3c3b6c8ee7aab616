"""Activation ranges, measured by running a float .tflite on representative samples.

Every activation is recorded, one sample at a time. Min-max and moving averages need only its extremes; percentile and
mean squared error need a histogram of its values, which a second pass over the same samples fills.

Percentiles: Migacz, "8-bit Inference with TensorRT", GTC 2017. Squared error: Nagel et al. 2021 (arXiv 2106.08295),
section 3.1.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.tflite.intermediate_tensors import list_activations, record_tensors
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model, Tensor

BINS = 2048
MOMENTUM = 0.95  # of moving averages, by sample: some twenty samples count
INT8_STEPS = 255  # between the ends of an 8-bit range
SHRINK_FACTORS = np.linspace(1.0, 0.2, 41)  # candidate ends of a range in the search for the least squared error
MAX_NAMES_SHOWN = 5  # names in a note; more are counted
SHIFT_TOLERANCE = 0.05  # share of a range by which the second half of the samples may move it without a note

OVERFLOW = 3e38
MIN_WIDTH = 1e-30  # width of a range; below it a tensor is always zero
DEAD_WIDTH = 1.0  # width that such a tensor gets

ActivationRange = tuple[float, float]


@final
@dataclass(frozen=True)
class ActivationRanges:
    """The range of each activation by tensor name, zero included; and how far the samples' second half moved it."""

    by_tensor: dict[str, ActivationRange]
    shifts: dict[str, float]  # share of the final range, for those that samples still move
    dead_tensors: tuple[str, ...]  # activations that are zero on every sample
    sample_count: int
    calibration: ActivationCalibration

    def notes(self) -> list[str]:
        """Activations without a range, and a warning if more samples would still move the ranges."""
        return [*self._dead_notes(), *self._shift_notes()]

    def _dead_notes(self) -> list[str]:
        if not self.dead_tensors:
            return []
        dead_names = ", ".join(f"'{name.split(';')[0]}'" for name in self.dead_tensors[:MAX_NAMES_SHOWN])
        remainder = (
            f" and {len(self.dead_tensors) - MAX_NAMES_SHOWN} more" if len(self.dead_tensors) > MAX_NAMES_SHOWN else ""
        )
        samples_text = f"the {plural(self.sample_count, 'representative sample')}"
        return [f"always zero on {samples_text}, so without a range: {dead_names}{remainder}"]

    def _shift_notes(self) -> list[str]:
        if not self.shifts:
            return []
        worst_tensor = max(self.shifts, key=lambda name: self.shifts[name])
        samples_text = f"the {plural(self.sample_count, 'representative sample')}"
        calibration_text = f"calibration by {self.calibration.describe()}: the second half of {samples_text}"
        count_text = f"{len(self.shifts)} of {len(self.by_tensor)} ranges by more than {SHIFT_TOLERANCE:.0%}"
        worst_text = f"the most that of '{worst_tensor.split(';')[0]}' by {self.shifts[worst_tensor]:.0%}"
        remedy = f"give more samples ({2 * self.sample_count}, say; in a pipeline: `representative`)"
        return [f"{calibration_text} still moved {count_text}, {worst_text}; {remedy}"]


def calibrate(model: Model, samples: Arrays, calibration: ActivationCalibration) -> ActivationRanges:
    """The range of every floating point activation of the float `model`.

    Raises:
        InputError: samples that do not fit, activations that are not finite, or a model that does not run.
    """
    tensors = _float_activations(model)
    low, high = _extremes(model, samples, tensors)
    sample_count = count_samples(samples)
    final_ranges = _compute_ranges(model, samples, tensors, (low, high), calibration)
    half_count = max(sample_count // 2, 1)
    half_ranges = _compute_ranges(
        model, take_samples(samples, slice(half_count)), tensors, (low[:half_count], high[:half_count]), calibration
    )
    dead_tensors = [
        tensor.name for tensor, a, b in zip(tensors, low.min(axis=0), high.max(axis=0), strict=True) if a == b == 0
    ]
    return ActivationRanges(
        _range_by_name(tensors, final_ranges),
        _range_shifts(tensors, half_ranges, final_ranges),
        tuple(dead_tensors),
        sample_count,
        calibration,
    )


def _float_activations(model: Model) -> list[Tensor]:
    tensor_by_key = {tensor.key: tensor for tensor in list_activations(model) if tensor.dtype == "float32"}
    return list(tensor_by_key.values())


def _extremes(model: Model, samples: Arrays, tensors: list[Tensor]) -> tuple[Array, Array]:
    """The smallest and the largest value of each tensor on each sample, (samples, tensors)."""
    low, high = [], []
    for arrays in record_tensors(model, samples, tensors, Runtime.BUILTIN):
        low.append([float(array.min()) if array.size else 0.0 for array in arrays])
        high.append([float(array.max()) if array.size else 0.0 for array in arrays])
    extremes = np.array(low), np.array(high)
    # NaN, infinity, and the largest float32, which kernels clip infinity to
    nonfinite_indices = np.flatnonzero(
        ~((np.abs(extremes[0]) < OVERFLOW) & (np.abs(extremes[1]) < OVERFLOW)).all(axis=0)
    )
    if nonfinite_indices.size:
        raise InputError(
            f"{model.path}: '{tensors[nonfinite_indices[0]].name}' is not finite on the representative samples, and "
            f"{nonfinite_indices.size - 1} more; such a model has no ranges"
        )
    return extremes


def _compute_ranges(
    model: Model,
    samples: Arrays,
    tensors: list[Tensor],
    extremes: tuple[Array, Array],
    calibration: ActivationCalibration,
) -> Array:
    """Low and high of each tensor, (tensors, 2), zero within."""
    if calibration.method == "moving_average":
        ranges = np.stack([_moving_average(bound) for bound in extremes], axis=1)
        return _include_zero(ranges)
    ranges = _include_zero(np.stack([extremes[0].min(axis=0), extremes[1].max(axis=0)], axis=1))
    if calibration.method == "min_max":
        return ranges
    histograms = _histograms(model, samples, tensors, ranges)
    clipped_ranges = [
        _histogram_range(counts, span, calibration) for counts, span in zip(histograms, ranges, strict=True)
    ]
    return _include_zero(np.array(clipped_ranges).reshape(-1, 2))


def _histogram_range(counts: Array, span: Array, calibration: ActivationCalibration) -> ActivationRange:
    edges = np.linspace(span[0], span[1], BINS + 1)
    return (
        percentile_range(counts, edges, calibration.percentile)
        if calibration.method == "percentile"
        else min_error_range(counts, edges)
    )


def _moving_average(extremes: Array) -> Array:
    """The exponential moving average over the first axis, the samples, starting from the first."""
    average = extremes[0]
    for row in extremes[1:]:
        average = MOMENTUM * average + (1 - MOMENTUM) * row
    return np.asarray(average)


def _include_zero(ranges: Array) -> Array:
    """Ranges extended to include zero; an all-zero range gets a width, because no kernel runs with a scale of zero."""
    low, high = np.minimum(ranges[:, 0], 0), np.maximum(ranges[:, 1], 0)
    return np.stack([low, np.where(high - low > MIN_WIDTH, high, low + DEAD_WIDTH)], axis=1)


def _histograms(model: Model, samples: Arrays, tensors: list[Tensor], spans: Array) -> Array:
    """How many values of each tensor fall into each of the equal bins over its span, (tensors, bins)."""
    counts = np.zeros((len(tensors), BINS), np.int64)
    widths = np.maximum(spans[:, 1] - spans[:, 0], np.finfo(np.float32).tiny)
    for arrays in record_tensors(model, samples, tensors, Runtime.BUILTIN):
        for row, array, low, width in zip(counts, arrays, spans[:, 0], widths, strict=True):
            bins = np.clip((array.ravel() - low) * (BINS / width), 0, BINS - 1).astype(np.int64)
            row += np.bincount(bins, minlength=BINS)
    return counts


def percentile_range(counts: Array, edges: Array, percentile: float) -> ActivationRange:
    """The bin edges between which `percentile` per cent of the values lie, the rest split evenly between both tails.

    `counts` is a histogram, (bins,), over `edges`, (bins + 1,).
    """
    if not counts.any():  # of a tensor without elements
        return float(edges[0]), float(edges[-1])
    tail = (1 - percentile / 100) / 2 * counts.sum()
    cumulative_low, cumulative_high = np.cumsum(counts), np.cumsum(counts[::-1])
    low_skip, high_skip = (
        int(np.searchsorted(cumulative_low, tail, "right")),
        int(np.searchsorted(cumulative_high, tail, "right")),
    )
    return float(edges[min(low_skip, BINS - 1)]), float(edges[max(BINS - high_skip, 1)])


def min_error_range(counts: Array, edges: Array) -> ActivationRange:
    """The range with the least squared error of clipping and 8-bit rounding, searched one end at a time.

    `counts` is a histogram, (bins,), over `edges`, (bins + 1,).
    """
    filled_bins = np.flatnonzero(counts)
    if not filled_bins.size or edges[0] == edges[-1]:
        return float(edges[0]), float(edges[-1])
    centers, weights = ((edges[:-1] + edges[1:]) / 2)[filled_bins], counts[filled_bins]
    low, high = float(edges[0]), float(edges[-1])
    for _ in range(2):
        high = min(SHRINK_FACTORS * edges[-1], key=lambda end: _squared_error(centers, weights, low, float(end)))
        low = min(SHRINK_FACTORS * edges[0], key=lambda end: _squared_error(centers, weights, float(end), float(high)))
    return float(low), float(high)


def _squared_error(centers: Array, weights: Array, low: float, high: float) -> float:
    scale = (high - low) / INT8_STEPS
    if scale <= 0:
        return float("inf")
    zero_point = np.rint(-low / scale)
    codes = np.clip(np.rint(centers / scale) + zero_point, 0, INT8_STEPS)
    return float((weights * np.square((codes - zero_point) * scale - centers)).sum())


def _range_by_name(tensors: list[Tensor], ranges: Array) -> dict[str, ActivationRange]:
    return {tensor.name: (float(low), float(high)) for tensor, (low, high) in zip(tensors, ranges, strict=True)}


def _range_shifts(tensors: list[Tensor], half_ranges: Array, final_ranges: Array) -> dict[str, float]:
    widths = np.maximum(final_ranges[:, 1] - final_ranges[:, 0], np.finfo(np.float32).tiny)
    shifts = np.abs(final_ranges - half_ranges).sum(axis=1) / widths
    return {tensor.name: float(shift) for tensor, shift in zip(tensors, shifts, strict=True) if shift > SHIFT_TOLERANCE}
