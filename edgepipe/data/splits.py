"""The three splits, kept apart: who is drawn into which, and who may read which.

Training fits, validation decides, the test split is read once, by the `validate` stage. The draw depends on the seed,
the number of samples and the labels alone; it does not depend on which splits are wanted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import EdgepipeError, ExitCode, InputError
from edgepipe.data.augmentation_options import Augment
from edgepipe.data.waveforms import Waves
from edgepipe.tflite.metadata import Preprocessing


class Split(StrEnum):
    """What a sample is for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


FITTING_SPLITS = frozenset({Split.TRAIN, Split.VALIDATION})  # what every stage before `validate` is given


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
        return count_samples(self.x)


@final
@dataclass(frozen=True)
class Splits:
    """The splits that were asked for, and what is known of all of them.

    `counts` has the size of every split, also of a withheld one; `class_names` are the subfolders of an image folder
    in the order of their labels; `notes` are sentences that a report must show (skipped files, missing labels).
    """

    data_by_split: Mapping[Split, SplitData]
    counts: Mapping[Split, int]
    class_count: int | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    augment: Augment | None = None  # what training stages do to training samples
    waves: Waves | None = None  # of the training samples, if `augment` changes sound
    preprocessing: Preprocessing | None = None  # what was done to samples, for a device to repeat

    @property
    def train(self) -> SplitData:
        """The samples that training fits."""
        return self._data_of(Split.TRAIN)

    @property
    def validation(self) -> SplitData:
        """The samples that decide: early stopping, thresholds, choices."""
        return self._data_of(Split.VALIDATION)

    @property
    def test(self) -> SplitData:
        """The samples that only the `validate` stage reads."""
        return self._data_of(Split.TEST)

    def _data_of(self, split: Split) -> SplitData:
        if split in self.data_by_split:
            return self.data_by_split[split]
        if split is Split.TEST:
            raise WithheldError("the test split is withheld here: only the stage `validate` may read it")
        available_splits = ", ".join(self.data_by_split) or "none"
        raise WithheldError(f"the {split} split was not asked for; given: {available_splits}")


def draw_splits(
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
    strata = [np.arange(size)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    indices_by_split: dict[Split, list[Array]] = {split: [] for split in Split}
    for stratum in strata:
        _check_size(len(stratum), None if labels is None else int(labels[stratum[0]]), shares, names)
        remaining_indices = random.permutation(stratum)
        for split, share in shares.items():
            number = max(1, round(len(stratum) * share))
            indices_by_split[split].append(remaining_indices[:number])
            remaining_indices = remaining_indices[number:]
        indices_by_split[Split.TRAIN].append(remaining_indices)
    return {
        split: random.permutation(np.concatenate(index_arrays))
        for split, index_arrays in indices_by_split.items()
        if index_arrays
    }


def _check_size(size: int, label: int | None, shares: Mapping[Split, float], names: Sequence[str]) -> None:
    drawn_count = sum(max(1, round(size * share)) for share in shares.values())
    if drawn_count < size:
        return
    split_names = ", ".join([Split.TRAIN, *shares])
    if label is None:
        raise InputError(f"{size} samples are too few to put one into each of: {split_names}")
    class_title = f"'{names[label]}'" if names else str(label)
    label_hint = "" if names else " if these integers are no classes"
    raise InputError(
        f"class {class_title} has {size} samples, too few to put one into each of: {split_names}; "
        f"add samples, leave the class out, or set `stratify: false`{label_hint}"
    )


def draw_representative(train: SplitData, number: int, seed: int) -> Arrays:
    """`number` random training samples, without repetition, for calibration; all of them if there are fewer.

    Raises:
        InputError: zero samples.
    """
    if number < 1 or len(train) == 0:
        raise InputError(
            f"zero representative samples (asked for {number} of {len(train)}): an int8 conversion takes its ranges "
            "from them; set `representative: 200`"
        )
    indices = np.random.RandomState(seed).permutation(len(train))[:number]
    return take_samples(train.x, indices)


def check_labels(y: Array | None, class_count: int | None = None, source: str = "the data") -> tuple[str, ...]:
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
        raise InputError(f"{source} has no labels; classification needs one integer per sample")
    if y.dtype.kind not in "iu":
        raise InputError(
            f"the labels of {source} are {y.dtype} (the first is {y.flat[0]}); classification needs integers from 0: "
            "convert them, or choose another task"
        )
    if y.ndim != 1:
        raise InputError(
            f"the labels of {source} have shape {y.shape}; classification with one label needs ({len(y)},)"
        )
    present_labels = np.unique(y)
    _check_range(present_labels, class_count, source)
    missing_labels = sorted(set(range(class_count or int(present_labels[-1]) + 1)) - set(present_labels.tolist()))
    if not missing_labels:
        return ()
    return (f"{source} has no sample of {len(missing_labels)} classes: {', '.join(map(str, missing_labels[:20]))}",)


def _check_range(present_labels: Array, class_count: int | None, source: str) -> None:
    if present_labels[0] < 0:
        raise InputError(f"{source} has the negative label {present_labels[0]}; labels are integers from 0")
    if class_count is not None and present_labels[-1] >= class_count:
        raise InputError(
            f"{source} has the label {present_labels[-1]}, but the model has {class_count} outputs (labels 0..{class_count - 1})"
        )
    if len(present_labels) == 1:
        raise InputError(f"{source} has one class only (label {present_labels[0]}); classification needs at least two")
