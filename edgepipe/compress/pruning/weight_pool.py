"""The kernels of a model as removable units, and which of them are removed at a given share."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepipe.compress.pruning.distribution import (
    Distribution,
    count_removed_units,
    erk_shares,
    mark_lowest,
    mark_lowest_globally,
)
from edgepipe.compress.pruning.granularity import Granularity
from edgepipe.compress.pruning.prunable_kernels import PrunableKernel, PrunableKernels, iterate_kernels
from edgepipe.compress.pruning.saliency import Saliency
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError


@dataclass(frozen=True)
class Removal:
    """What is removed from each kernel: units, and the weights that are zero because of it."""

    unit_masks: tuple[Array, ...]
    zero_masks: tuple[Array, ...]


@dataclass(frozen=True)
class WeightPool:
    """The kernels that share one target; `share_by_kernel` has the kernels with a share of their own, by name."""

    kernels: tuple[PrunableKernel, ...]
    granularity: Granularity
    distribution: Distribution
    share_by_kernel: dict[str, float]

    @property
    def weights(self) -> list[Any]:
        """The variables, in order."""
        return [kernel.weight for kernel in self.kernels]

    @property
    def free_weight_count(self) -> int:
        """Weights of all kernels without a share of their own."""
        return sum(kernel.size for kernel in self.kernels if kernel.name not in self.share_by_kernel)

    def initial_removal(self) -> Removal:
        """Nothing is removed yet; existing zeros stay zero."""
        zero_masks = tuple(np.asarray(kernel.weight) == 0 for kernel in self.kernels)
        shapes = [
            self.granularity.unit_scores(k, z, z, _reduce_any).shape
            for k, z in zip(self.kernels, zero_masks, strict=True)
        ]
        return Removal(tuple(np.zeros(shape, bool) for shape in shapes), zero_masks)

    def extend_removal(self, saliency: Saliency, share: float, progress: float, previous_removal: Removal) -> Removal:
        """The removal of `share` of the units, including `previous_removal`.

        Args:
            saliency: of the current weights.
            share: of the kernels without a share of their own, 0 to 1.
            progress: from 0 to 1, by which the other kernels' own shares are multiplied.
            previous_removal: what is already removed.
        """
        saliencies = [np.where(z, 0, v) for v, z in zip(saliency.saliencies, previous_removal.zero_masks, strict=True)]
        weight_scores = [
            np.where(z, -np.inf, saliency.reduction(v[..., None]))
            for v, z in zip(saliencies, previous_removal.zero_masks, strict=True)
        ]
        unit_scores = [
            self.granularity.unit_scores(k, v, s, saliency.reduction)
            for k, v, s in zip(self.kernels, saliencies, weight_scores, strict=True)
        ]
        unit_masks = self._mark_units(unit_scores, share, progress, previous_removal)
        kernel_arrays = zip(self.kernels, weight_scores, unit_masks, previous_removal.zero_masks, strict=True)
        zero_masks = [self.granularity.removal_mask(k, s, u) | z for k, s, u, z in kernel_arrays]
        return Removal(tuple(unit_masks), tuple(zero_masks))

    def kernel_shares(self, share: float, progress: float = 1.0) -> list[float]:
        """The share of each kernel if those without their own have `share` together; not for global.

        Own shares are multiplied by `progress`.
        """
        own_shares = [
            self.share_by_kernel[kernel.name] * progress if kernel.name in self.share_by_kernel else None
            for kernel in self.kernels
        ]
        free_shapes = [
            kernel.shape for kernel, own_share in zip(self.kernels, own_shares, strict=True) if own_share is None
        ]
        free_shares = iter(erk_shares(free_shapes, share) if self.distribution == "erk" else [share] * len(free_shapes))
        return [next(free_shares) if own_share is None else own_share for own_share in own_shares]

    def count_remaining_weights(self, share: float) -> int:
        """How many weights of all kernels stay at `share` for the kernels without a share of their own."""
        kernels_with_shares = zip(self.kernels, self.kernel_shares(share), strict=True)
        if self.distribution != "global":
            return sum(
                kernel.size - self._count_removed_weights(kernel, kernel_share)
                for kernel, kernel_share in kernels_with_shares
            )
        own_removed_count = sum(
            self._count_removed_weights(kernel, kernel_share)
            for kernel, kernel_share in kernels_with_shares
            if kernel.name in self.share_by_kernel
        )
        free_kernels = [kernel for kernel in self.kernels if kernel.name not in self.share_by_kernel]
        unit_count = sum(kernel.size // self.granularity.weights_per_unit(kernel) for kernel in free_kernels)
        removable_unit_count = unit_count - self.granularity.min_units * len(free_kernels)
        removed_unit_count = min(
            count_removed_units(unit_count, share, self.granularity.min_units), removable_unit_count
        )
        return (
            sum(kernel.size for kernel in self.kernels)
            - own_removed_count
            - removed_unit_count * self.granularity.weights_per_unit(self.kernels[0])
        )

    def _count_removed_weights(self, kernel: PrunableKernel, share: float) -> int:
        unit_size = self.granularity.weights_per_unit(kernel)
        return count_removed_units(kernel.size // unit_size, share, self.granularity.min_units) * unit_size

    def _mark_units(
        self, unit_scores: list[Array], share: float, progress: float, previous_removal: Removal
    ) -> list[Array]:
        min_units = self.granularity.min_units
        kernel_shares = self.kernel_shares(share, progress)
        unit_masks = [
            mark_lowest(r, b, s, min_units)
            for r, b, s in zip(unit_scores, previous_removal.unit_masks, kernel_shares, strict=True)
        ]
        if self.distribution == "global":
            free_indices = [
                index for index, kernel in enumerate(self.kernels) if kernel.name not in self.share_by_kernel
            ]
            free_masks = mark_lowest_globally(
                [unit_scores[i] for i in free_indices],
                [previous_removal.unit_masks[i] for i in free_indices],
                share,
                min_units,
            )
            for index, mask in zip(free_indices, free_masks, strict=True):
                unit_masks[index] = mask
        return unit_masks


def _reduce_any(zero_masks: Array) -> Array:
    return np.asarray(zero_masks.any(-1))


@dataclass(frozen=True)
class KernelSparsity:
    """How many weights of a kernel are exactly zero, and why it was not pruned, if so."""

    name: str
    kind: str
    elements: int
    zeros: int
    exclusion_reason: str = ""


def measure_sparsity(model: Any, prunable_kernels: PrunableKernels) -> list[KernelSparsity]:
    """The zeros of every kernel of `model`, with the reason for those that were not pruned."""
    return [
        _measure_kernel(kernel, prunable_kernels.exclusion_reasons.get(kernel.name, ""))
        for kernel in iterate_kernels(model)
    ]


def _measure_kernel(kernel: PrunableKernel, exclusion_reason: str) -> KernelSparsity:
    zero_count = kernel.size - int(np.count_nonzero(np.asarray(kernel.weight)))
    return KernelSparsity(kernel.name, kernel.class_name, kernel.size, zero_count, exclusion_reason)


def check_sparsity(kernel_sparsities: list[KernelSparsity], pool: WeightPool, share: float) -> None:
    """Check that the pruned kernels have their share of zeros, each to within one unit; for global all together.

    Raises:
        InputError: a kernel, or for global all of them, has fewer zeros than the target.
    """
    sparsity_by_name = {layer.name: layer for layer in kernel_sparsities if not layer.exclusion_reason}
    remaining_weight_count = sum(layer.elements - layer.zeros for layer in sparsity_by_name.values())
    if pool.distribution == "global" and remaining_weight_count > pool.count_remaining_weights(share):
        raise InputError(
            f"{remaining_weight_count} weights of the pruned kernels are not zero, "
            f"{pool.count_remaining_weights(share)} should be left; "
            "the training was too short for the schedule: raise epochs or lower ramp"
        )
    for kernel, target_share in zip(pool.kernels, pool.kernel_shares(share), strict=True):
        kernel_sparsity, unit_size = sparsity_by_name[kernel.name], pool.granularity.weights_per_unit(kernel)
        needed_zero_count = target_share * pool.granularity.max_zero_count(kernel)
        if pool.distribution != "global" and kernel_sparsity.zeros + unit_size < needed_zero_count:
            raise InputError(
                f"layer '{kernel_sparsity.name}' holds {kernel_sparsity.zeros} zeros of {kernel_sparsity.elements}, "
                f"under the target {target_share:.0%}; "
                "the training was too short for the schedule: raise epochs or lower ramp"
            )
