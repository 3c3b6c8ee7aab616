"""One step of pruning: take the saliency of the model as it is now, and remove as much as is due."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgepipe.compress.pruning.channels.channel_pool import ChannelPool, Order, Unreachable
from edgepipe.compress.pruning.channels.shrink import shrink
from edgepipe.compress.pruning.pruning_target import Built, Target
from edgepipe.compress.pruning.saliency import Saliency, Settings, saliency
from edgepipe.compress.pruning.saliency_loss import Objective
from edgepipe.compress.pruning.weight_pool import Pool, Removal
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError

BUILDS = 8  # conversions that a target in bytes or seconds may take for each order


class Pruner(Protocol):
    """What is gone so far, and how to remove more. Progress runs from 0 to 1, the target."""

    @property
    def notes(self) -> list[str]:
        """What is worth telling of the last step."""

    @property
    def weights(self) -> list[Any]:
        """The variables that masks are for."""

    @property
    def final(self) -> float:
        """The share that is gone at the target, of weights or of the cost."""

    @property
    def zeros(self) -> list[Array]:
        """Which elements of `weights` are gone."""

    def advance(self, progress: float) -> list[Array]:
        """Remove what is due at `progress`; gives `zeros`."""

    def snapshot(self) -> Any:
        """What is gone, to come back to."""

    def restore(self, snapshot: Any) -> None:
        """Take back what went since."""


@dataclass
class Asking:
    """Asks for the saliency of the model as it is, each time with another seed."""

    settings: Settings
    objective: Objective | None
    seed: int
    notes: list[str] = field(default_factory=list)

    def of(self, weights: list[Any]) -> Saliency:
        """Of each entry of `weights`."""
        found = saliency(self.settings, weights, self.objective, self.seed)
        self.seed += 1
        if found.curvature is not None and found.curvature.probes:
            errors = [found.curvature.relative_error(index) for index in range(len(weights))]
            self.notes.append(
                f"second derivatives by {found.curvature.method}, {found.curvature.probes} probes: standard error "
                f"{np.median(errors):.0%} of the values (median over tensors, worst {max(errors):.0%})"
            )
        return found


@dataclass
class KernelPruner:
    """Zeros in kernels: weights, blocks, n of m."""

    pool: Pool
    share: float
    asking: Asking
    state: Removal

    @classmethod
    def of(cls, pool: Pool, share: float, settings: Settings, objective: Objective | None, seed: int) -> "KernelPruner":
        """Nothing is gone but what was zero already."""
        return cls(pool, share, Asking(settings, objective, seed), pool.start())

    @property
    def notes(self) -> list[str]:
        """How exact the second derivatives were, last."""
        return self.asking.notes[-1:]

    @property
    def weights(self) -> list[Any]:
        """The kernels."""
        return self.pool.weights

    @property
    def final(self) -> float:
        """The share of zeros at the end."""
        return self.share

    @property
    def zeros(self) -> list[Array]:
        """Of each kernel."""
        return list(self.state.zeros)

    def advance(self, progress: float) -> list[Array]:
        """Remove more weights."""
        found = self.asking.of(self.weights)
        self.state = self.pool.remove(found, self.share * progress, progress, self.state)
        return self.zeros

    def snapshot(self) -> Removal:
        """The state itself: it never changes."""
        return self.state

    def restore(self, snapshot: Removal) -> None:
        """Go back."""
        self.state = snapshot


@dataclass
class ChannelPruner:
    """Channels, through the whole graph. Of several orders of removal the one with the least loss is taken."""

    model: Any
    pool: ChannelPool
    target: Target
    asking: Asking
    loss: Callable[[], float]  # of the model as it is, on the validation split
    built: Built | None = None  # for targets that only a conversion can tell
    gone: Array = field(default_factory=lambda: np.zeros(0, bool))
    chosen: list[str] = field(default_factory=list)
    _start: float = 0.0  # what the model as it was cost when it was built

    def __post_init__(self) -> None:
        self.gone = self.pool.start()
        if self.built is not None:
            self._start = self.built(self.model)

    @property
    def notes(self) -> list[str]:
        """How exact the second derivatives were, and which order was best, last."""
        return [*self.asking.notes[-1:], *self.chosen[-1:]]

    @property
    def weights(self) -> list[Any]:
        """Every weight that a removed channel has a part in."""
        return self.pool.weights

    @property
    def final(self) -> float:
        """The share of the cost that is gone at the end."""
        start = self.pool.cost(self.pool.start())  # 0 if every layer has a share of its own
        return 1 - self._goal(1.0) / start if start else max(self.pool.own.values())

    @property
    def zeros(self) -> list[Array]:
        """Of each weight."""
        return self.pool.zeros(self.gone)

    @property
    def smaller(self) -> Any:
        """The model without the channels that are gone."""
        return shrink(self.model, self.pool.groups, self.gone)

    @property
    def original(self) -> float:
        """What the model cost before anything went, in the target's terms."""
        return self.pool.cost(self.pool.start()) if self.built is None else self._start

    def _goal(self, progress: float) -> float:
        """The cost at `progress`, by the pool's own measure."""
        start = self.pool.cost(self.pool.start())
        value = self.target.value
        if self.target.what == "sparsity":
            value = 1 - value
        elif self.built is not None:
            value = start * min(1.0, value / self._start)
        return start - progress * max(start - value, 0.0)

    def advance(self, progress: float) -> list[Array]:
        """Remove more channels.

        Raises:
            InputError: the target is below what is left when every layer has its least.
        """
        found = self.asking.of(self.weights)
        if self.built is not None and progress == 1.0:
            candidates = {order: gone for order in self.pool.orders if (gone := self._built(found, order)) is not None}
        else:
            candidates = self._candidates(found, self.pool.orders, self._goal(progress), progress)
        self.gone = self._best(candidates)
        return self.zeros

    def _candidates(
        self, found: Saliency, orders: tuple[Order, ...], goal: float, progress: float
    ) -> dict[Order, Array]:
        try:
            return self.pool.candidates(found, orders, goal, progress, self.gone)
        except Unreachable as least:
            raise InputError(self._refusal(self._reachable(least.least))) from None

    def _reachable(self, least: float) -> str:
        shown = 1 - least if self.target.what == "sparsity" else least
        return self.target.show(shown)

    def _refusal(self, least: str) -> str:
        stay = [f"{layer.name}: {layer.reason}" for layer in self.pool.groups.layers if layer.reason]
        told = f"; layers that keep all their channels: {'; '.join(stay)}" if stay else ""
        return (
            f"the target {self.target.text()} cannot be met by removing channels of '{self.model.name}': with every "
            f"layer at its least, {self._at_least()}, it comes to {least}{told}"
        )

    def _at_least(self) -> str:
        multiple = self.pool.multiple
        least = "1 channel" if multiple == 1 else f"{multiple} channels or all that a smaller one has"
        return least + (" or the share of its own" if self.pool.own else "")

    def _built(self, found: Saliency, order: Order) -> Array:
        """What is gone when the converted model meets the target, with as little removed as `BUILDS` tries find."""
        assert self.built is not None
        goal, best = self._goal(1.0), None
        low, high = 0.0, self.pool.cost(self.gone)
        last = self.pool.cost(self.pool.start()), self._start
        for _ in range(BUILDS):
            try:
                gone = self.pool.candidates(found, (order,), goal, 1.0, self.gone)[order]
            except Unreachable as least:
                goal = low = least.least
                gone = self.pool.candidates(found, (order,), goal, 1.0, self.gone)[order]
            cost = self.built(shrink(self.model, self.pool.groups, gone))
            if cost <= self.target.value:
                best, low = gone, goal
                if cost > 0.98 * self.target.value:
                    break
            elif goal <= low:
                raise InputError(self._refusal(self.target.show(cost)))
            else:
                high = goal
            last, goal = (goal, cost), self._next(last, (goal, cost), low, high)
        if best is None:
            raise InputError(
                f"the target {self.target.text()} was not met in {BUILDS} conversions; the last came to "
                f"{self.target.show(cost)}"
            )
        return best

    def _next(self, last: tuple[float, float], now: tuple[float, float], low: float, high: float) -> float:
        """On the line through the last two (goal, cost), if that lies between enough and not enough; else halfway."""
        rise = now[1] - last[1]
        guess = now[0] + (0.99 * self.target.value - now[1]) * (now[0] - last[0]) / rise if rise else low
        return guess if low < guess < high else (low + high) / 2

    def _best(self, candidates: dict[Order, Array]) -> Array:
        """The candidate with the least loss before any fine-tuning."""
        if len(candidates) == 1:
            return next(iter(candidates.values()))
        losses = {order: self._loss(gone) for order, gone in candidates.items()}
        best = min(losses, key=lambda order: losses[order])
        shown = ", ".join(f"{order} {loss:.4g}" for order, loss in losses.items())
        self.chosen.append(f"channels removed in the order '{best}'; validation loss before fine-tuning: {shown}")
        return candidates[best]

    def _loss(self, gone: Array) -> float:
        before = [weight.numpy() for weight in self.weights]
        try:
            for weight, value, zero in zip(self.weights, before, self.pool.zeros(gone), strict=True):
                weight.assign(np.where(zero, 0, value))
            return self.loss()
        finally:
            for weight, value in zip(self.weights, before, strict=True):
                weight.assign(value)

    def snapshot(self) -> tuple[Array, list[str]]:
        """What is gone, and what was told of it."""
        return self.gone, list(self.chosen)

    def restore(self, snapshot: tuple[Array, list[str]]) -> None:
        """Go back."""
        self.gone, self.chosen = snapshot
