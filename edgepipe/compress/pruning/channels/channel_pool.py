"""Which channels go: an order of all groups, as far down as the target needs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from edgepipe.compress.pruning.channels.channel_groups import Groups
from edgepipe.compress.pruning.saliency import Saliency
from edgepipe.core.arrays import Array

Order = Literal["uniform", "global", "per_mac"]
Cost = Callable[[Array], float]  # what a model without the marked groups costs


@dataclass(frozen=True)
class ChannelPool:
    """The groups of a model and what limits their removal."""

    groups: Groups
    cost: Cost
    orders: tuple[Order, ...]
    multiple: int = 1  # a layer keeps a multiple of this many channels, or all
    own: dict[str, float] = field(default_factory=dict)  # layer -> the share of its channels that goes

    @property
    def weights(self) -> list[Any]:
        """The variables whose saliency is asked."""
        return [cut.weight for cut in self.groups.cuts]

    def start(self) -> Array:
        """Nothing is gone."""
        return self.groups.none

    def zeros(self, gone: Array) -> list[Array]:
        """The elements of each of `weights` that are gone."""
        return self.groups.zeros(gone)

    def candidates(
        self, saliency: Saliency, orders: tuple[Order, ...], goal: float, progress: float, before: Array
    ) -> dict[Order, Array]:
        """For each of `orders` what is gone when the cost is at most `goal`: as little as possible, `before` among it.

        An order that cannot come down to `goal` is left out; before the end (`progress` below 1) it comes as far down
        as shares of their own, which grow with progress, and multiples let it.

        Raises:
            Unreachable: the cost is above `goal` in every order even with every layer at its least.
        """
        scores = self._scores(saliency)
        first = before | self._forced(scores, progress)
        found, least = {}, []
        for order in orders:
            ranked = self._ranked(scores, order, progress, first)
            lowest = self._rounded(ranked, len(ranked), first)
            least.append(self.cost(lowest))
            if least[-1] <= goal:
                found[order] = self._shortest(ranked, goal, first)
            elif progress < 1:
                found[order] = lowest
        if not found:
            raise Unreachable(min(least))
        return found

    def _forced(self, scores: Array, progress: float) -> Array:
        """The groups that go because a layer has a share of its own."""
        forced = np.zeros(len(scores), bool)
        for name in self.own:
            left, least = self._channels[name], self._least(name, progress)
            for place in sorted(np.unique(self._places[name]), key=lambda place: scores[place]):
                if left - self._owners[place][name] >= least:
                    forced[place] = True
                    left -= self._owners[place][name]
        return forced

    def _scores(self, saliency: Saliency) -> Array:
        values = list(saliency.values)
        if saliency.sizes:
            return self.groups.norms(values)
        return self.groups.losses(values, saliency.reduction)

    def _ranked(self, scores: Array, order: Order, progress: float, before: Array) -> Array:
        """Positions of all groups that may go, first those to go first; every layer keeps its least."""
        keys = np.where(before, -np.inf, self._keys(scores, order))
        left = {layer.name: len(layer.roots) for layer in self.groups.layers}
        ranked = []
        for place in np.argsort(keys, kind="stable"):
            owners = self._owners[int(place)]
            if before[place] or all(left[name] > self._least(name, progress) for name in owners):
                ranked.append(int(place))
                for name in owners:
                    left[name] -= owners[name]
        return np.array(ranked, int)

    def _keys(self, scores: Array, order: Order) -> Array:
        if order == "global":
            return scores
        if order == "per_mac":
            lowest = min(float(scores.min()), 0.0)
            return np.asarray((scores - lowest) / np.maximum(self.groups.savings, 1e-30))
        keys = np.zeros(len(scores))
        for places in self.groups.clusters:
            keys[places] = scores[places].argsort(kind="stable").argsort(kind="stable") / len(places)
        return keys

    def _least(self, name: str, progress: float) -> int:
        """Channels that the layer keeps whatever the target is."""
        channels = self._channels[name]
        if name not in self.own:
            return min(self.multiple, channels)
        kept = channels * (1 - self.own[name] * progress)
        if self.multiple == 1:
            return max(1, round(kept))
        whole = math.floor if progress == 1 else math.ceil  # in the end the share is met, on the way it is not passed
        return min(channels, max(1, whole(kept / self.multiple)) * self.multiple)

    @cached_property
    def _places(self) -> dict[str, Array]:
        """For each layer the positions in `roots` of its channels that may go."""
        places = {int(root): place for place, root in enumerate(self.groups.roots)}
        return {layer.name: np.array([places[root] for root in layer.roots.tolist() if root in places], int)
                for layer in self.groups.layers}  # fmt: skip

    @cached_property
    def _channels(self) -> dict[str, int]:
        return {layer.name: len(layer.roots) for layer in self.groups.layers}

    @cached_property
    def _owners(self) -> list[dict[str, int]]:
        """For each group the layers that make its channels, and how many of theirs it is."""
        owners: list[dict[str, int]] = [{} for _ in self.groups.roots]
        for name, places in self._places.items():
            for place, number in zip(*np.unique(places, return_counts=True), strict=True):
                owners[place][name] = int(number)
        return owners

    def _shortest(self, ranked: Array, goal: float, before: Array) -> Array:
        low, high = int(before.sum()), len(ranked)
        while low < high:
            middle = (low + high) // 2
            if self.cost(self._rounded(ranked, middle, before)) <= goal:
                high = middle
            else:
                low = middle + 1
        return self._rounded(ranked, high, before)

    def _rounded(self, ranked: Array, number: int, before: Array) -> Array:
        """The first `number` gone, less those that a multiple of channels needs back."""
        gone = before.copy()
        gone[ranked[:number]] = True
        if self.multiple == 1:
            return gone
        rank = np.zeros(len(gone), int)
        rank[ranked] = np.arange(len(ranked))
        changed = True
        while changed:  # what comes back for one layer comes back for all that it is added to
            changed = False
            for name in self._places:
                changed |= self._give_back(name, gone, before, rank)
        return gone

    def _give_back(self, name: str, gone: Array, before: Array, rank: Array) -> bool:
        """Whether channels of the layer came back in `gone`, those removed last, for it to keep a multiple."""
        places = self._places[name]
        spare = -(self._channels[name] - int(gone[places].sum())) % self.multiple
        lost = np.unique(places[gone[places] & ~before[places]])
        back = lost[np.argsort(-rank[lost], kind="stable")][:spare]
        gone[back] = False
        return len(back) > 0


class Unreachable(Exception):  # noqa: N818  a bound that the caller turns into an error of the user's terms
    """The cost cannot be brought down to the goal; `least` is what it can be brought down to."""

    def __init__(self, least: float) -> None:
        super().__init__(least)
        self.least = least
