"""Activation ranges, measured by running a float .tflite on representative samples.

Every activation is recorded, one sample at a time. Min-max and moving averages need only its extremes; percentile and
mean squared error need a histogram of its values, which a second pass over the same samples fills.

Percentiles: Migacz, "8-bit Inference with TensorRT", GTC 2017. Squared error: Nagel et al. 2021 (arXiv 2106.08295),
section 3.1.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np

from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.tflite.intermediate_tensors import list_activations, record_tensors
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model, Tensor

BIN_COUNT = 2048
MOMENTUM = 0.95  # of moving averages, by sample: some twenty samples count
INT8_STEPS = 255  # between the ends of an 8-bit range
SHRINK_FACTORS = np.linspace(1.0, 0.2, 41)  # candidate ends of a range in the search for the least squared error
MAX_NAMES_SHOWN = 5  # names in a note; more are counted
SHIFT_TOLERANCE = 0.05  # share of a range by which the second half of the samples may move it without a note

MASKED_MAGNITUDE = 5_000.0  # a value of a masked tensor from which it is masked
OVERFLOW_THRESHOLD = 3e38
MIN_RANGE_WIDTH = 1e-30  # width of a range; below it a tensor is always zero
DEAD_RANGE_WIDTH = 1.0  # width that such a tensor gets

ActivationRange = tuple[float, float]
ValueFilter = Callable[[Array], Array]  # takes the values of a tensor that count in its range


class TrainedRange(NamedTuple):
    """A range that training has simulated: the tensor keeps it, whatever the operators that read it would prefer."""

    low: float
    high: float


@final
@dataclass(frozen=True)
class ActivationRanges:
    """The range of each activation by tensor name, zero included; and how far the samples' second half moved it."""

    by_tensor: dict[str, ActivationRange]
    shifts: dict[str, float]  # share of the final range, for those that samples still move
    dead_tensor_names: tuple[str, ...]  # activations that are zero on every sample
    sample_count: int
    calibration: ActivationCalibration
    range_notes: tuple[str, ...] = ()  # on ranges that are wider than the values need
    output_name_by_tensor: Mapping[str, str] = field(default_factory=dict)  # as notes call the model's outputs

    def notes(self) -> list[str]:
        """Activations without a range or with too wide a one, and a warning if more samples would still move them."""
        return [*self._dead_notes(), *self.range_notes, *self._shift_notes()]

    def _dead_notes(self) -> list[str]:
        if not self.dead_tensor_names:
            return []
        dead_names_text = ", ".join(f"'{self._shown_name(name)}'" for name in self.dead_tensor_names[:MAX_NAMES_SHOWN])
        remainder_text = (
            f" and {len(self.dead_tensor_names) - MAX_NAMES_SHOWN} more"
            if len(self.dead_tensor_names) > MAX_NAMES_SHOWN
            else ""
        )
        samples_text = f"the {plural(self.sample_count, 'representative sample')}"
        return [f"always zero on {samples_text}, so without a range: {dead_names_text}{remainder_text}"]

    def _shift_notes(self) -> list[str]:
        if not self.shifts:
            return []
        worst_tensor_name = max(self.shifts, key=lambda name: self.shifts[name])
        samples_text = f"the {plural(self.sample_count, 'representative sample')}"
        calibration_text = f"calibration by {self.calibration.describe()}: the second half of {samples_text}"
        count_text = f"{len(self.shifts)} of {len(self.by_tensor)} ranges by more than {SHIFT_TOLERANCE:.0%}"
        worst_text = f"the most that of '{self._shown_name(worst_tensor_name)}' by {self.shifts[worst_tensor_name]:.0%}"
        remedy_text = f"give more samples ({2 * self.sample_count}, say; in a pipeline: `representative`)"
        return [f"{calibration_text} still moved {count_text}, {worst_text}; {remedy_text}"]

    def _shown_name(self, tensor_name: str) -> str:
        return self.output_name_by_tensor.get(tensor_name) or tensor_name.split(";")[0]


