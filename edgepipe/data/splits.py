"""The three splits, kept apart: who is drawn into which, and who may read which.

Training fits, validation decides, the test split is read once, by the `validate` stage. The draw depends on the seed,
the number of samples and the labels alone; it does not depend on which splits are wanted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count, take
from edgepipe.core.errors import EdgepipeError, ExitCode, InputError
from edgepipe.data.augmentation_options import Augment
from edgepipe.data.waveforms import Waves
from edgepipe.tflite.metadata import Preprocessing


class Split(StrEnum):
    """What a sample is for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


FITTING = frozenset({Split.TRAIN, Split.VALIDATION})  # what every stage before `validate` is given


class WithheldError(EdgepipeError):
    """A stage asked for a split that it is not given: a mistake in the stage, not in the input."""

    exit_code = ExitCode.BUG


@final
@dataclass(frozen=True)
class SplitData:
    """Samples x, float32 (n, ...) or one such array per named input; labels y (n, ...), or None if there are none."""

    x: Arrays
    y: Array | None

    def __len__(self) -> int:
        return count(self.x)


@final
@dataclass(frozen=True)
class Splits:
    """The splits that were asked for, and what is known of all of them.

    `counts` has the size of every split, also of a withheld one; `class_names` are the subfolders of an image folder
    in the order of their labels; `notes` are sentences that a report must show (skipped files, missing labels).
    """

    parts: Mapping[Split, SplitData]
    counts: Mapping[Split, int]
    classes: int | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    augment: Augment | None = None  # what training stages do to training samples
    waves: Waves | None = None  # of the training samples, if `augment` changes sound
    preprocessing: Preprocessing | None = None  # what was done to samples, for a device to repeat

    @property
    def train(self) -> SplitData:
        """The samples that training fits."""
        return self._part(Split.TRAIN)

    @property
    def validation(self) -> SplitData:
        """The samples that decide: early stopping, thresholds, choices."""
        return self._part(Split.VALIDATION)

    @property
    def test(self) -> SplitData:
        """The samples that only the `validate` stage reads."""
        return self._part(Split.TEST)

    def _part(self, split: Split) -> SplitData:
        if split in self.parts:
            return self.parts[split]
        if split is Split.TEST:
            raise WithheldError("the test split is withheld here: only the stage `validate` may read it")
        given = ", ".join(self.parts) or "none"
        raise WithheldError(f"the {split} split was not asked for; given: {given}")


def draw(
    labels: Array | None, size: int, shares: Mapping[Split, float], seed: int, names: Sequence[str] = ()
) -> dict[Split, Array]:
    """Indices of 0..size-1 for each split of `shares`, the rest for training: disjoint, shuffled, the same for a seed.

    With integer `labels` (n,) each class gives its share to each split, rounded, at least one sample. `names` of the
    classes, if they have any, are for messages.

    Raises:
        InputError: a class, or all samples together, are too few for one sample in each split.
    """
    # RandomState, not Generator: NumPy freezes its stream for good, on every platform.
    random = np.random.RandomState(seed)
    groups = [np.arange(size)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn: dict[Split, list[Array]] = {split: [] for split in Split}
    for group in groups:
        _check_size(len(group), None if labels is None else int(labels[group[0]]), shares, names)
        rest = random.permutation(group)
        for split, share in shares.items():
            number = max(1, round(len(group) * share))
            drawn[split].append(rest[:number])
            rest = rest[number:]
        drawn[Split.TRAIN].append(rest)
    return {split: random.permutation(np.concatenate(parts)) for split, parts in drawn.items() if parts}


def _check_size(size: int, label: int | None, shares: Mapping[Split, float], names: Sequence[str]) -> None:
    taken = sum(max(1, round(size * share)) for share in shares.values())
    if taken < size:
        return
    needed = ", ".join([Split.TRAIN, *shares])
    if label is None:
        raise InputError(f"{size} samples are too few to put one into each of: {needed}")
    shown = f"'{names[label]}'" if names else str(label)
    integers = "" if names else " if these integers are no classes"
    raise InputError(
        f"class {shown} has {size} samples, too few to put one into each of: {needed}; "
        f"add samples, leave the class out, or set `stratify: false`{integers}"
    )


def representative(train: SplitData, number: int, seed: int) -> Arrays:
    """`number` random training samples, without repetition, for calibration; all of them if there are fewer.

    Raises:
        InputError: zero samples.
    """
    if number < 1 or len(train) == 0:
        raise InputError(
            f"zero representative samples (asked for {number} of {len(train)}): an int8 conversion takes its ranges "
            "from them; set `representative: 200`"
        )
    chosen = np.random.RandomState(seed).permutation(len(train))[:number]
    return take(train.x, chosen)


def check_labels(y: Array | None, classes: int | None = None, where: str = "the data") -> tuple[str, ...]:
    """Hold `y` against what one-label classification needs: integers 0..classes-1, shape (n,).

    Args:
        y: the labels of one split.
        classes: outputs of the model, if known.
        where: what the message calls the data.

    Returns:
        Warnings to show: labels within the range that no sample has.

    Raises:
        InputError: no labels, not integers, negative, one class only, or a label beyond the model's outputs.
    """
    if y is None:
        raise InputError(f"{where} has no labels; classification needs one integer per sample")
    if y.dtype.kind not in "iu":
        raise InputError(
            f"the labels of {where} are {y.dtype} (the first is {y.flat[0]}); classification needs integers from 0: "
            "convert them, or choose another task"
        )
    if y.ndim != 1:
        raise InputError(f"the labels of {where} have shape {y.shape}; classification with one label needs ({len(y)},)")
    present = np.unique(y)
    _check_range(present, classes, where)
    missing = sorted(set(range(classes or int(present[-1]) + 1)) - set(present.tolist()))
    if not missing:
        return ()
    return (f"{where} has no sample of {len(missing)} classes: {', '.join(map(str, missing[:20]))}",)


def _check_range(present: Array, classes: int | None, where: str) -> None:
    if present[0] < 0:
        raise InputError(f"{where} has the negative label {present[0]}; labels are integers from 0")
    if classes is not None and present[-1] >= classes:
        raise InputError(
            f"{where} has the label {present[-1]}, but the model has {classes} outputs (labels 0..{classes - 1})"
        )
    if len(present) == 1:
        raise InputError(f"{where} has one class only (label {present[0]}); classification needs at least two")
