"""Folders of recordings: one subfolder for each class, read with soundfile, brought to one rate and length."""

import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data import class_folders, speech
from edgepipe.data.data_spec import SoundSpec, SpokenDigitsSpec
from edgepipe.data.raw_samples import Raw, RawPart
from edgepipe.data.sound_features import Features, library
from edgepipe.data.splits import Split

ENDINGS = frozenset({".wav", ".flac", ".ogg", ".mp3"})


class _Corrupt(Exception):  # noqa: N818 - a reason, caught here
    """Why a recording cannot be used."""


@final
@dataclass
class _Told:
    """What happened to recordings on the way."""

    corrupt: list[str] = field(default_factory=list)
    cropped: list[float] = field(default_factory=list)  # seconds
    padded: list[float] = field(default_factory=list)
    slower: dict[int, int] = field(default_factory=dict)  # rate below what is asked -> how many
    silent: int = 0


def features(spec: SoundSpec) -> Features:
    """What `spec` asks to be computed."""
    samples = round(spec.window * spec.rate), round(spec.hop * spec.rate)
    fmax = spec.fmax or spec.rate / 2
    return Features(spec.features, spec.rate, *samples, spec.mels, spec.coefficients, spec.fmin, fmax, spec.floor)


def read(root: Path, spec: SoundSpec, noise: Path | None = None) -> Raw:
    """All recordings below `root` as features, labelled by the sorted names of the class folders; `noise` is none.

    Raises:
        InputError: no class folders, an empty one, a class that training does not have, or recordings that cannot be
            read (all are named) unless `skip_corrupt` is set.
        ToolError: librosa is not installed.
    """
    library()
    split_folders = class_folders.split_folders(root)
    names = _classes(split_folders[Split.TRAIN], noise)
    for folder in split_folders.values():
        class_folders.check_classes(folder, names, ENDINGS, "recordings", noise)
    told, wanted = _Told(), features(spec)
    parts = {split: _part(folder, names, spec, wanted, told) for split, folder in split_folders.items()}
    if told.corrupt and not spec.skip_corrupt:
        listed = "\n".join(f"  {entry}" for entry in told.corrupt)
        raise InputError(
            f"{root}: {len(told.corrupt)} recordings cannot be used; replace them, or set `skip_corrupt: true`:\n"
            f"{listed}"
        )
    labels = parts[Split.TRAIN].y
    class_folders.check_left(root, names, set() if labels is None else set(labels.tolist()), told.corrupt)
    notes = (f"{root}: features: {wanted.told()}", *_notes(root, spec, told), *class_folders.beside(root))
    if noise is not None and noise.resolve().parent in [folder.resolve() for folder in split_folders.values()]:
        notes = (*notes, f"{root}: {noise.name} is where `augment:` takes noise from, and no class")
    return Raw(str(root), parts, names, (*notes, *class_folders.others(root, ENDINGS, "recordings")), wanted)


def _classes(folder: Path, noise: Path | None) -> tuple[str, ...]:
    """The class folders; one that `augment:` takes its noise from is none."""
    if noise is not None and folder.resolve().is_relative_to(noise.resolve()):
        raise InputError(f"augment: noise: {noise} holds the recordings that it should be mixed into")
    return class_folders.class_names(folder, "recordings", noise)


def _part(folder: Path, names: tuple[str, ...], spec: SoundSpec, wanted: Features, told: _Told) -> RawPart:
    waves: list[Array] = []
    labels: list[int] = []
    groups: list[str] = []
    for path, label in class_folders.labelled(folder, names, ENDINGS):
        try:
            wave = _wave(path, spec, told)
            groups += [_group(path, spec.group_from)] if spec.group_from is not None else []
        except _Corrupt as reason:
            told.corrupt.append(f"{path} ({reason})")
            continue
        waves.append(wave)
        labels.append(label)
    if not waves:
        return RawPart(np.empty((0, 1), np.float32), np.empty(0, np.int64))
    stacked = np.stack(waves)
    kept = stacked if spec.augment is not None and spec.augment.sound else None
    return RawPart(wanted.of(stacked), np.array(labels, np.int64), np.array(groups) if groups else None, kept)


def _group(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.name)
    if match is None:
        raise _Corrupt(f"its name does not match `group_from: {pattern}`")
    return str(match.group(1) if match.re.groups else match.group())


