"""How a share of zeros is spread over the kernels.

- `uniform`: the same share of each.
- `erk`: Erdos-Renyi-kernel (Mocanu et al. 2018; Evci et al. 2020): a density proportional to the sum of a kernel's
  dimensions over their product, so that large kernels give more.
- `global`: one ranking of all units, whichever kernel they stand in.
"""

from typing import Literal

import numpy as np

from edgepipe.core.arrays import Array

Distribution = Literal["uniform", "erk", "global"]


def erk(shapes: list[tuple[int, ...]], share: float) -> list[float]:
    """The share of zeros of each kernel such that together they have `share`; none is emptied altogether.

    Densities are scaled by one factor; kernels that would be more than full are full, and the others share the rest.
    """
    sizes = np.array([np.prod(shape) for shape in shapes], float)
    raw = np.array([sum(shape) for shape in shapes]) / sizes
    full = np.zeros(len(shapes), bool)
    while True:
        left = (1 - share) * sizes.sum() - sizes[full].sum()
        factor = left / (raw * sizes)[~full].sum() if not full.all() else 0.0
        over = ~full & (raw * factor > 1)
        if not over.any():
            return [float(x) for x in 1 - np.where(full, 1.0, np.clip(raw * factor, 0, 1))]
        full |= over


def lowest(scores: Array, before: Array, share: float, least: int) -> Array:
    """`before` and, of the other units, those of lowest score, until `share` of all are marked; `least` stay."""
    number = number_of(scores.size, share, least)
    order = np.argsort(np.where(before, -np.inf, scores), axis=None, kind="stable")
    marked = before.ravel().copy()
    marked[order[:number]] = True
    return marked.reshape(scores.shape)


def number_of(units: int, share: float, least: int) -> int:
    """How many of `units` go at `share`; `least` stay."""
    return max(min(units - least, units - round(units * (1 - share))), 0)


def lowest_of_all(scores: list[Array], before: list[Array], share: float, least: int) -> list[Array]:
    """As `lowest`, in one ranking over all kernels; the `least` best units of each stay."""
    spared = [_best(part, least) for part in scores]
    ranks = [np.where(spare, np.inf, part).ravel() for part, spare in zip(scores, spared, strict=True)]
    marked = lowest(np.concatenate(ranks), np.concatenate([part.ravel() for part in before]), share, least)
    cuts = np.cumsum([part.size for part in scores])[:-1]
    parts = zip(np.split(marked, cuts), scores, spared, strict=True)
    return [part.reshape(like.shape) & ~spare for part, like, spare in parts]


def _best(scores: Array, number: int) -> Array:
    found = np.zeros(scores.size, bool)
    found[np.argsort(-scores, axis=None, kind="stable")[:number]] = True
    return found.reshape(scores.shape)
