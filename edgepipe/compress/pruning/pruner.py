"""One step of pruning: compute the current saliency, and remove as much as is due."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgepipe.compress.pruning.channels.channel_pool import ChannelPool, RemovalOrder, UnreachableCost
from edgepipe.compress.pruning.channels.shrink import shrink_model
from edgepipe.compress.pruning.pruning_target import ConvertedCostFunction, PruningTarget
from edgepipe.compress.pruning.saliency import Saliency, SaliencySettings, compute_saliency
from edgepipe.compress.pruning.saliency_loss import Objective
from edgepipe.compress.pruning.weight_pool import Removal, WeightPool
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural

MAX_CONVERSIONS = 8  # conversions for each removal order, for targets in bytes or seconds


class Pruner(Protocol):
    """What is removed so far, and how to remove more. Progress runs from 0 to 1, the target."""

    @property
    def notes(self) -> list[str]:
        """Notes on the last step."""

    @property
    def weights(self) -> list[Any]:
        """The variables that masks are for."""

    @property
    def final_share(self) -> float:
        """The share of weights, or of the cost, that is removed at the target."""

    @property
    def zero_masks(self) -> list[Array]:
        """Which elements of `weights` are removed."""

    def advance(self, progress: float) -> list[Array]:
        """Remove what is due at `progress`; returns `zero_masks`."""

    def snapshot(self) -> Any:
        """The state, for `restore`."""

    def restore(self, snapshot: Any) -> None:
        """Return to the state of `snapshot`."""


@dataclass
class SaliencySampler:
    """Computes the saliency of the current model, each time with another seed."""

    settings: SaliencySettings
    objective: Objective | None
    seed: int
    notes: list[str] = field(default_factory=list)

    def sample(self, weights: list[Any]) -> Saliency:
        """The saliency of each tensor of `weights`."""
        saliency = compute_saliency(self.settings, weights, self.objective, self.seed)
        self.seed += 1
        if saliency.curvature is not None and saliency.curvature.probe_count:
            relative_errors = [saliency.curvature.relative_error(index) for index in range(len(weights))]
            probes_text = plural(saliency.curvature.probe_count, "probe")
            self.notes.append(
                f"second derivatives by {saliency.curvature.method}, {probes_text}: "
                f"standard error {np.median(relative_errors):.0%} of the values "
                f"(median over tensors, worst {max(relative_errors):.0%})"
            )
        return saliency


@dataclass
class KernelPruner:
    """Zeros in kernels: weights, blocks, n of m."""

    pool: WeightPool
    target_share: float
    sampler: SaliencySampler
    removal: Removal

    @classmethod
    def from_settings(
        cls, pool: WeightPool, target_share: float, settings: SaliencySettings, objective: Objective | None, seed: int
    ) -> "KernelPruner":
        """The pruner of a model from which nothing is removed but the zeros it came with.

        Args:
            pool: the kernels to prune.
            target_share: of zeros at the target, 0 to 1.
            settings: of the saliency.
            objective: the loss; None for saliencies without data.
            seed: of random saliencies and probes.
        """
        return cls(pool, target_share, SaliencySampler(settings, objective, seed), pool.initial_removal())

    @property
    def notes(self) -> list[str]:
        """How accurate the last second derivatives were."""
        return self.sampler.notes[-1:]

    @property
    def weights(self) -> list[Any]:
        """The kernels."""
        return self.pool.weights

    @property
    def final_share(self) -> float:
        """The share of zeros at the end."""
        return self.target_share

    @property
    def zero_masks(self) -> list[Array]:
        """The removed weights of each kernel."""
        return list(self.removal.zero_masks)

    def advance(self, progress: float) -> list[Array]:
        """Remove more weights."""
        saliency = self.sampler.sample(self.weights)
        self.removal = self.pool.extend_removal(saliency, self.target_share * progress, progress, self.removal)
        return self.zero_masks

    def snapshot(self) -> Removal:
        """The current removal, which is immutable."""
        return self.removal

    def restore(self, snapshot: Removal) -> None:
        """Return to `snapshot`."""
        self.removal = snapshot


@dataclass
class ChannelPruner:
    """Removes channels through the whole graph, in the removal order with the least loss."""

    model: Any
    pool: ChannelPool
    target: PruningTarget
    sampler: SaliencySampler
    measure_validation_loss: Callable[[], float]  # of the current model, on the validation split
    measure_converted_cost: ConvertedCostFunction | None = None  # for targets that need a conversion to be measured
    removed_group_mask: Array = field(default_factory=lambda: np.zeros(0, bool))
    order_notes: list[str] = field(default_factory=list)
    _original_converted_cost: float = 0.0  # converted cost of the original model

    def __post_init__(self) -> None:
        self.removed_group_mask = self.pool.initial_removal_mask()
        if self.measure_converted_cost is not None:
            self._original_converted_cost = self.measure_converted_cost(self.model)

    @property
    def notes(self) -> list[str]:
        """How accurate the last second derivatives were, and which removal order was best."""
        return [*self.sampler.notes[-1:], *self.order_notes[-1:]]

    @property
    def weights(self) -> list[Any]:
        """Every weight that a removable channel is part of."""
        return self.pool.weights

    @property
    def final_share(self) -> float:
        """The share of the cost that is removed at the target."""
        start_cost = self.pool.compute_cost(self.pool.initial_removal_mask())  # 0 if every layer has a share of its own
        return 1 - self._max_cost(1.0) / start_cost if start_cost else max(self.pool.share_by_layer.values())

    @property
    def zero_masks(self) -> list[Array]:
        """The removed elements of each weight."""
        return self.pool.zero_masks(self.removed_group_mask)

    @property
    def shrunk_model(self) -> Any:
        """The model without the removed channels."""
        return shrink_model(self.model, self.pool.channel_groups, self.removed_group_mask)

    @property
    def original_cost(self) -> float:
        """The cost of the original model, in the target's unit."""
        return (
            self.pool.compute_cost(self.pool.initial_removal_mask())
            if self.measure_converted_cost is None
            else self._original_converted_cost
        )

    def _max_cost(self, progress: float) -> float:
        """The cost at `progress`, in the pool's own measure."""
        start_cost = self.pool.compute_cost(self.pool.initial_removal_mask())
        target_cost = self.target.value
        if self.target.metric_name == "sparsity":
            target_cost = 1 - target_cost
        elif self.measure_converted_cost is not None:
            target_cost = start_cost * min(1.0, target_cost / self._original_converted_cost)
        return start_cost - progress * max(start_cost - target_cost, 0.0)

    def advance(self, progress: float) -> list[Array]:
        """Remove more channels.

        Raises:
            InputError: the target is below the cost of the model with every layer at its minimum.
        """
        saliency = self.sampler.sample(self.weights)
        if self.measure_converted_cost is not None and progress == 1.0:
            mask_by_order = {
                order: mask
                for order in self.pool.removal_orders
                if (mask := self._search_converted_mask(saliency, order)) is not None
            }
        else:
            mask_by_order = self._candidate_masks(
                saliency, self.pool.removal_orders, self._max_cost(progress), progress
            )
        self.removed_group_mask = self._choose_candidate(mask_by_order)
        return self.zero_masks

    def _candidate_masks(
        self, saliency: Saliency, orders: tuple[RemovalOrder, ...], max_cost: float, progress: float
    ) -> dict[RemovalOrder, Array]:
        try:
            return self.pool.candidate_masks(saliency, orders, max_cost, progress, self.removed_group_mask)
        except UnreachableCost as error:
            raise InputError(self._unmet_target_text(self._lowest_cost_text(error.lowest_cost))) from None

    def _lowest_cost_text(self, lowest_cost: float) -> str:
        lowest_value = 1 - lowest_cost if self.target.metric_name == "sparsity" else lowest_cost
        return self.target.show(lowest_value)

    def _unmet_target_text(self, lowest_text: str) -> str:
        fixed_layer_texts = [
            f"{layer.name}: {layer.freeze_reason}"
            for layer in self.pool.channel_groups.channel_layers
            if layer.freeze_reason
        ]
        fixed_text = (
            f"; layers that keep all their channels: {'; '.join(fixed_layer_texts)}" if fixed_layer_texts else ""
        )
        return (
            f"the target {self.target.text()} cannot be met by removing channels of '{self.model.name}': with every "
            f"layer at its minimum, {self._minimum_text()}, it comes to {lowest_text}{fixed_text}"
        )

    def _minimum_text(self) -> str:
        multiple = self.pool.channel_multiple
        minimum = "1 channel" if multiple == 1 else f"{multiple} channels or all that a smaller one has"
        return minimum + (" or its own share" if self.pool.share_by_layer else "")

    def _search_converted_mask(self, saliency: Saliency, order: RemovalOrder) -> Array:
        """The smallest removal with which the converted model meets the target, by `MAX_CONVERSIONS` conversions."""
        assert self.measure_converted_cost is not None
        max_cost, best_mask = self._max_cost(1.0), None
        low_cost, high_cost = 0.0, self.pool.compute_cost(self.removed_group_mask)
        previous_costs = self.pool.compute_cost(self.pool.initial_removal_mask()), self._original_converted_cost
        for _ in range(MAX_CONVERSIONS):
            try:
                candidate_mask = self.pool.candidate_masks(saliency, (order,), max_cost, 1.0, self.removed_group_mask)[
                    order
                ]
            except UnreachableCost as error:
                max_cost = low_cost = error.lowest_cost
                candidate_mask = self.pool.candidate_masks(saliency, (order,), max_cost, 1.0, self.removed_group_mask)[
                    order
                ]
            cost = self.measure_converted_cost(shrink_model(self.model, self.pool.channel_groups, candidate_mask))
            if cost <= self.target.value:
                best_mask, low_cost = candidate_mask, max_cost
                if cost > 0.98 * self.target.value:
                    break
            elif max_cost <= low_cost:
                raise InputError(self._unmet_target_text(self.target.show(cost)))
            else:
                high_cost = max_cost
            current_costs = max_cost, cost
            max_cost = self._next_max_cost(previous_costs, current_costs, low_cost, high_cost)
            previous_costs = current_costs
        if best_mask is None:
            raise InputError(
                f"the target {self.target.text()} was not met in {MAX_CONVERSIONS} conversions; the last came to "
                f"{self.target.show(cost)}"
            )
        return best_mask

    def _next_max_cost(
        self, previous_costs: tuple[float, float], current_costs: tuple[float, float], low_cost: float, high_cost: float
    ) -> float:
        """Linear interpolation of the last two (maximum cost, converted cost) if within the bounds, else halfway."""
        cost_rise = current_costs[1] - previous_costs[1]
        interpolated_cost = (
            current_costs[0]
            + (0.99 * self.target.value - current_costs[1]) * (current_costs[0] - previous_costs[0]) / cost_rise
            if cost_rise
            else low_cost
        )
        return interpolated_cost if low_cost < interpolated_cost < high_cost else (low_cost + high_cost) / 2

    def _choose_candidate(self, mask_by_order: dict[RemovalOrder, Array]) -> Array:
        """The candidate with the least loss before any fine-tuning."""
        if len(mask_by_order) == 1:
            return next(iter(mask_by_order.values()))
        loss_by_order = {order: self._loss_without(mask) for order, mask in mask_by_order.items()}
        best_order = min(loss_by_order, key=lambda order: loss_by_order[order])
        loss_text = ", ".join(f"{order} {loss:.4g}" for order, loss in loss_by_order.items())
        self.order_notes.append(
            f"channels removed in the order '{best_order}'; validation loss before fine-tuning: {loss_text}"
        )
        return mask_by_order[best_order]

    def _loss_without(self, removed_group_mask: Array) -> float:
        original_arrays = [weight.numpy() for weight in self.weights]
        try:
            for weight, original_array, zero_mask in zip(
                self.weights, original_arrays, self.pool.zero_masks(removed_group_mask), strict=True
            ):
                weight.assign(np.where(zero_mask, 0, original_array))
            return self.measure_validation_loss()
        finally:
            for weight, original_array in zip(self.weights, original_arrays, strict=True):
                weight.assign(original_array)

    def snapshot(self) -> tuple[Array, list[str]]:
        """The removed groups, and the notes on them."""
        return self.removed_group_mask, list(self.order_notes)

    def restore(self, snapshot: tuple[Array, list[str]]) -> None:
        """Return to `snapshot`."""
        self.removed_group_mask, self.order_notes = snapshot
