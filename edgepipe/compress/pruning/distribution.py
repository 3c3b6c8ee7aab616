"""How a share of zeros is distributed over the kernels.

- `uniform`: the same share of each.
- `erk`: Erdos-Renyi-kernel (Mocanu et al. 2018; Evci et al. 2020): a density proportional to the sum of a kernel's
  dimensions over their product, so that large kernels lose more.
- `global`: one ranking of the units of all kernels.
"""

from typing import Literal

import numpy as np

from edgepipe.core.arrays import Array

Distribution = Literal["uniform", "erk", "global"]


def erk_shares(shapes: list[tuple[int, ...]], share: float) -> list[float]:
    """The share of zeros of each kernel such that together they have `share`; no kernel becomes empty.

    Densities are scaled by one factor; kernels with a density above 1 stay dense, and the others absorb the rest.
    """
    kernel_sizes = np.array([np.prod(shape) for shape in shapes], float)
    densities = np.array([sum(shape) for shape in shapes]) / kernel_sizes
    full_mask = np.zeros(len(shapes), bool)
    while True:
        remaining_weight_count = (1 - share) * kernel_sizes.sum() - kernel_sizes[full_mask].sum()
        density_factor = (
            remaining_weight_count / (densities * kernel_sizes)[~full_mask].sum() if not full_mask.all() else 0.0
        )
        overfull_mask = ~full_mask & (densities * density_factor > 1)
        if not overfull_mask.any():
            return [float(x) for x in 1 - np.where(full_mask, 1.0, np.clip(densities * density_factor, 0, 1))]
        full_mask |= overfull_mask


def mark_lowest(scores: Array, previous_mask: Array, share: float, min_units: int) -> Array:
    """Mark `previous_mask` and the units of lowest score, until `share` of all units are marked.

    Args:
        scores: one for each unit, of any shape.
        previous_mask: units that are already removed, shaped as `scores`.
        share: of the units to mark, 0 to 1.
        min_units: units that stay whatever the share.
    """
    removed_count = count_removed_units(scores.size, share, min_units)
    removal_order = np.argsort(np.where(previous_mask, -np.inf, scores), axis=None, kind="stable")
    mask = previous_mask.ravel().copy()
    mask[removal_order[:removed_count]] = True
    return mask.reshape(scores.shape)


def count_removed_units(unit_count: int, share: float, min_units: int) -> int:
    """How many of `units` are removed at `share`; at least `min_units` stay."""
    return max(min(unit_count - min_units, unit_count - round(unit_count * (1 - share))), 0)


def mark_lowest_globally(scores: list[Array], previous_masks: list[Array], share: float, min_units: int) -> list[Array]:
    """As `mark_lowest`, in one ranking over all kernels.

    Args:
        scores: one array for each kernel.
        previous_masks: units that are already removed, one array for each kernel.
        share: of all units together to mark, 0 to 1.
        min_units: best units of each kernel that stay whatever the share.
    """
    spared_masks = [_mark_best(kernel_scores, min_units) for kernel_scores in scores]
    spared_scores = [
        np.where(spared_mask, np.inf, kernel_scores).ravel()
        for kernel_scores, spared_mask in zip(scores, spared_masks, strict=True)
    ]
    flat_mask = mark_lowest(
        np.concatenate(spared_scores),
        np.concatenate([previous_mask.ravel() for previous_mask in previous_masks]),
        share,
        min_units,
    )
    split_indices = np.cumsum([kernel_scores.size for kernel_scores in scores])[:-1]
    kernel_masks = zip(np.split(flat_mask, split_indices), scores, spared_masks, strict=True)
    return [mask.reshape(kernel_scores.shape) & ~spared_mask for mask, kernel_scores, spared_mask in kernel_masks]


def _mark_best(scores: Array, count: int) -> Array:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, axis=None, kind="stable")[:count]] = True
    return mask.reshape(scores.shape)
