"""The three splits: how they are drawn, and which stage may read which.

Training fits on the training split and selects on validation; only the `validate` stage reads the test split, once. The
draw depends on the seed, the number of samples and the labels alone, not on which splits are requested.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import EdgepipeError, ExitCode, InputError
from edgepipe.core.units import plural
from edgepipe.data.augmentation_options import Augment
from edgepipe.data.waveforms import Waves
from edgepipe.tflite.metadata import Preprocessing


class Split(StrEnum):
    """What a sample is used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


FITTING_SPLITS = frozenset({Split.TRAIN, Split.VALIDATION})  # available to every stage before `validate`


class WithheldError(EdgepipeError):
    """A stage read a split that it did not request: a bug in the stage, not in the input."""

    exit_code = ExitCode.BUG


@final
@dataclass(frozen=True)
class SplitData:
    """Samples x, float32 (n, ...) or one such array per named input; labels y (n, ...), or None if unlabelled."""

    x: Arrays
    y: Array | None

    def __len__(self) -> int:
        return count_samples(self.x)


@final
@dataclass(frozen=True)
class Splits:
    """The requested splits, and the metadata of all.

    `counts` has the size of every split, including withheld ones; `class_names` are in the order of their labels;
    `notes` are for the report (skipped files, missing labels).
    """

    data_by_split: Mapping[Split, SplitData]
    counts: Mapping[Split, int]
    class_count: int | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    augment: Augment | None = None  # random augmentation while training
    waves: Waves | None = None  # waveforms of the training samples, if `augment` changes them
    preprocessing: Preprocessing | None = None  # what a device must repeat before inference

    @property
    def train(self) -> SplitData:
        """The samples that training fits."""
        return self._data_of(Split.TRAIN)

    @property
    def validation(self) -> SplitData:
        """The samples for model selection: early stopping, thresholds, choices."""
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
        raise WithheldError(f"the {split} split was not requested; available: {available_splits}")


def draw_splits(
    labels: Array | None, size: int, shares: Mapping[Split, float], seed: int, names: Sequence[str] = ()
) -> dict[Split, Array]:
    """Sample indices of each split, disjoint and shuffled, reproducible for a seed.

    Args:
        labels: integers (n,): each class gives its share, rounded, at least one sample, to each split; None draws
            without regard to classes.
        size: number of samples.
        shares: fraction of each split but training, which gets the rest.
        seed: of the draw.
        names: of the classes, for messages; empty if they have none.

    Returns:
        Indices into 0..size-1 by split.

    Raises:
        InputError: a class, or all samples together, are too few for one sample in each split.
    """
    # RandomState, not Generator: NumPy guarantees its stream on every platform and version.
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
        raise InputError(f"{plural(size, 'sample')}: too few to put one into each of: {split_names}")
    class_title = f"'{names[label]}'" if names else str(label)
    label_hint = "" if names else " if these integers are not classes"
    raise InputError(
        f"class {class_title} has {plural(size, 'sample')}, too few to put one into each of: {split_names}; "
        f"add samples, leave the class out, or set `stratify: false`{label_hint}"
    )


def draw_representative(train: SplitData, number: int, seed: int) -> Arrays:
    """`number` random training samples without replacement, for calibration; all of them if there are fewer.

    Raises:
        InputError: zero samples.
    """
    if number < 1 or len(train) == 0:
        raise InputError(
            f"zero representative samples (asked for {number} of {len(train)}): int8 conversion calibrates its ranges "
            "on them; set `representative: 200`"
        )
    indices = np.random.RandomState(seed).permutation(len(train))[:number]
    return take_samples(train.x, indices)


def check_labels(y: Array | None, class_count: int | None = None, source: str = "the data") -> tuple[str, ...]:
    """Check `y` for single-label classification: integers 0..class_count-1, shape (n,).

    Args:
        y: the labels of one split.
        class_count: outputs of the model, if known.
        source: what messages call the data.

    Returns:
        Warnings to show: classes within the range that have no sample.

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
    count = "1 class" if len(missing_labels) == 1 else f"{len(missing_labels)} classes"
    return (f"{source} has no sample of {count}: {', '.join(map(str, missing_labels[:20]))}",)


def _check_range(present_labels: Array, class_count: int | None, source: str) -> None:
    if present_labels[0] < 0:
        raise InputError(f"{source} has the negative label {present_labels[0]}; labels are integers from 0")
    if class_count is not None and present_labels[-1] >= class_count:
        raise InputError(
            f"{source} has the label {present_labels[-1]}, but the model has {plural(class_count, 'output')} "
            f"(labels 0..{class_count - 1})"
        )
    if len(present_labels) == 1:
        raise InputError(f"{source} has one class only (label {present_labels[0]}); classification needs at least two")
