"""From a `DataSpec` to the splits a stage may see: read, check, draw, select, scale."""

from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Array, Arrays, map_arrays, sole_array, take_samples
from edgepipe.core.errors import InputError
from edgepipe.data import audio, function_source, group_splits, idx, images, npz, tables
from edgepipe.data.data_spec import (
    DEFAULT_FRACTION,
    AudioSpec,
    CsvSpec,
    DataSpec,
    FashionSpec,
    FunctionSpec,
    ImagesSpec,
    NpzSpec,
    ParquetSpec,
    Rescale,
    SoundSpec,
    SpokenDigitsSpec,
    TableSpec,
    noise_folder,
    source_path,
)
from edgepipe.data.preprocessing_constants import build_preprocessing
from edgepipe.data.raw_samples import RawDataset, RawSplit, check_dataset, count_split_samples, to_raw_split
from edgepipe.data.split_names import Split
from edgepipe.data.splits import DatasetSplits, SplitData, draw_splits
from edgepipe.data.standardization import Scaling
from edgepipe.data.waveforms import TrainingWaveforms

IMBALANCE_RATIO = 3  # a class with more than this many times the samples of another is reported
MAX_CLASS_LABELS = 1000  # integer labels with more values than this are not classes


def load(spec: DataSpec, base_folder: Path, seed: int, requested_splits: frozenset[Split]) -> DatasetSplits:
    """Load a dataset and split it.

    A split that the source provides is kept; the others are drawn from its training samples. Samples are float32,
    labels int64 or float32; labels of shape (n, 1) become (n,).

    Args:
        spec: the parsed `data:` key.
        base_folder: the folder that relative file names start from.
        seed: of the random draw.
        requested_splits: the splits to return; sizes and notes cover all of them.

    Raises:
        InputError: anything wrong with the data.
    """
    raw_dataset = check_dataset(read(spec, base_folder))
    indices_by_split = _draw_indices(spec, raw_dataset, seed)
    data_by_split = {
        split: _rescale_split(_select_split(raw_dataset, indices_by_split, split), spec.rescale, raw_dataset.name)
        for split in Split
        if split in requested_splits
    }
    notes = (
        *raw_dataset.notes,
        *_group_notes(raw_dataset, indices_by_split),
        *_imbalance_notes(raw_dataset, indices_by_split),
    )
    scaling = _fit_scaling(spec, raw_dataset, indices_by_split)
    if scaling is not None:
        data_by_split = {
            split: SplitData(scaling.apply(split_data.x), split_data.y) for split, split_data in data_by_split.items()
        }
        notes = (*notes, scaling.describe(raw_dataset.name))
    count_by_split = {
        split: len(indices_by_split[split])
        if split in indices_by_split
        else count_split_samples(raw_dataset.raw_splits[split])
        for split in Split
    }
    training_waveforms = (
        _training_waveforms(spec, base_folder, raw_dataset, indices_by_split, scaling)
        if Split.TRAIN in requested_splits
        else None
    )
    preprocessing = build_preprocessing(spec, raw_dataset, scaling)
    return DatasetSplits(
        data_by_split,
        count_by_split,
        _count_classes(raw_dataset),
        raw_dataset.class_names,
        notes,
        spec.augment,
        training_waveforms,
        preprocessing,
    )


def _fit_scaling(spec: DataSpec, raw_dataset: RawDataset, indices_by_split: dict[Split, Array]) -> Scaling | None:
    """Scaling fitted to the training samples, if `standardize` is set: per channel; for spectrograms per band."""
    if not isinstance(spec, (TableSpec, SoundSpec)) or not spec.standardize:
        return None
    is_banded = isinstance(spec, SoundSpec) and spec.features != "none"
    return Scaling.fit(
        take_samples(raw_dataset.raw_splits[Split.TRAIN].x, indices_by_split[Split.TRAIN]), axis=-2 if is_banded else -1
    )


