"""From a `DataSpec` to the splits a stage may see: read, check, draw, take, scale."""

from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Array, Arrays, each, take
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
    folder,
    noise_folder,
)
from edgepipe.data.preprocessing_constants import preprocessing
from edgepipe.data.raw_samples import Raw, RawPart, checked, part_of, size
from edgepipe.data.splits import Split, SplitData, Splits, draw
from edgepipe.data.standardization import Scaling
from edgepipe.data.waveforms import Waves

IMBALANCED = 3  # times as many samples of one class as of another are told
MANY_CLASSES = 1000  # integers of more values are no classes


def load(spec: DataSpec, base: Path, seed: int, wanted: frozenset[Split]) -> Splits:
    """The `wanted` splits of the dataset; files are relative to `base`.

    A split that the source has itself is kept as it is; the others are drawn by `seed` from its training samples.
    Samples are float32, labels int64 or float32; labels of shape (n, 1) become (n,).

    Raises:
        InputError: whatever is wrong with the data.
    """
    raw = checked(read(spec, base))
    drawn = _drawn(spec, raw, seed)
    parts = {split: _scaled(_part(raw, drawn, split), spec.rescale, raw.name) for split in Split if split in wanted}
    notes = (*raw.notes, *_grouped(raw, drawn), *_imbalance(raw, drawn))
    scaling = _scaling(spec, raw, drawn)
    if scaling is not None:
        parts = {split: SplitData(scaling.apply(part.x), part.y) for split, part in parts.items()}
        notes = (*notes, scaling.told(raw.name))
    counts = {split: len(drawn[split]) if split in drawn else size(raw.parts[split]) for split in Split}
    waves = _waves(spec, base, raw, drawn, scaling) if Split.TRAIN in wanted else None
    known = preprocessing(spec, raw, scaling)
    return Splits(parts, counts, _classes(raw), raw.class_names, notes, spec.augment, waves, known)


def _scaling(spec: DataSpec, raw: Raw, drawn: dict[Split, Array]) -> Scaling | None:
    """Of the training samples, if it is asked for: by channel, of spectrograms by band."""
    if not isinstance(spec, (TableSpec, SoundSpec)) or not spec.standardize:
        return None
    bands = isinstance(spec, SoundSpec) and spec.features != "none"
    return Scaling.of(take(raw.parts[Split.TRAIN].x, drawn[Split.TRAIN]), axis=-2 if bands else -1)


def _waves(spec: DataSpec, base: Path, raw: Raw, drawn: dict[Split, Array], scaling: Scaling | None) -> Waves | None:
    """The waveforms of the training samples, where training changes them."""
    train = raw.parts[Split.TRAIN]
    if train.waves is None or raw.features is None:
        return None
    place = noise_folder(spec, base)
    noises = () if place is None else audio.noises(place, raw.features.rate)
    return Waves(train.waves[drawn[Split.TRAIN]], raw.features, noises, scaling)


def _drawn(spec: DataSpec, raw: Raw, seed: int) -> dict[Split, Array]:
    train = raw.parts[Split.TRAIN]
    shares = _shares(spec, raw)
    try:
        if train.groups is None or not shares:
            return draw(_strata(spec, train), size(train), shares, seed, raw.class_names)
        return group_splits.draw_groups(_strata(spec, train), train.groups, shares, seed)
    except InputError as error:
        raise InputError(f"{raw.name}: {error}") from None


def _grouped(raw: Raw, drawn: dict[Split, Array]) -> tuple[str, ...]:
    """That groups were kept apart, as a note; checked where the source made the splits."""
    train = raw.parts[Split.TRAIN].groups
    if train is None:
        return ()
    found = {split: train[chosen] for split, chosen in drawn.items()}
    own = {split: part.groups for split, part in raw.parts.items() if part.groups is not None and split not in drawn}
    group_splits.check_apart(raw.name, {**found, **own})
    return (group_splits.told(raw.name, {**found, **own}),)


