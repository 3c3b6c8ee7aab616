"""Groups of channels that can only be removed together, and what removing each saves."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.pruning.channels.channel_labels import ChannelGraph, LabeledWeight
from edgepipe.compress.pruning.channels.channel_rules import build_channel_graph
from edgepipe.compress.pruning.saliency import Reduction
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError


@dataclass(frozen=True)
class ChannelLayer:
    """A layer that produces channels: the root label of each, and why some or all must stay, if so."""

    name: str
    class_name: str
    root_labels: Array
    freeze_reason: str


@dataclass(frozen=True)
class ChannelGroups:
    """The removable groups of a model, by their root labels."""

    graph: ChannelGraph
    channel_layers: tuple[ChannelLayer, ...]
    removable_roots: Array  # of the removable groups, ascending
    fixed_parameter_count: int  # elements of the weights through which no channel is tracked

    @property
    def empty_removal_mask(self) -> Array:
        """The mask with no group removed."""
        return np.zeros(len(self.removable_roots), bool)

    @property
    def labeled_weights(self) -> list[LabeledWeight]:
        """The weights that shrink."""
        return list(self.graph.labeled_weight_by_id.values())

    @cached_property
    def group_positions_by_axis(self) -> list[list[tuple[int, Array]]]:
        """For each labeled weight, along each of its axes: the position in `roots` of each index, -1 if it stays."""
        position_by_root = {int(root): position for position, root in enumerate(self.removable_roots)}
        return [
            [(axis, np.array([position_by_root.get(int(label), -1) for label in self.graph.union.find_roots(ids)]))
             for axis, ids in labeled_weight.labels_by_axis.items()]
            for labeled_weight in self.labeled_weights
        ]  # fmt: skip

    @cached_property
    def dependency_sets(self) -> list[Array]:
        """Positions in `roots` of groups whose layers depend on each other; each group is in exactly one set."""
        parent_by_layer = {layer.name: layer.name for layer in self.channel_layers}

        def find_representative(name: str) -> str:
            while parent_by_layer[name] != name:
                name = parent_by_layer[name]
            return name

        owner_by_root: dict[int, str] = {}
        for layer in self.channel_layers:
            for root in layer.root_labels:
                parent_by_layer[find_representative(layer.name)] = find_representative(
                    owner_by_root.setdefault(int(root), layer.name)
                )
        positions_by_set: dict[str, list[int]] = {}
        for position, root in enumerate(self.removable_roots):
            positions_by_set.setdefault(find_representative(owner_by_root[int(root)]), []).append(position)
        return [np.array(positions) for positions in positions_by_set.values()]

    def mask_groups_outside(self, layer_names: set[str]) -> Array:
        """The mask of the groups without a channel of the layers in `layer_names`."""
        layer_roots = [layer.root_labels for layer in self.channel_layers if layer.name in layer_names]
        return (
            ~np.isin(self.removable_roots, np.concatenate(layer_roots))
            if layer_roots
            else np.ones(len(self.removable_roots), bool)
        )

    def count_parameters(self, removed_group_mask: Array) -> int:
        """Elements of all weights of the model without the groups in the mask `removed_groups`."""
        removed_roots = self.removable_roots[removed_group_mask]
        return self.fixed_parameter_count + sum(
            int(np.prod(labeled_weight.pruned_shape(removed_roots, self.graph.union)))
            for labeled_weight in self.labeled_weights
        )

    def count_macs(self, removed_group_mask: Array) -> int:
        """Multiply-accumulates of the layers whose channels are tracked."""
        removed_roots = self.removable_roots[removed_group_mask]
        pruned_sizes = {
            key: int(np.prod(labeled_weight.pruned_shape(removed_roots, self.graph.union)))
            for key, labeled_weight in self.graph.labeled_weight_by_id.items()
        }
        return sum(pruned_sizes[key] * use_count for key, use_count in self.graph.kernel_use_counts)

    @cached_property
    def mac_savings(self) -> Array:
        """Multiply-accumulates that removing each group alone would save."""
        use_count_by_kernel = dict(self.graph.kernel_use_counts)
        saved_macs = np.zeros(len(self.removable_roots))
        for labeled_weight, axis_positions in zip(self.labeled_weights, self.group_positions_by_axis, strict=True):
            for axis, positions in axis_positions:
                macs_per_index = (
                    use_count_by_kernel.get(id(labeled_weight.weight), 0)
                    * np.prod(labeled_weight.weight.shape)
                    / labeled_weight.weight.shape[axis]
                )
                np.add.at(saved_macs, positions[positions >= 0], macs_per_index)
        return saved_macs

    def zero_masks(self, removed_group_mask: Array) -> list[Array]:
        """For each labeled weight the elements that belong to a removed group."""
        zero_masks = []
        for labeled_weight, axis_positions in zip(self.labeled_weights, self.group_positions_by_axis, strict=True):
            zero_mask = np.zeros(labeled_weight.weight.shape, bool)
            for axis, positions in axis_positions:
                removed_index_mask = np.where(positions >= 0, removed_group_mask[positions], False)
                zero_mask |= np.expand_dims(
                    removed_index_mask, [other_axis for other_axis in range(zero_mask.ndim) if other_axis != axis]
                )
            zero_masks.append(zero_mask)
        return zero_masks

    def loss_scores(self, saliencies: list[Array], reduction: Reduction) -> Array:
        """The score of each group by the weights that read it: zeroing them is equivalent to removing the channels."""
        saliency_rows_by_group: list[list[Array]] = [[] for _ in self.removable_roots]
        for labeled_weight, axis_positions, saliency in zip(
            self.labeled_weights, self.group_positions_by_axis, saliencies, strict=True
        ):
            for axis, positions in axis_positions:
                if axis == labeled_weight.input_axis:
                    _collect_saliency_rows(saliency_rows_by_group, np.moveaxis(saliency, axis, 0), positions)
        return np.array(
            [
                reduction(np.concatenate(saliency_rows)) if saliency_rows else 0.0
                for saliency_rows in saliency_rows_by_group
            ]
        )

    def norm_scores(self, squared_weights: list[Array]) -> Array:
        """The score of each group by norm: the root mean square of its weights in each tensor, relative to that of the
        whole tensor, averaged over the tensors it is part of.
        """
        score_sums, tensor_counts = np.zeros(len(self.removable_roots)), np.zeros(len(self.removable_roots))
        for labeled_weight, axis_positions, squared_weight in zip(
            self.labeled_weights, self.group_positions_by_axis, squared_weights, strict=True
        ):
            for axis, positions in axis_positions:
                if (labeled_weight.weight.trainable and len(squared_weight.shape) > 1) or _is_gamma(labeled_weight):
                    rms = np.sqrt(np.moveaxis(squared_weight, axis, 0).reshape(squared_weight.shape[axis], -1).mean(-1))
                    rms = rms / max(float(np.sqrt(squared_weight.mean())), 1e-30)
                    np.add.at(score_sums, positions[positions >= 0], rms[positions >= 0])
                    np.add.at(tensor_counts, positions[positions >= 0], 1)
        return np.asarray(score_sums / np.maximum(tensor_counts, 1))


def _is_gamma(labeled_weight: LabeledWeight) -> bool:
    return "gamma" in str(labeled_weight.weight.name).rsplit("/", 1)[-1]


def _collect_saliency_rows(saliency_rows_by_group: list[list[Array]], saliency_rows: Array, positions: Array) -> None:
    for saliency_row, position in zip(saliency_rows, positions, strict=True):
        if position >= 0:
            saliency_rows_by_group[position].append(saliency_row.ravel())


def find_channel_groups(model: Any, overrides: Overrides[Any]) -> ChannelGroups:
    """The removable groups of `model`.

    Raises:
        InputError: an override of a layer that does not exist, or no channel can be removed.
    """
    all_layers = list(model._flatten_layers(include_self=False))
    overrides.check(all_layers)
    graph = build_channel_graph(model)
    for layer in all_layers:
        if overrides.is_excluded(layer) and layer.name in graph.output_labels_by_layer:
            graph.union.freeze(graph.output_labels_by_layer[layer.name], "excluded by the pipeline")
    channel_layers = _find_channel_layers(graph, all_layers)
    root_labels = (
        np.unique(np.concatenate([layer.root_labels for layer in channel_layers]))
        if channel_layers
        else np.array([], int)
    )
    removable_roots = np.array([root for root in root_labels if int(root) not in graph.union.freeze_reasons], int)
    if not len(removable_roots):
        reasons_text = (
            "; ".join(f"{layer.name}: {layer.freeze_reason}" for layer in channel_layers) or "no layer makes channels"
        )
        raise InputError(f"no channel of '{model.name}' can be removed: {reasons_text}")
    fixed_parameter_count = sum(
        int(np.prod(weight.shape)) for weight in model.weights if id(weight) not in graph.labeled_weight_by_id
    )
    return ChannelGroups(graph, channel_layers, removable_roots, fixed_parameter_count)


def _find_channel_layers(graph: ChannelGraph, all_layers: list[Any]) -> tuple[ChannelLayer, ...]:
    """Layers that produce channels, and layers with kernels through which channels are not tracked."""
    channel_layers: dict[str, ChannelLayer] = {}
    for layer in all_layers:
        class_name = type(layer).__name__
        if layer.name in graph.output_labels_by_layer:
            channel_layers.setdefault(
                layer.name,
                _build_channel_layer(graph, layer.name, class_name, graph.output_labels_by_layer[layer.name]),
            )
        elif layer.name in graph.barrier_by_layer and any(len(weight.shape) > 1 for weight in layer.weights):
            ids, reason = graph.barrier_by_layer[layer.name]
            channel_layers.setdefault(
                layer.name, ChannelLayer(layer.name, class_name, graph.union.find_roots(ids), f"one {reason}")
            )
    return tuple(channel_layers.values())


def _build_channel_layer(graph: ChannelGraph, name: str, class_name: str, ids: Array) -> ChannelLayer:
    root_labels = graph.union.find_roots(ids)
    freeze_reasons = [graph.union.freeze_reasons.get(int(root)) for root in root_labels]
    reason_text = "; ".join(dict.fromkeys(reason for reason in freeze_reasons if reason))
    frozen_count = sum(reason is not None for reason in freeze_reasons)
    return ChannelLayer(
        name,
        class_name,
        root_labels,
        reason_text
        and (
            reason_text
            if frozen_count == len(root_labels)
            else f"{frozen_count} of {len(root_labels)} channels: {reason_text}"
        ),
    )