def _training_waveforms(
    spec: DataSpec,
    base_folder: Path,
    raw_dataset: RawDataset,
    indices_by_split: dict[Split, Array],
    scaling: Scaling | None,
) -> TrainingWaveforms | None:
    """The waveforms of the training samples, if augmentation changes them."""
    raw_train = raw_dataset.raw_splits[Split.TRAIN]
    if raw_train.waveforms is None or raw_dataset.sound_features is None:
        return None
    noise_path = noise_folder(spec, base_folder)
    noises = () if noise_path is None else audio.read_noises(noise_path, raw_dataset.sound_features.rate)
    return TrainingWaveforms(
        raw_train.waveforms[indices_by_split[Split.TRAIN]], raw_dataset.sound_features, noises, scaling
    )


def _draw_indices(spec: DataSpec, raw_dataset: RawDataset, seed: int) -> dict[Split, Array]:
    raw_train = raw_dataset.raw_splits[Split.TRAIN]
    share_by_split = _split_shares(spec, raw_dataset)
    try:
        if raw_train.groups is None or not share_by_split:
            return draw_splits(
                _stratification_labels(spec, raw_train),
                count_split_samples(raw_train),
                share_by_split,
                seed,
                raw_dataset.class_names,
            )
        return group_splits.draw_group_splits(
            _stratification_labels(spec, raw_train), raw_train.groups, share_by_split, seed
        )
    except InputError as error:
        raise InputError(f"{raw_dataset.name}: {error}") from None


def _group_notes(raw_dataset: RawDataset, indices_by_split: dict[Split, Array]) -> tuple[str, ...]:
    """A note on the groups per split; raises if splits of the source share a group."""
    train_groups = raw_dataset.raw_splits[Split.TRAIN].groups
    if train_groups is None:
        return ()
    drawn_groups = {split: train_groups[indices] for split, indices in indices_by_split.items()}
    source_groups = {
        split: raw_split.groups
        for split, raw_split in raw_dataset.raw_splits.items()
        if raw_split.groups is not None and split not in indices_by_split
    }
    group_splits.check_disjoint(raw_dataset.name, {**drawn_groups, **source_groups})
    return (group_splits.describe_groups(raw_dataset.name, {**drawn_groups, **source_groups}),)


def _imbalance_notes(raw_dataset: RawDataset, indices_by_split: dict[Split, Array]) -> tuple[str, ...]:
    """A note if one class has far more training samples than another."""
    y = sole_array(_flatten_labels(raw_dataset.raw_splits[Split.TRAIN].y))
    if y is None or y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0:
        return ()
    count_by_label = np.bincount(y[indices_by_split[Split.TRAIN]])
    present_labels = np.flatnonzero(count_by_label)
    common_label, rare_label = (
        present_labels[count_by_label[present_labels].argmax()],
        present_labels[count_by_label[present_labels].argmin()],
    )
    if (
        len(present_labels) > MAX_CLASS_LABELS
        or count_by_label[common_label] <= IMBALANCE_RATIO * count_by_label[rare_label]
    ):
        return ()
    class_titles = [
        raw_dataset.class_names[label] if raw_dataset.class_names else str(label)
        for label in (common_label, rare_label)
    ]
    return (
        f"{raw_dataset.name}: classes are out of balance in training: "
        f"'{class_titles[0]}' has {count_by_label[common_label]} samples, "
        f"'{class_titles[1]}' {count_by_label[rare_label]}; accuracy hides that: "
        "`metrics: [balanced_accuracy]` or f1_macro show it",
    )


def _select_split(raw_dataset: RawDataset, indices_by_split: dict[Split, Array], split: Split) -> RawSplit:
    if split not in indices_by_split:
        return raw_dataset.raw_splits[split]
    raw_train = raw_dataset.raw_splits[Split.TRAIN]
    indices = indices_by_split[split]
    return RawSplit(
        take_samples(raw_train.x, indices), None if raw_train.y is None else take_samples(raw_train.y, indices)
    )