def _wave(path: Path, spec: SoundSpec, told: _Told) -> Array:
    """One channel at the rate and of the length that are asked for, float32 in [-1, 1]."""
    samples, rate = _decoded(path)
    if rate < spec.rate:
        told.slower[rate] = told.slower.get(rate, 0) + 1
    told.silent += not samples.any()
    samples = _resampled(samples, rate, spec.rate)
    length = round(spec.seconds * spec.rate)
    over = len(samples) - length
    if over > 0:
        told.cropped.append(over / spec.rate)
        return samples[over // 2 : over // 2 + length]
    if over < 0:
        told.padded.append(-over / spec.rate)
    return np.pad(samples, (-over // 2, -over - -over // 2))


def _resampled(samples: Array, rate: int, wanted: int) -> Array:
    if rate == wanted:
        return samples
    return np.asarray(library().resample(samples, orig_sr=rate, target_sr=wanted, res_type="soxr_hq"), np.float32)


def noises(root: Path, rate: int) -> tuple[Array, ...]:
    """Every recording below `root`, one channel at `rate`, for `augment: noise`.

    Raises:
        InputError: no such folder, none in it, or some that cannot be read or are silent; all of these are named.
    """
    paths = class_folders.files(root, ENDINGS) if root.is_dir() else []
    if not paths:
        found = "holds no recording" if root.is_dir() else "no such folder"
        raise InputError(f"augment: noise: {root}: {found} (endings: {', '.join(sorted(ENDINGS))})")
    found_noises, corrupt = [], []
    for path in paths:
        try:
            found_noises.append(_noise(path, rate))
        except _Corrupt as reason:
            corrupt.append(f"{path} ({reason})")
    if corrupt:
        listed = "\n".join(f"  {entry}" for entry in corrupt)
        raise InputError(f"augment: noise: {root}: {len(corrupt)} of {len(paths)} recordings are no use:\n{listed}")
    return tuple(found_noises)


def _noise(path: Path, rate: int) -> Array:
    samples = _resampled(*_decoded(path), rate)
    if not samples.any():
        raise _Corrupt("is silent")
    return samples


def _decoded(path: Path) -> tuple[Array, int]:
    import soundfile

    try:
        _check_whole(path)
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _Corrupt(error.error_string.strip(" .")) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _Corrupt(" ".join(str(error).replace(str(path), "").split()).strip(": '.") or "unreadable") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of NaN is told below
        mono = samples.mean(axis=1)
    if len(mono) == 0:
        raise _Corrupt("holds no samples")
    if not np.isfinite(mono).all():
        raise _Corrupt(f"{int((~np.isfinite(mono)).sum())} samples are NaN or infinite")
    return mono, int(rate)


def _check_whole(path: Path) -> None:
    """A RIFF file says its length in its head; libsndfile reads what is there without a word."""
    with path.open("rb") as stream:
        head = stream.read(8)
    declared, found = int.from_bytes(head[4:], "little") + 8, path.stat().st_size
    if head[:4] == b"RIFF" and found < declared < 2**32 - 2:  # a stream of unknown length says the largest number
        raise _Corrupt(f"ends after {found} of {declared} bytes")


def _notes(root: Path, spec: SoundSpec, told: _Told) -> tuple[str, ...]:
    notes = list(class_folders.skipped(root, told.corrupt, "recordings"))
    for what, times in (("cropped, both ends alike,", told.cropped), ("padded with silence", told.padded)):
        if times:
            notes.append(f"{root}: {len(times)} recordings {what} to {spec.seconds:g} s, by up to {max(times):.3g} s")
    if told.silent:
        notes.append(f"{root}: {told.silent} recordings are silent throughout")
    for rate, number in sorted(told.slower.items()):
        notes.append(
            f"{root}: {number} recordings at {rate} Hz (asked for {spec.rate}) hold nothing above {rate // 2} Hz"
        )
    return tuple(notes)


def spoken(spec: SpokenDigitsSpec) -> Raw:
    """The ten digits in synthetic voices, grouped by voice.

    Raises:
        ToolError: espeak-ng or librosa is not installed.
    """
    number = spec.spoken_digits or speech.VOICES
    raw = read(speech.folder(number), spec.model_copy(update={"group_from": r"^(.+)_\d+\.wav$"}))
    part, name = raw.parts[Split.TRAIN], "spoken digits (synthetic)"
    values = np.array([speech.DIGITS.index(digit) for digit in raw.class_names])[part.y]
    origin = f"synthetic speech: espeak-ng {speech.version()}, {len(speech.voices(number))} voices"
    notes = (origin, *(note.replace(raw.name, name) for note in raw.notes))
    return Raw(name, {Split.TRAIN: replace(part, y=values)}, speech.DIGITS, notes, raw.features)
