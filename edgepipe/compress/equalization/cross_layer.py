"""Cross-layer equalization: channels between layers are scaled so that their ranges match.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section
4.1. The model's function stays: W1' = W1 / s, b1' = b1 / s, W2' = W2 s, for each channel that W1 produces and W2 reads.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepipe.compress.equalization.activation_limits import remove_idle_limits
from edgepipe.compress.equalization.batch_norm_folding import ChannelStatistics, FoldedModel, rebuild_model
from edgepipe.compress.equalization.channel_factors import (
    CONVERGED_CHANGE,
    MAX_FACTOR_RATIO,
    ChannelBalance,
    balance_channels,
)
from edgepipe.compress.equalization.input_arrays import describe_samples, measure_difference, prepare_inputs
from edgepipe.compress.equalization.observed_ranges import measure_label_ranges
from edgepipe.compress.equalization.scalable_channels import (
    LabeledLayer,
    ScalableChannels,
    find_scalable_channels,
    raise_maxima,
)
from edgepipe.compress.equalization.weighted_layers import as_channel_pairs, read_bias, read_kernel
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.units import plural

MAX_INT32_BIAS = 2**31 - 1  # the largest int32 bias


@dataclass(frozen=True)
class EqualizationGroup:
    """Channels that the same layers produce and the same layers read, and the spread of their ranges.

    The spread is the largest range over the median: of the channels with samples, of the producing weights without.
    """

    producer_names: tuple[str, ...]
    reader_names: tuple[str, ...]
    channel_count: int
    spread_before: float
    spread_after: float


@dataclass(frozen=True)
class EqualizedModel:
    """The equalized model, the scaled groups, and the channels that were not scaled, with reasons.

    `difference` is the largest difference of the outputs from the original's, relative to the largest output.
    """

    folded_model: FoldedModel
    equalization_groups: tuple[EqualizationGroup, ...]
    exclusion_notes: tuple[str, ...]
    notes: tuple[str, ...]
    output_difference: float

    @property
    def model(self) -> Any:
        """The tf_keras model."""
        return self.folded_model.model


def equalize_channels(folded_model: FoldedModel, samples: Arrays | None = None) -> EqualizedModel:
    """Equalize the channels of `folded_model`, by the weights alone or by the ranges on `samples`.

    Activations with an upper limit become ReLU where the limit has no effect; others block the scaling. No labels are
    needed.

    Raises:
        InputError: samples that do not fit; or the outputs differ by more than 1e-4, which is a bug.
    """
    input_arrays = prepare_inputs(folded_model.model, samples)
    base_model, activation_limits = remove_idle_limits(folded_model, None if samples is None else input_arrays)
    scalable_channels = find_scalable_channels(base_model)
    label_ranges = None if samples is None else measure_label_ranges(base_model.model, scalable_channels, input_arrays)
    label_groups = _group_labels(scalable_channels)
    balance = balance_channels(scalable_channels, label_ranges, [group_labels for _, _, group_labels in label_groups])
    model = _apply_scales(base_model, scalable_channels.labeled_layers, balance.scales)
    # random inputs may exceed a limit that the batch norm's statistics rule out, samples may not
    reference_model = base_model if samples is None else folded_model
    max_difference = measure_difference(reference_model.model, model, input_arrays)
    equalized_groups = [
        _measure_group(group, scalable_channels.labeled_layers, balance.scales, label_ranges) for group in label_groups
    ]
    notes = (
        _describe_balance(balance, describe_samples(samples)),
        *(limit.text for limit in activation_limits),
        *_dead_and_capped_notes(label_groups, balance),
        *(
            ()
            if label_ranges is None
            else _bias_overflow_notes(scalable_channels.labeled_layers, balance.scales, label_ranges)
        ),
    )
    exclusion_notes = tuple(_exclusion_notes(scalable_channels))
    statistics = _scale_statistics(base_model, scalable_channels.labeled_layers, balance.scales)
    return EqualizedModel(
        replace(base_model, model=model, statistics=statistics),
        tuple(equalized_groups),
        exclusion_notes,
        notes,
        max_difference,
    )


LabelGroup = tuple[tuple[str, ...], tuple[str, ...], Array]  # names of producing layers, of reading layers; labels


def _group_labels(scalable_channels: ScalableChannels) -> list[LabelGroup]:
    """The free labels, grouped by the layers that produce and read them."""
    producers_by_label, readers_by_label = (
        _layer_names_by_label(scalable_channels.labeled_layers, "makes"),
        _layer_names_by_label(scalable_channels.labeled_layers, "reads"),
    )
    labels_by_layers: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for label in np.flatnonzero(scalable_channels.free_mask):
        labels_by_layers[tuple(producers_by_label[int(label)]), tuple(readers_by_label[int(label)])].append(int(label))
    return [(makers, readers, np.array(labels)) for (makers, readers), labels in labels_by_layers.items()]


def _layer_names_by_label(labeled_layers: tuple[LabeledLayer, ...], side: str) -> dict[int, list[str]]:
    layer_names_by_label: dict[int, list[str]] = defaultdict(list)
    for labeled_layer in labeled_layers:
        for label in np.unique(labeled_layer.output_label_grid if side == "makes" else labeled_layer.input_label_grid):
            layer_names_by_label[int(label)].append(labeled_layer.layer.name)
    return layer_names_by_label


def _apply_scales(folded_model: FoldedModel, labeled_layers: tuple[LabeledLayer, ...], scales: Array) -> Any:
    scaled_layers = [
        labeled_layer
        for labeled_layer in labeled_layers
        if (labeled_layer.weight_factors(scales) != 1).any() or (scales[labeled_layer.output_labels] != 1).any()
    ]
    replacement_layers = {
        labeled_layer.layer.name: type(labeled_layer.layer).from_config(labeled_layer.layer.get_config())
        for labeled_layer in scaled_layers
    }
    return rebuild_model(
        folded_model.model,
        replacement_layers,
        {labeled_layer.layer.name: _scale_weights(labeled_layer, scales) for labeled_layer in scaled_layers},
    )


def _scale_weights(labeled_layer: LabeledLayer, scales: Array) -> list[Array]:
    layer = labeled_layer.layer
    scaled_kernel = as_channel_pairs(
        layer, as_channel_pairs(layer, read_kernel(layer)) * labeled_layer.weight_factors(scales)
    ).astype(np.float32)
    return [
        scaled_kernel,
        *([(read_bias(layer) / scales[labeled_layer.output_labels]).astype(np.float32)] if layer.use_bias else []),
    ]


def _scale_statistics(
    folded_model: FoldedModel, labeled_layers: tuple[LabeledLayer, ...], scales: Array
) -> dict[str, ChannelStatistics]:
    scales_by_name = {labeled_layer.layer.name: scales[labeled_layer.output_labels] for labeled_layer in labeled_layers}
    return {
        name: ChannelStatistics(
            statistics.mean / scales_by_name.get(name, 1.0), statistics.deviation / scales_by_name.get(name, 1.0)
        )
        for name, statistics in folded_model.statistics.items()
    }


def _measure_group(
    label_group: LabelGroup, labeled_layers: tuple[LabeledLayer, ...], scales: Array, label_ranges: Array | None
) -> EqualizationGroup:
    producer_names, reader_names, labels = label_group
    unit_scales = np.ones(len(scales))
    ranges_before, ranges_after = (
        _output_ranges(labeled_layers, label_scales) if label_ranges is None else label_ranges / label_scales
        for label_scales in (unit_scales, scales)
    )
    return EqualizationGroup(
        producer_names,
        reader_names,
        len(labels),
        _range_spread(ranges_before[labels]),
        _range_spread(ranges_after[labels]),
    )


def _output_ranges(labeled_layers: tuple[LabeledLayer, ...], scales: Array) -> Array:
    label_ranges = np.zeros(len(scales))
    for labeled_layer in labeled_layers:
        raise_maxima(label_ranges, labeled_layer.output_label_grid, labeled_layer.scaled_magnitudes(scales))
    return label_ranges


def _range_spread(label_ranges: Array) -> float:
    live_ranges = label_ranges[label_ranges > 0]
    return float(live_ranges.max() / np.median(live_ranges)) if len(live_ranges) else 1.0


def _describe_balance(balance: ChannelBalance, samples_text: str) -> str:
    rounds_text = f"factors converged in {plural(balance.round_count, 'round')}"
    if balance.final_scale_change > CONVERGED_CHANGE:
        rounds_text = (
            f"factors still changed by {balance.final_scale_change:.1%} after {plural(balance.round_count, 'round')}"
        )
    return f"{samples_text}; {rounds_text}"


def _dead_and_capped_notes(label_groups: list[LabelGroup], balance: ChannelBalance) -> Iterator[str]:
    for producer_names, _, labels in label_groups:
        producers_text = ", ".join(producer_names)
        if dead_count := int(balance.dead_mask[labels].sum()):
            yield f"{producers_text}: {dead_count} of {len(labels)} channels are dead; they take the mean factor"
        if capped_count := int(balance.capped_mask[labels].sum()):
            limit_text = f"limited to {MAX_FACTOR_RATIO:g} times the mean factor"
            yield f"{producers_text}: {capped_count} of {len(labels)} factors {limit_text}"


def _bias_overflow_notes(labeled_layers: tuple[LabeledLayer, ...], scales: Array, label_ranges: Array) -> Iterator[str]:
    """Biases that overflow int32 in steps of input scale times weight scale."""
    for labeled_layer in labeled_layers:
        bias_step = (
            (label_ranges / scales)[labeled_layer.input_label_grid].max()
            / 255
            * _output_ranges((labeled_layer,), scales)[labeled_layer.output_labels]
            / 127
        )
        bias_magnitudes = np.abs(read_bias(labeled_layer.layer) / scales[labeled_layer.output_labels])
        if overflow_count := int((bias_magnitudes > MAX_INT32_BIAS * bias_step).sum()):
            counts_text = f"{overflow_count} of {len(bias_magnitudes)} biases"
            yield f"{labeled_layer.layer.name}: {counts_text} overflow int32 with int8 scales"


def _exclusion_notes(scalable_channels: ScalableChannels) -> Iterator[str]:
    """Layers with a kernel of which some or all channels cannot be scaled, with the reasons."""
    yield from (f"{name}: {reason}" for name, reason in scalable_channels.barrier_reasons.items())
    for labeled_layer in scalable_channels.labeled_layers:
        fixed_reasons = [
            scalable_channels.fixed_reasons[int(label)]
            for label in labeled_layer.output_labels
            if int(label) in scalable_channels.fixed_reasons
        ]
        if fixed_reasons:
            count_text = (
                ""
                if len(fixed_reasons) == len(labeled_layer.output_labels)
                else f" ({len(fixed_reasons)} of {len(labeled_layer.output_labels)} channels)"
            )
            yield f"{labeled_layer.layer.name}{count_text}: {'; '.join(dict.fromkeys(fixed_reasons))}"