def read(spec: DataSpec, base_folder: Path) -> RawDataset:
    """Everything in the source, unchecked, as stored."""
    if isinstance(spec, FunctionSpec):
        return function_source.read(spec, base_folder)
    if isinstance(spec, SpokenDigitsSpec):
        return audio.read_spoken_digits(spec)
    path = source_path(spec, base_folder)
    if isinstance(spec, NpzSpec):
        return npz.read(path, spec)
    if isinstance(spec, ImagesSpec):
        return images.read(path, spec)
    if isinstance(spec, (CsvSpec, ParquetSpec)):
        return tables.read(path, spec)
    if isinstance(spec, AudioSpec):
        return audio.read(path, spec, noise_folder(spec, base_folder))
    arrays_by_split = idx.read(path)
    name = "Fashion-MNIST" if isinstance(spec, FashionSpec) else str(path)
    return RawDataset(name, {Split(split): to_raw_split(name, pair) for split, pair in arrays_by_split.items()})


def _split_shares(spec: DataSpec, raw_dataset: RawDataset) -> dict[Split, float]:
    share_by_split = {Split.TEST: spec.test, Split.VALIDATION: spec.validation}
    for split, share in share_by_split.items():
        if share is not None and split in raw_dataset.raw_splits:
            raise InputError(f"{raw_dataset.name} has a {split} split of its own; remove `{split}: {share:g}`")
    return {
        split: DEFAULT_FRACTION if share is None else share
        for split, share in share_by_split.items()
        if split not in raw_dataset.raw_splits
    }


def _stratification_labels(spec: DataSpec, raw_train: RawSplit) -> Array | None:
    y = sole_array(_flatten_labels(raw_train.y))
    return y if spec.stratify and y is not None and y.ndim == 1 and y.dtype.kind in "biu" else None


def _flatten_labels(y: Arrays | None) -> Arrays | None:
    return None if y is None else map_arrays(lambda array: array[:, 0] if array.shape[1:] == (1,) else array, y)


def _rescale_split(raw_split: RawSplit, rescale_mode: Rescale, name: str) -> SplitData:
    y = _flatten_labels(raw_split.y)
    if y is not None:
        y = map_arrays(lambda array: array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False), y)
    return SplitData(_rescale_inputs(raw_split.x, rescale_mode, name), y)


def _rescale_inputs(x: Arrays, rescale_mode: Rescale, name: str) -> Arrays:
    return map_arrays(lambda array: _rescale_pixels(array, rescale_mode, name), x)


def _rescale_pixels(array: Array, rescale_mode: Rescale, name: str) -> Array:
    """`array` as float32; `unit` divides integers by the largest of their type, `signed` maps them to [-1, 1]."""
    pixels = array.astype(np.float32, copy=False)
    if rescale_mode == "none":
        return pixels
    if array.dtype.kind != "u":
        raise InputError(
            f"{name}: `rescale: {rescale_mode}` needs unsigned integers such as uint8, found {array.dtype}"
        )
    pixels /= np.float32(np.iinfo(array.dtype).max)
    if rescale_mode == "signed":
        pixels *= 2
        pixels -= 1
    return pixels


def _count_classes(raw_dataset: RawDataset) -> int | None:
    """Number of classes over the integer labels of all splits; None for other labels."""
    if raw_dataset.class_names:
        return len(raw_dataset.class_names)
    label_arrays = [sole_array(_flatten_labels(raw_split.y)) for raw_split in raw_dataset.raw_splits.values()]
    integer_label_arrays = [y for y in label_arrays if y is not None and y.ndim == 1 and y.dtype.kind in "biu"]
    if (
        not integer_label_arrays
        or len(integer_label_arrays) < len(label_arrays)
        or min(int(y.min()) for y in integer_label_arrays) < 0
    ):
        return None
    return max(int(y.max()) for y in integer_label_arrays) + 1
