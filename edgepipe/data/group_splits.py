"""Splits by group: all samples of one person, session, recording or voice are on the same side."""

from collections.abc import Mapping

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data.splits import Split

SHOWN = 10  # names of groups that a message lists


def draw_groups(labels: Array | None, groups: Array, shares: Mapping[Split, float], seed: int) -> dict[Split, Array]:
    """Indices of the samples for each split, no group on two sides; the same for a seed.

    The largest groups are placed first, each where sizes and, with integer `labels` (n,), class counts come nearest to
    the shares, as in stratified group k-fold.

    Args:
        labels: one integer a sample, or None to look at sizes alone.
        groups: the name of each sample's group, (n,).
        shares: of each split but the training one.
        seed: of the order in which groups of one size are placed.

    Raises:
        InputError: fewer groups than splits.
    """
    names, index = np.unique(groups, return_inverse=True)
    splits = [Split.TRAIN, *shares]
    if len(names) < len(splits):
        raise InputError(
            f"{len(names)} {'group' if len(names) == 1 else 'groups'} ({', '.join(map(str, names[:SHOWN]))}) cannot be "
            f"kept apart in {len(splits)} splits ({', '.join(splits)}); one group must not sit on two sides"
        )
    counts = _counts(labels, index, len(names))
    wanted = np.array([1 - sum(shares.values()), *shares.values()])[:, None] * counts.sum(axis=0)
    of = _placed(counts, wanted, np.random.RandomState(seed).permutation(len(names)))
    order = np.random.RandomState(seed).permutation(len(groups))
    return {split: order[of[index[order]] == number] for number, split in enumerate(splits)}


def _counts(labels: Array | None, index: Array, number: int) -> Array:
    """Samples of each group by class, (groups, classes)."""
    classes = np.zeros(len(index), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    found = np.zeros((number, int(classes.max()) + 1))
    np.add.at(found, (index, classes), 1)
    return found


def _placed(counts: Array, wanted: Array, shuffled: Array) -> Array:
    """The number of the split that each group goes to, (groups,)."""
    order = sorted(shuffled, key=lambda group: -counts[group].sum())
    scale = np.maximum(wanted.sum(axis=0), 1)
    have, of = np.zeros_like(wanted), np.full(len(counts), -1)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        empty = [split for split in range(len(wanted)) if split not in of]
        allowed = empty if len(empty) >= left else list(range(len(wanted)))
        growth = [_miss(have, counts[group], wanted, scale, split) for split in allowed]
        of[group] = allowed[int(np.argmin(growth))]
        have[of[group]] += counts[group]
    return of


def _miss(have: Array, group: Array, wanted: Array, scale: Array, split: int) -> float:
    """How much farther from what is wanted the split is with the group than without it."""
    before = (have[split] - wanted[split]) / scale
    after = (have[split] + group - wanted[split]) / scale
    return float(np.square(after).sum() - np.square(before).sum())


def check_apart(name: str, groups: Mapping[Split, Array]) -> None:
    """Raise an `InputError` if a group stands in two splits of a source that has splits of its own."""
    seen: dict[str, Split] = {}
    for split, listed in groups.items():
        for group in np.unique(listed).astype(str):
            if seen.setdefault(group, split) is not split:
                raise InputError(f"{name}: group '{group}' stands in both {seen[group]} and {split}")


def told(name: str, groups: Mapping[Split, Array]) -> str:
    """How many groups each split has, as a note."""
    listed = ", ".join(f"{len(np.unique(found))} in {split}" for split, found in groups.items())
    return f"{name}: split by group, no group on two sides: {listed}"