def calibrate(
    model: Model,
    samples: Arrays,
    calibration: ActivationCalibration,
    value_filters: Mapping[str, ValueFilter] | None = None,
    unclipped_names: Collection[str] = (),
) -> ActivationRanges:
    """The range of every floating point activation of the float `model`.

    Args:
        model: the float .tflite.
        samples: representative samples.
        calibration: how ranges follow from values.
        value_filters: what takes the values that count, by tensor name, where not all do; see `mask_sentinels` and
            `equality_sentinels`.
        unclipped_names: tensors whose range holds all values that count, whatever the calibration.

    Raises:
        InputError: samples that do not fit, activations that are not finite, or a model that does not run.
    """
    tensors = _float_activations(model)
    lows, highs = _measure_extremes(model, samples, tensors, value_filters or {})
    sample_count = count_samples(samples)
    half_count = max(sample_count // 2, 1)
    final_ranges, half_ranges = (
        _unclip(
            _compute_ranges(
                model, take_samples(samples, slice(count)), tensors, (lows[:count], highs[:count]), calibration
            ),
            (lows[:count], highs[:count]),
            [tensor.name in unclipped_names for tensor in tensors],
        )
        for count in (sample_count, half_count)
    )
    dead_tensor_names = [
        tensor.name for tensor, a, b in zip(tensors, lows.min(axis=0), highs.max(axis=0), strict=True) if a == b == 0
    ]
    return ActivationRanges(
        _range_by_name(tensors, final_ranges),
        _range_shifts(tensors, half_ranges, final_ranges),
        tuple(dead_tensor_names),
        sample_count,
        calibration,
        output_name_by_tensor={tensor.name: name for name, tensor in model.outputs_by_name.items()},
    )


def _float_activations(model: Model) -> list[Tensor]:
    tensor_by_key = {tensor.key: tensor for tensor in list_activations(model) if tensor.dtype == "float32"}
    return list(tensor_by_key.values())


def _measure_extremes(
    model: Model, samples: Arrays, tensors: list[Tensor], value_filters: Mapping[str, ValueFilter]
) -> tuple[Array, Array]:
    """The smallest and the largest value of each tensor on each sample, (samples, tensors)."""
    lows, highs = [], []
    for recorded_arrays in record_tensors(model, samples, tensors, Runtime.BUILTIN):
        sample_arrays = [
            value_filters[tensor.name](array) if tensor.name in value_filters else array
            for tensor, array in zip(tensors, recorded_arrays, strict=True)
        ]
        lows.append([float(array.min()) if array.size else 0.0 for array in sample_arrays])
        highs.append([float(array.max()) if array.size else 0.0 for array in sample_arrays])
    extremes = np.array(lows), np.array(highs)
    # NaN, infinity, and the largest float32, which kernels clip infinity to
    nonfinite_indices = np.flatnonzero(
        ~((np.abs(extremes[0]) < OVERFLOW_THRESHOLD) & (np.abs(extremes[1]) < OVERFLOW_THRESHOLD)).all(axis=0)
    )
    if nonfinite_indices.size:
        raise InputError(
            f"{model.path}: '{tensors[nonfinite_indices[0]].name}' is not finite on the representative samples, and "
            f"{nonfinite_indices.size - 1} more; such a model has no ranges"
        )
    return extremes


def unmasked_values(array: Array) -> Array:
    """The values that are not masked."""
    return array[np.abs(array) < MASKED_MAGNITUDE]


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
    ranges = _whole_ranges(extremes)
    if calibration.method == "min_max":
        return ranges
    histograms = _count_histograms(model, samples, tensors, ranges)
    clipped_ranges = [
        _histogram_range(bin_counts, value_range, calibration)
        for bin_counts, value_range in zip(histograms, ranges, strict=True)
    ]
    return _include_zero(np.array(clipped_ranges).reshape(-1, 2))


def _whole_ranges(extremes: tuple[Array, Array]) -> Array:
    return _include_zero(np.stack([extremes[0].min(axis=0), extremes[1].max(axis=0)], axis=1))


def _unclip(ranges: Array, extremes: tuple[Array, Array], is_unclipped: list[bool]) -> Array:
    """The ranges, (tensors, 2), those of some tensors replaced by all that was measured."""
    return np.where(np.array(is_unclipped, bool)[:, None], _whole_ranges(extremes), ranges)


def _histogram_range(bin_counts: Array, value_range: Array, calibration: ActivationCalibration) -> ActivationRange:
    bin_edges = np.linspace(value_range[0], value_range[1], BIN_COUNT + 1)
    return (
        percentile_range(bin_counts, bin_edges, calibration.percentile)
        if calibration.method == "percentile"
        else min_error_range(bin_counts, bin_edges)
    )


def _moving_average(sample_extremes: Array) -> Array:
    """The exponential moving average over the first axis, the samples, starting from the first."""
    average = sample_extremes[0]
    for sample_row in sample_extremes[1:]:
        average = MOMENTUM * average + (1 - MOMENTUM) * sample_row
    return np.asarray(average)


def _include_zero(ranges: Array) -> Array:
    """Ranges extended to include zero; an all-zero range gets a width, because no kernel runs with a scale of zero."""
    low, high = np.minimum(ranges[:, 0], 0), np.maximum(ranges[:, 1], 0)
    return np.stack([low, np.where(high - low > MIN_RANGE_WIDTH, high, low + DEAD_RANGE_WIDTH)], axis=1)


def _count_histograms(model: Model, samples: Arrays, tensors: list[Tensor], value_ranges: Array) -> Array:
    """How many values of each tensor fall into each of the equal bins over its span, (tensors, bins)."""
    bin_counts = np.zeros((len(tensors), BIN_COUNT), np.int64)
    range_widths = np.maximum(value_ranges[:, 1] - value_ranges[:, 0], np.finfo(np.float32).tiny)
    for arrays in record_tensors(model, samples, tensors, Runtime.BUILTIN):
        for tensor_counts, array, low, width in zip(bin_counts, arrays, value_ranges[:, 0], range_widths, strict=True):
            array = array[(array >= low) & (array <= low + width)]  # what is masked lies beyond
            bin_indices = np.clip((array.ravel() - low) * (BIN_COUNT / width), 0, BIN_COUNT - 1).astype(np.int64)
            tensor_counts += np.bincount(bin_indices, minlength=BIN_COUNT)
    return bin_counts


def percentile_range(bin_counts: Array, bin_edges: Array, percentile: float) -> ActivationRange:
    """The bin edges between which `percentile` per cent of the values lie, the rest split evenly between both tails.

    `counts` is a histogram, (bins,), over `edges`, (bins + 1,).
    """
    if not bin_counts.any():  # of a tensor without elements
        return float(bin_edges[0]), float(bin_edges[-1])
    tail_count = (1 - percentile / 100) / 2 * bin_counts.sum()
    cumulative_low, cumulative_high = np.cumsum(bin_counts), np.cumsum(bin_counts[::-1])
    low_skip, high_skip = (
        int(np.searchsorted(cumulative_low, tail_count, "right")),
        int(np.searchsorted(cumulative_high, tail_count, "right")),
    )
    return float(bin_edges[min(low_skip, BIN_COUNT - 1)]), float(bin_edges[max(BIN_COUNT - high_skip, 1)])


def min_error_range(bin_counts: Array, bin_edges: Array) -> ActivationRange:
    """The range with the least squared error of clipping and 8-bit rounding, searched one end at a time.

    `counts` is a histogram, (bins,), over `edges`, (bins + 1,).
    """
    filled_bins = np.flatnonzero(bin_counts)
    if not filled_bins.size or bin_edges[0] == bin_edges[-1]:
        return float(bin_edges[0]), float(bin_edges[-1])
    bin_centers, bin_weights = ((bin_edges[:-1] + bin_edges[1:]) / 2)[filled_bins], bin_counts[filled_bins]
    low, high = float(bin_edges[0]), float(bin_edges[-1])
    for _ in range(2):
        high = min(
            SHRINK_FACTORS * bin_edges[-1], key=lambda end: _squared_error(bin_centers, bin_weights, low, float(end))
        )
        low = min(
            SHRINK_FACTORS * bin_edges[0],
            key=lambda end: _squared_error(bin_centers, bin_weights, float(end), float(high)),
        )
    return float(low), float(high)


def _squared_error(bin_centers: Array, bin_weights: Array, low: float, high: float) -> float:
    scale = (high - low) / INT8_STEPS
    if scale <= 0:
        return float("inf")
    zero_point = np.rint(-low / scale)
    codes = np.clip(np.rint(bin_centers / scale) + zero_point, 0, INT8_STEPS)
    return float((bin_weights * np.square((codes - zero_point) * scale - bin_centers)).sum())


def _range_by_name(tensors: list[Tensor], ranges: Array) -> dict[str, ActivationRange]:
    return {tensor.name: (float(low), float(high)) for tensor, (low, high) in zip(tensors, ranges, strict=True)}


def _range_shifts(tensors: list[Tensor], half_ranges: Array, final_ranges: Array) -> dict[str, float]:
    range_widths = np.maximum(final_ranges[:, 1] - final_ranges[:, 0], np.finfo(np.float32).tiny)
    shifts = np.abs(final_ranges - half_ranges).sum(axis=1) / range_widths
    return {tensor.name: float(shift) for tensor, shift in zip(tensors, shifts, strict=True) if shift > SHIFT_TOLERANCE}
