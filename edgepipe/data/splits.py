"""The three splits: how they are drawn, and which stage may read which.

Training fits on the training split and selects on validation; only the `validate` stage reads the test split, once. The
draw depends on the seed, the number of samples and the labels alone, not on which splits are requested.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import EdgepipeError, ExitCode, InputError
from edgepipe.core.units import plural
from edgepipe.data.augmentation_options import Augment
from edgepipe.data.split_names import Split
from edgepipe.data.waveforms import TrainingWaveforms
from edgepipe.tflite.metadata import Preprocessing


class WithheldSplitError(EdgepipeError):
    """A stage read a split that it did not request: a bug in the stage, not in the input."""

    exit_code = ExitCode.BUG


@final
@dataclass(frozen=True)
class SplitData:
    """Samples x, float32 (n, ...) or one such array per named input; labels y (n, ...), or one array per named output.

    `y` is None if the samples are unlabelled.
    """

    x: Arrays
    y: Arrays | None

    def __len__(self) -> int:
        return count_samples(self.x)


@final
@dataclass(frozen=True)
class DatasetSplits:
    """The requested splits, and the metadata of all.

    `counts` has the size of every split, including withheld ones; `class_names` are in the order of their labels;
    `notes` are for the report (skipped files, missing labels).
    """

    data_by_split: Mapping[Split, SplitData]
    count_by_split: Mapping[Split, int]
    class_count: int | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    augment_options: Augment | None = None  # random augmentation while training
    waveforms: TrainingWaveforms | None = None  # waveforms of the training samples, if `augment` changes them
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
            raise WithheldSplitError("the test split is withheld here: only the stage `validate` may read it")
        available_splits = ", ".join(self.data_by_split) or "none"
        raise WithheldSplitError(f"the {split} split was not requested; available: {available_splits}")


def draw_splits(
    labels: Array | None,
    sample_count: int,
    share_by_split: Mapping[Split, float],
    seed: int,
    class_names: Sequence[str] = (),
) -> dict[Split, Array]:
    """Sample indices of each split, disjoint and shuffled, reproducible for a seed.

    Args:
        labels: integers (n,): each class gives its share, rounded, at least one sample, to each split; None draws
            without regard to classes.
        sample_count: number of samples.
        share_by_split: fraction of each split but training, which gets the rest.
        seed: of the draw.
        class_names: of the classes, for messages; empty if they have none.

    Returns:
        Indices into 0..sample_count-1 by split.

    Raises:
        InputError: a class, or all samples together, are too few for one sample in each split.
    """
    # RandomState, not Generator: NumPy guarantees its stream on every platform and version.
    random_state = np.random.RandomState(seed)
    strata = (
        [np.arange(sample_count)]
        if labels is None
        else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    )
    indices_by_split: dict[Split, list[Array]] = {split: [] for split in Split}
    for stratum in strata:
        _check_stratum_size(
            len(stratum), None if labels is None else int(labels[stratum[0]]), share_by_split, class_names
        )
        remaining_indices = random_state.permutation(stratum)
        for split, share in share_by_split.items():
            drawn_count = max(1, round(len(stratum) * share))
            indices_by_split[split].append(remaining_indices[:drawn_count])
            remaining_indices = remaining_indices[drawn_count:]
        indices_by_split[Split.TRAIN].append(remaining_indices)
    return {
        split: random_state.permutation(np.concatenate(index_arrays))
        for split, index_arrays in indices_by_split.items()
        if index_arrays
    }


def _check_stratum_size(
    stratum_size: int, label: int | None, share_by_split: Mapping[Split, float], class_names: Sequence[str]
) -> None:
    drawn_count = sum(max(1, round(stratum_size * share)) for share in share_by_split.values())
    if drawn_count < stratum_size:
        return
    split_names = ", ".join([Split.TRAIN, *share_by_split])
    if label is None:
        raise InputError(f"{plural(stratum_size, 'sample')}: too few to put one into each of: {split_names}")
    class_title = f"'{class_names[label]}'" if class_names else str(label)
    label_hint = "" if class_names else " if these integers are not classes"
    raise InputError(
        f"class {class_title} has {plural(stratum_size, 'sample')}, too few to put one into each of: {split_names}; "
        f"add samples, leave the class out, or set `stratify: false`{label_hint}"
    )


def draw_representative(train: SplitData, sample_count: int, seed: int) -> Arrays:
    """`number` random training samples without replacement, for calibration; all of them if there are fewer.

    Raises:
        InputError: zero samples.
    """
    if sample_count < 1 or len(train) == 0:
        raise InputError(
            f"zero representative samples (asked for {sample_count} of {len(train)}): "
            "int8 conversion calibrates its ranges on them; set `representative: 200`"
        )
    indices = np.random.RandomState(seed).permutation(len(train))[:sample_count]
    return take_samples(train.x, indices)


def check_labels(y: Arrays | None, class_count: int | None = None, source_name: str = "the data") -> tuple[str, ...]:
    """Check `y` for single-label classification: integers 0..class_count-1, shape (n,).

    Args:
        y: the labels of one split.
        class_count: outputs of the model, if known.
        source_name: what messages call the data.

    Returns:
        Warnings to show: classes within the range that have no sample.

    Raises:
        InputError: no labels, not integers, negative, one class only, or a label beyond the model's outputs.
    """
    if y is None:
        raise InputError(f"{source_name} has no labels; classification needs one integer per sample")
    if isinstance(y, dict):
        raise InputError(
            f"the labels of {source_name} are given by output ({', '.join(y)}); classification takes one array, "
            "several outputs a custom task"
        )
    if y.dtype.kind not in "iu":
        raise InputError(
            f"the labels of {source_name} are {y.dtype} (the first is {y.flat[0]}); "
            "classification needs integers from 0: convert them, or choose another task"
        )
    if y.ndim != 1:
        raise InputError(
            f"the labels of {source_name} have shape {y.shape}; classification with one label needs ({len(y)},)"
        )
    present_labels = np.unique(y)
    _check_range(present_labels, class_count, source_name)
    missing_labels = sorted(set(range(class_count or int(present_labels[-1]) + 1)) - set(present_labels.tolist()))
    if not missing_labels:
        return ()
    count_text = "1 class" if len(missing_labels) == 1 else f"{len(missing_labels)} classes"
    return (f"{source_name} has no sample of {count_text}: {', '.join(map(str, missing_labels[:20]))}",)


def _check_range(present_labels: Array, class_count: int | None, source_name: str) -> None:
    if present_labels[0] < 0:
        raise InputError(f"{source_name} has the negative label {present_labels[0]}; labels are integers from 0")
    if class_count is not None and present_labels[-1] >= class_count:
        raise InputError(
            f"{source_name} has the label {present_labels[-1]}, but the model has {plural(class_count, 'output')} "
            f"(labels 0..{class_count - 1})"
        )
    if len(present_labels) == 1:
        raise InputError(
            f"{source_name} has one class only (label {present_labels[0]}); classification needs at least two"
        )
