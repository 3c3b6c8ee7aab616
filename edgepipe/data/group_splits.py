"""Splits by group: all samples of one person, session, recording or voice stay in one split."""

from collections.abc import Mapping

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.data.split_names import Split

MAX_LISTED = 10  # group names that a message lists


def draw_group_splits(
    labels: Array | None, sample_groups: Array, share_by_split: Mapping[Split, float], seed: int
) -> dict[Split, Array]:
    """Sample indices of each split, each group in one split only, reproducible for a seed.

    The largest groups are assigned first, each to the split where sizes and class counts come nearest to the shares, as
    in stratified group k-fold.

    Args:
        labels: integers (n,) to balance; None balances sizes alone.
        sample_groups: the name of each sample's group, (n,).
        share_by_split: fraction of each split but training.
        seed: of the order in which groups of equal size are assigned.

    Raises:
        InputError: fewer groups than splits.
    """
    group_names, group_indices = np.unique(sample_groups, return_inverse=True)
    splits = [Split.TRAIN, *share_by_split]
    if len(group_names) < len(splits):
        groups_text = ", ".join(map(str, group_names[:MAX_LISTED]))
        raise InputError(
            f"{plural(len(group_names), 'group')} ({groups_text}) cannot be kept apart in "
            f"{len(splits)} splits ({', '.join(splits)}); a group must stay within one split"
        )
    class_counts = _count_by_class(labels, group_indices, len(group_names))
    target_counts = np.array([1 - sum(share_by_split.values()), *share_by_split.values()])[:, None] * class_counts.sum(
        axis=0
    )
    split_of_group = _assign_groups(
        class_counts, target_counts, np.random.RandomState(seed).permutation(len(group_names))
    )
    sample_order = np.random.RandomState(seed).permutation(len(sample_groups))
    return {
        split: sample_order[split_of_group[group_indices[sample_order]] == split_index]
        for split_index, split in enumerate(splits)
    }


def _count_by_class(labels: Array | None, group_indices: Array, group_count: int) -> Array:
    """Sample counts per group and class, (groups, classes)."""
    class_indices = (
        np.zeros(len(group_indices), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    )
    class_counts = np.zeros((group_count, int(class_indices.max()) + 1))
    np.add.at(class_counts, (group_indices, class_indices), 1)
    return class_counts


def _assign_groups(class_counts: Array, target_counts: Array, shuffled_groups: Array) -> Array:
    """The index of each group's split, (groups,)."""
    group_order = sorted(shuffled_groups, key=lambda group: -class_counts[group].sum())
    class_totals = np.maximum(target_counts.sum(axis=0), 1)
    assigned_counts, split_of_group = np.zeros_like(target_counts), np.full(len(class_counts), -1)
    for groups_left, group in zip(range(len(group_order), 0, -1), group_order, strict=True):
        empty_splits = [split for split in range(len(target_counts)) if split not in split_of_group]
        allowed_splits = empty_splits if len(empty_splits) >= groups_left else list(range(len(target_counts)))
        deviation_growths = [
            _deviation_growth(assigned_counts, class_counts[group], target_counts, class_totals, split)
            for split in allowed_splits
        ]
        split_of_group[group] = allowed_splits[int(np.argmin(deviation_growths))]
        assigned_counts[split_of_group[group]] += class_counts[group]
    return split_of_group


def _deviation_growth(
    assigned_counts: Array, group_counts: Array, target_counts: Array, class_totals: Array, split: int
) -> float:
    """How much adding the group increases the split's squared deviation from its target."""
    miss_before = (assigned_counts[split] - target_counts[split]) / class_totals
    miss_after = (assigned_counts[split] + group_counts - target_counts[split]) / class_totals
    return float(np.square(miss_after).sum() - np.square(miss_before).sum())


def check_disjoint(name: str, groups_by_split: Mapping[Split, Array]) -> None:
    """Check that no group is in two splits.

    Raises:
        InputError: one is.
    """
    split_by_group: dict[str, Split] = {}
    for split, split_groups in groups_by_split.items():
        for group in np.unique(split_groups).astype(str):
            if split_by_group.setdefault(group, split) is not split:
                raise InputError(f"{name}: group '{group}' is in both {split_by_group[group]} and {split}")


def describe_groups(name: str, groups_by_split: Mapping[Split, Array]) -> str:
    """A note with the number of groups in each split."""
    group_counts_text = ", ".join(
        f"{len(np.unique(split_groups))} in {split}" for split, split_groups in groups_by_split.items()
    )
    return f"{name}: split by group, no group on two sides: {group_counts_text}"
