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
    rounds: int
    change: float
    dead_mask: Array
    capped_mask: Array


def balance_channels(
    channels: ScalableChannels, label_ranges: Array | None, label_groups: list[Array]
) -> ChannelBalance:
    """Factors for the free labels of `channels`.

    Args:
        channels: the labels and the layers that produce and read them.
        label_ranges: range of each label on samples, (labels,); None: by the weights alone.
        label_groups: the labels of each group that the same layers produce and read. A dead channel, with zero weights
            or always zero on samples, takes the mean factor of its group; no factor is more than 1e4 from it.
    """
    free_mask, scales, change, rounds = channels.free_mask, np.ones(channels.label_count), np.inf, 0
    made_ranges, read_ranges = _made_and_read_ranges(channels.layers, scales, label_ranges)
    dead_mask = free_mask & ((made_ranges == 0) | (read_ranges == 0))
    live_mask = free_mask & ~dead_mask
    while live_mask.any() and change > CONVERGED_CHANGE and rounds < MAX_ROUNDS:
        made_ranges, read_ranges = _made_and_read_ranges(channels.layers, scales, label_ranges)
        scale_step = np.ones(channels.label_count)
        scale_step[live_mask] = _scale_step(made_ranges[live_mask], read_ranges[live_mask])
        scales, rounds = scales * scale_step, rounds + 1
        change = float(np.abs(np.log(scale_step)).max())
    bounded_scales = _bound_scales(scales, label_groups, dead_mask)
    return ChannelBalance(
        bounded_scales,
        rounds,
        0.0 if np.isinf(change) else change,
        dead_mask,
        live_mask & ~np.isclose(bounded_scales, scales),
    )


def _scale_step(made_ranges: Array, read_ranges: Array) -> Array:
    """Equation 11; where r2 is infinite, the channel's range becomes one."""
    return np.asarray(
        np.where(
            np.isinf(read_ranges), made_ranges, np.sqrt(made_ranges / np.where(np.isinf(read_ranges), 1.0, read_ranges))
        )
    )


def _made_and_read_ranges(
    labeled_layers: tuple[LabeledLayer, ...], scales: Array, label_ranges: Array | None
) -> tuple[Array, Array]:
    """r1 and r2 of each label with `scales`; r2 is infinite where only depthwise layers read a measured channel."""
    made_ranges, read_ranges = np.zeros(len(scales)), np.zeros(len(scales))
    unbound_mask = np.zeros(len(scales), bool)
    for labeled_layer in labeled_layers:
        scaled_weights = labeled_layer.scale_weights(scales)
        raise_maxima(made_ranges, labeled_layer.output_label_grid, scaled_weights)
        if label_ranges is None:
            raise_maxima(read_ranges, labeled_layer.input_label_grid, scaled_weights)
        elif labeled_layer.is_depthwise:
            unbound_mask[labeled_layer.input_label_grid[scaled_weights.max(axis=1) > 0]] = True
        else:
            column_max = scaled_weights.max(axis=0, keepdims=True)
            raise_maxima(
                read_ranges, labeled_layer.input_label_grid, scaled_weights / np.where(column_max > 0, column_max, 1.0)
            )
    if label_ranges is None:
        return made_ranges, read_ranges
    return label_ranges / scales, np.where((read_ranges == 0) & unbound_mask, np.inf, read_ranges)


def _bound_scales(scales: Array, label_groups: list[Array], dead_mask: Array) -> Array:
    bounded_scales = scales.copy()
    for labels in label_groups:
        live_labels = labels[~dead_mask[labels]]
        middle_scale = float(np.exp(np.mean(np.log(scales[live_labels])))) if len(live_labels) else 1.0
        bounded_scales[labels] = np.where(
            dead_mask[labels],
            middle_scale,
            np.clip(scales[labels], middle_scale / MAX_FACTOR_RATIO, middle_scale * MAX_FACTOR_RATIO),
        )
    return bounded_scales
