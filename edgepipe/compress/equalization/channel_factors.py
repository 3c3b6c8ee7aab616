"""The scale factor of each channel (Nagel et al. 2019, arXiv 1906.04721, section 4.1), iterated to convergence.

Without samples, equation 11: s = sqrt(r1 r2) / r2, with r1 the range of the weights that produce a channel and r2 of
those that read it. With samples, r1 is the range of the channel itself: TFLite gives each output channel of a kernel
its own scale, but a whole activation only one. r2 is then relative to the largest weight of the same output channel,
for the same reason; a depthwise layer that reads a channel sets no bound, so that the channel's range becomes one.
"""

from dataclasses import dataclass

import numpy as np

from edgepipe.compress.equalization.scalable_channels import LabeledLayer, ScalableChannels, raise_maxima
from edgepipe.core.arrays import Array

CONVERGED_CHANGE = 1e-3  # largest relative change of a factor in the last round
MAX_ROUNDS = 200
MAX_FACTOR_RATIO = 1e4  # between a channel's factor and the geometric mean of its group


@dataclass(frozen=True)
class ChannelBalance:
    """The factor of each label (1 if fixed), the rounds it took, the last change, and dead and capped labels."""

    scales: Array
    round_count: int
    final_scale_change: float
    dead_mask: Array
    capped_mask: Array


def balance_channels(
    scalable_channels: ScalableChannels, label_ranges: Array | None, label_groups: list[Array]
) -> ChannelBalance:
    """Factors for the free labels of `scalable_channels`.

    Args:
        scalable_channels: the labels and the layers that produce and read them.
        label_ranges: range of each label on samples, (labels,); None: by the weights alone.
        label_groups: the labels of each group that the same layers produce and read. A dead channel, with zero weights
            or always zero on samples, takes the mean factor of its group; no factor is more than 1e4 from it.
    """
    free_mask, scales, scale_change, round_count = (
        scalable_channels.free_mask,
        np.ones(scalable_channels.label_count),
        np.inf,
        0,
    )
    producer_ranges, reader_ranges = _producer_and_reader_ranges(scalable_channels.labeled_layers, scales, label_ranges)
    dead_mask = free_mask & ((producer_ranges == 0) | (reader_ranges == 0))
    live_mask = free_mask & ~dead_mask
    while live_mask.any() and scale_change > CONVERGED_CHANGE and round_count < MAX_ROUNDS:
        producer_ranges, reader_ranges = _producer_and_reader_ranges(
            scalable_channels.labeled_layers, scales, label_ranges
        )
        scale_step = np.ones(scalable_channels.label_count)
        scale_step[live_mask] = _scale_step(producer_ranges[live_mask], reader_ranges[live_mask])
        scales, round_count = scales * scale_step, round_count + 1
        scale_change = float(np.abs(np.log(scale_step)).max())
    bounded_scales = _bound_scales(scales, label_groups, dead_mask)
    return ChannelBalance(
        bounded_scales,
        round_count,
        0.0 if np.isinf(scale_change) else scale_change,
        dead_mask,
        live_mask & ~np.isclose(bounded_scales, scales),
    )


def _scale_step(producer_ranges: Array, reader_ranges: Array) -> Array:
    """Equation 11; where r2 is infinite, the channel's range becomes one."""
    return np.asarray(
        np.where(
            np.isinf(reader_ranges),
            producer_ranges,
            np.sqrt(producer_ranges / np.where(np.isinf(reader_ranges), 1.0, reader_ranges)),
        )
    )


def _producer_and_reader_ranges(
    labeled_layers: tuple[LabeledLayer, ...], scales: Array, label_ranges: Array | None
) -> tuple[Array, Array]:
    """r1 and r2 of each label with `scales`; r2 is infinite where only depthwise layers read a measured channel."""
    producer_ranges, reader_ranges = np.zeros(len(scales)), np.zeros(len(scales))
    unbounded_mask = np.zeros(len(scales), bool)
    for labeled_layer in labeled_layers:
        scaled_magnitudes = labeled_layer.scaled_magnitudes(scales)
        raise_maxima(producer_ranges, labeled_layer.output_label_grid, scaled_magnitudes)
        if label_ranges is None:
            raise_maxima(reader_ranges, labeled_layer.input_label_grid, scaled_magnitudes)
        elif labeled_layer.is_depthwise:
            unbounded_mask[labeled_layer.input_label_grid[scaled_magnitudes.max(axis=1) > 0]] = True
        else:
            column_max = scaled_magnitudes.max(axis=0, keepdims=True)
            raise_maxima(
                reader_ranges,
                labeled_layer.input_label_grid,
                scaled_magnitudes / np.where(column_max > 0, column_max, 1.0),
            )
    if label_ranges is None:
        return producer_ranges, reader_ranges
    return label_ranges / scales, np.where((reader_ranges == 0) & unbounded_mask, np.inf, reader_ranges)


def _bound_scales(scales: Array, label_groups: list[Array], dead_mask: Array) -> Array:
    bounded_scales = scales.copy()
    for group_labels in label_groups:
        live_labels = group_labels[~dead_mask[group_labels]]
        geometric_mean_scale = float(np.exp(np.mean(np.log(scales[live_labels])))) if len(live_labels) else 1.0
        bounded_scales[group_labels] = np.where(
            dead_mask[group_labels],
            geometric_mean_scale,
            np.clip(
                scales[group_labels], geometric_mean_scale / MAX_FACTOR_RATIO, geometric_mean_scale * MAX_FACTOR_RATIO
            ),
        )
    return bounded_scales
