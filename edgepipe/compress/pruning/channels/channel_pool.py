"""Which channels are removed: a ranking of all groups, cut where the target is met."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from edgepipe.compress.pruning.channels.channel_groups import ChannelGroups
from edgepipe.compress.pruning.saliency import Saliency
from edgepipe.core.arrays import Array

RemovalOrder = Literal["uniform", "global", "per_mac"]
CostFunction = Callable[[Array], float]  # mask of removed groups -> cost of the model without them


@dataclass(frozen=True)
class ChannelPool:
    """The channel groups of a model, and the limits on their removal."""

    channel_groups: ChannelGroups
    compute_cost: CostFunction
    removal_orders: tuple[RemovalOrder, ...]
    channel_multiple: int = 1  # a layer keeps a multiple of this many channels, or all
    share_by_layer: dict[str, float] = field(default_factory=dict)  # layer -> the share of its channels to remove

    @property
    def weights(self) -> list[Any]:
        """The variables whose saliency ranks the groups."""
        return [labeled_weight.weight for labeled_weight in self.channel_groups.labeled_weights]

    def initial_removal_mask(self) -> Array:
        """The mask with no group removed."""
        return self.channel_groups.empty_removal_mask

    def zero_masks(self, removed_group_mask: Array) -> list[Array]:
        """The removed elements of each of `weights`."""
        return self.channel_groups.zero_masks(removed_group_mask)

    def candidate_masks(
        self,
        saliency: Saliency,
        orders: tuple[RemovalOrder, ...],
        max_cost: float,
        progress: float,
        previous_mask: Array,
    ) -> dict[RemovalOrder, Array]:
        """The smallest removal with a cost of at most `max_cost`, for each of `orders`.

        An order that cannot reach `max_cost` is left out; before the end (`progress` below 1) it removes as much as
        layers' own shares, which grow with progress, and multiples allow.

        Args:
            saliency: of `weights`.
            orders: rankings to try.
            max_cost: in the unit of `cost`.
            progress: from 0 to 1, by which layers' own shares are multiplied.
            previous_mask: mask of the groups that are already removed.

        Returns:
            The mask of removed groups, by order.

        Raises:
            UnreachableCost: no order reaches `max_cost`, even with every layer at its minimum.
        """
        scores = self._score_groups(saliency)
        base_mask = previous_mask | self._forced_removal_mask(scores, progress)
        mask_by_order, lowest_costs = {}, []
        for order in orders:
            ranked_positions = self._rank_groups(scores, order, progress, base_mask)
            largest_removal_mask = self._mask_of_first(ranked_positions, len(ranked_positions), base_mask)
            lowest_costs.append(self.compute_cost(largest_removal_mask))
            if lowest_costs[-1] <= max_cost:
                mask_by_order[order] = self._smallest_removal_mask(ranked_positions, max_cost, base_mask)
            elif progress < 1:
                mask_by_order[order] = largest_removal_mask
        if not mask_by_order:
            raise UnreachableCost(min(lowest_costs))
        return mask_by_order

    def _forced_removal_mask(self, scores: Array, progress: float) -> Array:
        """The groups that are removed because a layer has its own share."""
        forced_mask = np.zeros(len(scores), bool)
        for name in self.share_by_layer:
            remaining_channels, min_channels = (
                self._channel_count_by_layer[name],
                self._min_channel_count(name, progress),
            )
            for position in sorted(np.unique(self._positions_by_layer[name]), key=lambda p: scores[p]):
                if remaining_channels - self._channel_counts_by_owner[position][name] >= min_channels:
                    forced_mask[position] = True
                    remaining_channels -= self._channel_counts_by_owner[position][name]
        return forced_mask

    def _score_groups(self, saliency: Saliency) -> Array:
        saliencies = list(saliency.saliencies)
        if saliency.is_magnitude:
            return self.channel_groups.norm_scores(saliencies)
        return self.channel_groups.loss_scores(saliencies, saliency.reduction)

    def _rank_groups(self, scores: Array, order: RemovalOrder, progress: float, previous_mask: Array) -> Array:
        """Positions of all removable groups in the order of removal; every layer keeps its minimum."""
        sort_keys = np.where(previous_mask, -np.inf, self._sort_keys(scores, order))
        remaining_by_layer = {layer.name: len(layer.root_labels) for layer in self.channel_groups.channel_layers}
        ranked_positions = []
        for position in np.argsort(sort_keys, kind="stable"):
            counts_by_owner = self._channel_counts_by_owner[int(position)]
            if previous_mask[position] or all(
                remaining_by_layer[name] > self._min_channel_count(name, progress) for name in counts_by_owner
            ):
                ranked_positions.append(int(position))
                for name in counts_by_owner:
                    remaining_by_layer[name] -= counts_by_owner[name]
        return np.array(ranked_positions, int)

    def _sort_keys(self, scores: Array, order: RemovalOrder) -> Array:
        if order == "global":
            return scores
        if order == "per_mac":
            min_score = min(float(scores.min()), 0.0)
            return np.asarray((scores - min_score) / np.maximum(self.channel_groups.mac_savings, 1e-30))
        sort_keys = np.zeros(len(scores))
        for positions in self.channel_groups.dependency_sets:
            sort_keys[positions] = scores[positions].argsort(kind="stable").argsort(kind="stable") / len(positions)
        return sort_keys

    def _min_channel_count(self, name: str, progress: float) -> int:
        """Channels that the layer keeps whatever the target."""
        channel_count = self._channel_count_by_layer[name]
        if name not in self.share_by_layer:
            return min(self.channel_multiple, channel_count)
        kept_channels = channel_count * (1 - self.share_by_layer[name] * progress)
        if self.channel_multiple == 1:
            return max(1, round(kept_channels))
        rounding_function = (
            math.floor if progress == 1 else math.ceil
        )  # the final share is met, intermediate ones are not exceeded
        return min(
            channel_count, max(1, rounding_function(kept_channels / self.channel_multiple)) * self.channel_multiple
        )

    @cached_property
    def _positions_by_layer(self) -> dict[str, Array]:
        """For each layer the positions in `roots` of its removable channels."""
        position_by_root = {int(root): position for position, root in enumerate(self.channel_groups.removable_roots)}
        return {
            layer.name: np.array(
                [position_by_root[r] for r in layer.root_labels.tolist() if r in position_by_root], int
            )
            for layer in self.channel_groups.channel_layers
        }

    @cached_property
    def _channel_count_by_layer(self) -> dict[str, int]:
        return {layer.name: len(layer.root_labels) for layer in self.channel_groups.channel_layers}

    @cached_property
    def _channel_counts_by_owner(self) -> list[dict[str, int]]:
        """For each group, the layers that produce its channels, and how many of theirs it includes."""
        counts_by_owner: list[dict[str, int]] = [{} for _ in self.channel_groups.removable_roots]
        for name, positions in self._positions_by_layer.items():
            for position, count in zip(*np.unique(positions, return_counts=True), strict=True):
                counts_by_owner[position][name] = int(count)
        return counts_by_owner

    def _smallest_removal_mask(self, ranked_positions: Array, max_cost: float, previous_mask: Array) -> Array:
        low, high = int(previous_mask.sum()), len(ranked_positions)
        while low < high:
            middle = (low + high) // 2
            if self.compute_cost(self._mask_of_first(ranked_positions, middle, previous_mask)) <= max_cost:
                high = middle
            else:
                low = middle + 1
        return self._mask_of_first(ranked_positions, high, previous_mask)

    def _mask_of_first(self, ranked_positions: Array, count: int, previous_mask: Array) -> Array:
        """The first `count` removed, minus those that layers must get back to keep a multiple of channels."""
        removed_group_mask = previous_mask.copy()
        removed_group_mask[ranked_positions[:count]] = True
        if self.channel_multiple == 1:
            return removed_group_mask
        group_ranks = np.zeros(len(removed_group_mask), int)
        group_ranks[ranked_positions] = np.arange(len(ranked_positions))
        has_changes = True
        while has_changes:  # a group restored for one layer is restored for all layers that share it
            has_changes = False
            for name in self._positions_by_layer:
                has_changes |= self._restore_excess(name, removed_group_mask, previous_mask, group_ranks)
        return removed_group_mask

    def _restore_excess(self, name: str, removed_group_mask: Array, previous_mask: Array, group_ranks: Array) -> bool:
        """Restore the channels of a layer removed last, so that it keeps a multiple; True if there were any."""
        positions = self._positions_by_layer[name]
        restore_count = (
            -(self._channel_count_by_layer[name] - int(removed_group_mask[positions].sum())) % self.channel_multiple
        )
        new_positions = np.unique(positions[removed_group_mask[positions] & ~previous_mask[positions]])
        restored_positions = new_positions[np.argsort(-group_ranks[new_positions], kind="stable")][:restore_count]
        removed_group_mask[restored_positions] = False
        return len(restored_positions) > 0


class UnreachableCost(Exception):  # noqa: N818  a bound that the caller turns into an error in the user's terms
    """The maximum cost cannot be reached; `lowest_cost` can."""

    def __init__(self, lowest_cost: float) -> None:
        super().__init__(lowest_cost)
        self.lowest_cost = lowest_cost
