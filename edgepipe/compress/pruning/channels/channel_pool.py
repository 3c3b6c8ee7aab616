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

Order = Literal["uniform", "global", "per_mac"]
CostFunction = Callable[[Array], float]  # mask of removed groups -> cost of the model without them


@dataclass(frozen=True)
class ChannelPool:
    """The channel groups of a model, and the limits on their removal."""

    groups: ChannelGroups
    cost: CostFunction
    orders: tuple[Order, ...]
    multiple: int = 1  # a layer keeps a multiple of this many channels, or all
    share_by_layer: dict[str, float] = field(default_factory=dict)  # layer -> the share of its channels to remove

    @property
    def weights(self) -> list[Any]:
        """The variables whose saliency ranks the groups."""
        return [labeled_weight.weight for labeled_weight in self.groups.labeled_weights]

    def initial_removal(self) -> Array:
        """The mask with no group removed."""
        return self.groups.no_removal

    def zero_masks(self, removed_groups: Array) -> list[Array]:
        """The removed elements of each of `weights`."""
        return self.groups.zero_masks(removed_groups)

    def candidates(
        self, saliency: Saliency, orders: tuple[Order, ...], max_cost: float, progress: float, previous_removal: Array
    ) -> dict[Order, Array]:
        """The smallest removal with a cost of at most `max_cost`, for each of `orders`.

        An order that cannot reach `max_cost` is left out; before the end (`progress` below 1) it removes as much as
        layers' own shares, which grow with progress, and multiples allow.

        Args:
            saliency: of `weights`.
            orders: rankings to try.
            max_cost: in the unit of `cost`.
            progress: from 0 to 1, by which layers' own shares are multiplied.
            previous_removal: mask of the groups that are already removed.

        Returns:
            The mask of removed groups, by order.

        Raises:
            UnreachableCost: no order reaches `max_cost`, even with every layer at its minimum.
        """
        scores = self._score_groups(saliency)
        base_removal = previous_removal | self._forced_removal(scores, progress)
        removal_by_order, lowest_costs = {}, []
        for order in orders:
            ranked_groups = self._rank_groups(scores, order, progress, base_removal)
            largest_removal = self._removal_of_first(ranked_groups, len(ranked_groups), base_removal)
            lowest_costs.append(self.cost(largest_removal))
            if lowest_costs[-1] <= max_cost:
                removal_by_order[order] = self._smallest_removal(ranked_groups, max_cost, base_removal)
            elif progress < 1:
                removal_by_order[order] = largest_removal
        if not removal_by_order:
            raise UnreachableCost(min(lowest_costs))
        return removal_by_order

    def _forced_removal(self, scores: Array, progress: float) -> Array:
        """The groups that are removed because a layer has its own share."""
        forced_removal = np.zeros(len(scores), bool)
        for name in self.share_by_layer:
            channels_left, min_channels = self._channel_counts[name], self._min_channels(name, progress)
            for position in sorted(np.unique(self._positions_by_layer[name]), key=lambda p: scores[p]):
                if channels_left - self._owner_counts[position][name] >= min_channels:
                    forced_removal[position] = True
                    channels_left -= self._owner_counts[position][name]
        return forced_removal

    def _score_groups(self, saliency: Saliency) -> Array:
        saliencies = list(saliency.saliencies)
        if saliency.is_magnitude:
            return self.groups.norm_scores(saliencies)
        return self.groups.loss_scores(saliencies, saliency.reduction)

    def _rank_groups(self, scores: Array, order: Order, progress: float, previous_removal: Array) -> Array:
        """Positions of all removable groups in the order of removal; every layer keeps its minimum."""
        keys = np.where(previous_removal, -np.inf, self._sort_keys(scores, order))
        channels_left = {layer.name: len(layer.roots) for layer in self.groups.layers}
        ranked_groups = []
        for position in np.argsort(keys, kind="stable"):
            owner_counts = self._owner_counts[int(position)]
            if previous_removal[position] or all(
                channels_left[name] > self._min_channels(name, progress) for name in owner_counts
            ):
                ranked_groups.append(int(position))
                for name in owner_counts:
                    channels_left[name] -= owner_counts[name]
        return np.array(ranked_groups, int)

    def _sort_keys(self, scores: Array, order: Order) -> Array:
        if order == "global":
            return scores
        if order == "per_mac":
            min_score = min(float(scores.min()), 0.0)
            return np.asarray((scores - min_score) / np.maximum(self.groups.mac_savings, 1e-30))
        keys = np.zeros(len(scores))
        for positions in self.groups.dependency_sets:
            keys[positions] = scores[positions].argsort(kind="stable").argsort(kind="stable") / len(positions)
        return keys

    def _min_channels(self, name: str, progress: float) -> int:
        """Channels that the layer keeps whatever the target."""
        channels = self._channel_counts[name]
        if name not in self.share_by_layer:
            return min(self.multiple, channels)
        kept_channels = channels * (1 - self.share_by_layer[name] * progress)
        if self.multiple == 1:
            return max(1, round(kept_channels))
        rounder = (
            math.floor if progress == 1 else math.ceil
        )  # the final share is met, intermediate ones are not exceeded
        return min(channels, max(1, rounder(kept_channels / self.multiple)) * self.multiple)

    @cached_property
    def _positions_by_layer(self) -> dict[str, Array]:
        """For each layer the positions in `roots` of its removable channels."""
        position_by_root = {int(root): position for position, root in enumerate(self.groups.roots)}
        return {
            layer.name: np.array([position_by_root[r] for r in layer.roots.tolist() if r in position_by_root], int)
            for layer in self.groups.layers
        }

    @cached_property
    def _channel_counts(self) -> dict[str, int]:
        return {layer.name: len(layer.roots) for layer in self.groups.layers}

    @cached_property
    def _owner_counts(self) -> list[dict[str, int]]:
        """For each group, the layers that produce its channels, and how many of theirs it includes."""
        owner_counts: list[dict[str, int]] = [{} for _ in self.groups.roots]
        for name, positions in self._positions_by_layer.items():
            for position, count in zip(*np.unique(positions, return_counts=True), strict=True):
                owner_counts[position][name] = int(count)
        return owner_counts

    def _smallest_removal(self, ranked_groups: Array, max_cost: float, previous_removal: Array) -> Array:
        low, high = int(previous_removal.sum()), len(ranked_groups)
        while low < high:
            middle = (low + high) // 2
            if self.cost(self._removal_of_first(ranked_groups, middle, previous_removal)) <= max_cost:
                high = middle
            else:
                low = middle + 1
        return self._removal_of_first(ranked_groups, high, previous_removal)

    def _removal_of_first(self, ranked_groups: Array, count: int, previous_removal: Array) -> Array:
        """The first `count` removed, minus those that layers must get back to keep a multiple of channels."""
        removed_groups = previous_removal.copy()
        removed_groups[ranked_groups[:count]] = True
        if self.multiple == 1:
            return removed_groups
        rank = np.zeros(len(removed_groups), int)
        rank[ranked_groups] = np.arange(len(ranked_groups))
        has_changes = True
        while has_changes:  # a group restored for one layer is restored for all layers that share it
            has_changes = False
            for name in self._positions_by_layer:
                has_changes |= self._restore_excess(name, removed_groups, previous_removal, rank)
        return removed_groups

    def _restore_excess(self, name: str, removed_groups: Array, previous_removal: Array, rank: Array) -> bool:
        """Restore the channels of a layer removed last, so that it keeps a multiple; True if there were any."""
        positions = self._positions_by_layer[name]
        restore_count = -(self._channel_counts[name] - int(removed_groups[positions].sum())) % self.multiple
        new_removals = np.unique(positions[removed_groups[positions] & ~previous_removal[positions]])
        restored_groups = new_removals[np.argsort(-rank[new_removals], kind="stable")][:restore_count]
        removed_groups[restored_groups] = False
        return len(restored_groups) > 0


class UnreachableCost(Exception):  # noqa: N818  a bound that the caller turns into an error in the user's terms
    """The maximum cost cannot be reached; `lowest_cost` can."""

    def __init__(self, lowest_cost: float) -> None:
        super().__init__(lowest_cost)
        self.lowest_cost = lowest_cost