def _imbalance(raw: Raw, drawn: dict[Split, Array]) -> tuple[str, ...]:
    """A note where one class has far more training samples than another."""
    y = _flat(raw.parts[Split.TRAIN].y)
    if y is None or y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0:
        return ()
    counts = np.bincount(y[drawn[Split.TRAIN]])
    present = np.flatnonzero(counts)
    most, least = present[counts[present].argmax()], present[counts[present].argmin()]
    if len(present) > MANY_CLASSES or counts[most] <= IMBALANCED * counts[least]:
        return ()
    shown = [raw.class_names[label] if raw.class_names else str(label) for label in (most, least)]
    return (
        f"{raw.name}: classes are out of balance in training: '{shown[0]}' has {counts[most]} samples, '{shown[1]}' "
        f"{counts[least]}; accuracy hides that: `metrics: [balanced_accuracy]` or f1_macro show it",
    )


def _part(raw: Raw, drawn: dict[Split, Array], split: Split) -> RawPart:
    if split not in drawn:
        return raw.parts[split]
    train = raw.parts[Split.TRAIN]
    chosen = drawn[split]
    return RawPart(take(train.x, chosen), None if train.y is None else train.y[chosen])


def read(spec: DataSpec, base: Path) -> Raw:
    """Everything the source has, unchecked, as stored."""
    if isinstance(spec, FunctionSpec):
        return function_source.read(spec, base)
    if isinstance(spec, SpokenDigitsSpec):
        return audio.spoken(spec)
    place = folder(spec, base)
    if isinstance(spec, NpzSpec):
        return npz.read(place, spec)
    if isinstance(spec, ImagesSpec):
        return images.read(place, spec)
    if isinstance(spec, (CsvSpec, ParquetSpec)):
        return tables.read(place, spec)
    if isinstance(spec, AudioSpec):
        return audio.read(place, spec, noise_folder(spec, base))
    found = idx.read(place)
    name = "Fashion-MNIST" if isinstance(spec, FashionSpec) else str(place)
    return Raw(name, {Split(split): part_of(name, pair) for split, pair in found.items()})


def _shares(spec: DataSpec, raw: Raw) -> dict[Split, float]:
    asked = {Split.TEST: spec.test, Split.VALIDATION: spec.validation}
    for split, share in asked.items():
        if share is not None and split in raw.parts:
            raise InputError(f"{raw.name} has a {split} split of its own; remove `{split}: {share:g}`")
    return {
        split: DEFAULT_FRACTION if share is None else share for split, share in asked.items() if split not in raw.parts
    }


def _strata(spec: DataSpec, train: RawPart) -> Array | None:
    y = _flat(train.y)
    return y if spec.stratify and y is not None and y.ndim == 1 and y.dtype.kind in "biu" else None


def _flat(y: Array | None) -> Array | None:
    return y[:, 0] if y is not None and y.ndim == 2 and y.shape[1] == 1 else y


def _scaled(part: RawPart, rescale: Rescale, name: str) -> SplitData:
    y = _flat(part.y)
    if y is not None:
        y = y.astype(np.float32 if y.dtype.kind == "f" else np.int64, copy=False)
    return SplitData(_inputs(part.x, rescale, name), y)


def _inputs(x: Arrays, rescale: Rescale, name: str) -> Arrays:
    return each(lambda array: _pixels(array, rescale, name), x)


def _pixels(array: Array, rescale: Rescale, name: str) -> Array:
    """`array` as float32; `unit` divides integers by the largest of their type, `signed` maps them to [-1, 1]."""
    result = array.astype(np.float32, copy=False)
    if rescale == "none":
        return result
    if array.dtype.kind != "u":
        raise InputError(f"{name}: `rescale: {rescale}` needs unsigned integers such as uint8, found {array.dtype}")
    result /= np.float32(np.iinfo(array.dtype).max)
    if rescale == "signed":
        result *= 2
        result -= 1
    return result


def _classes(raw: Raw) -> int | None:
    """How many classes the integer labels of all splits make; None for other labels."""
    if raw.class_names:
        return len(raw.class_names)
    labels = [_flat(part.y) for part in raw.parts.values()]
    whole = [y for y in labels if y is not None and y.ndim == 1 and y.dtype.kind in "biu"]
    if not whole or len(whole) < len(labels) or min(int(y.min()) for y in whole) < 0:
        return None
    return max(int(y.max()) for y in whole) + 1
