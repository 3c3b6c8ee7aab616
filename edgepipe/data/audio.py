"""Folders of recordings: one subfolder per class, read with soundfile, resampled to one rate and length."""

import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from edgepipe.core.archives import check_expansion
from edgepipe.core.arrays import Array, sole_array
from edgepipe.core.errors import InputError, ListedError
from edgepipe.core.progress import count_steps
from edgepipe.core.units import plural
from edgepipe.data import class_folders, speech
from edgepipe.data.data_spec import SoundSpec, SpokenDigitsSpec
from edgepipe.data.raw_samples import RawDataset, RawSplit
from edgepipe.data.sound_features import SoundFeatures, import_librosa
from edgepipe.data.split_names import Split

AUDIO_ENDINGS = frozenset({".wav", ".flac", ".ogg", ".mp3"})
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz, of a recording


class _CorruptRecording(Exception):  # noqa: N818 - a reason, caught here
    """Why a recording cannot be used."""


@final
@dataclass
class _AudioReadReport:
    """What happened to recordings while reading."""

    corrupt_files: list[str] = field(default_factory=list)
    cropped_seconds: list[float] = field(default_factory=list)
    padded_seconds: list[float] = field(default_factory=list)
    count_by_low_rate: dict[int, int] = field(default_factory=dict)  # rate below the requested one, Hz -> recordings
    silent_count: int = 0


def build_features(spec: SoundSpec) -> SoundFeatures:
    """The features that `spec` asks for."""
    window_and_hop = round(spec.window * spec.rate), round(spec.hop * spec.rate)
    fmax = spec.fmax or spec.rate / 2
    return SoundFeatures(
        spec.features, spec.rate, *window_and_hop, spec.mels, spec.coefficients, spec.fmin, fmax, spec.floor
    )


def read(root: Path, spec: SoundSpec, noise_path: Path | None = None) -> RawDataset:
    """All recordings below `root` as features, labelled by the sorted names of the class folders.

    `noise` is the folder of `augment: noise`; it is not a class.

    Raises:
        InputError: no class folders, an empty one, a class that training does not have, or recordings that cannot be
            read (all are named) unless `skip_corrupt` is set.
        ToolError: librosa is not installed.
    """
    import_librosa()
    folder_by_split = class_folders.find_split_folders(root)
    class_names = _find_class_names(folder_by_split[Split.TRAIN], noise_path)
    for folder in folder_by_split.values():
        class_folders.check_classes(folder, class_names, AUDIO_ENDINGS, "recording", noise_path)
    report, sound_features = _AudioReadReport(), build_features(spec)
    raw_splits = {
        split: _read_split(folder, class_names, spec, sound_features, report)
        for split, folder in folder_by_split.items()
    }
    if report.corrupt_files and not spec.skip_corrupt:
        raise ListedError(
            f"{root}: {plural(len(report.corrupt_files), 'recording')} cannot be used; replace them, or set "
            "`skip_corrupt: true`:",
            report.corrupt_files,
        )
    train_labels = sole_array(raw_splits[Split.TRAIN].y)
    class_folders.check_classes_remain(
        root, class_names, set() if train_labels is None else set(train_labels.tolist()), report.corrupt_files
    )
    notes = (
        f"{root}: features: {sound_features.describe()}",
        *_recording_notes(root, spec, report),
        *class_folders.unread_folder_notes(root),
    )
    if noise_path is not None and noise_path.resolve().parent in [
        folder.resolve() for folder in folder_by_split.values()
    ]:
        notes = (*notes, f"{root}: {noise_path.name} is the noise folder of `augment:`, not a class")
    return RawDataset(
        str(root),
        raw_splits,
        class_names,
        (*notes, *class_folders.unread_file_notes(root, AUDIO_ENDINGS)),
        sound_features,
    )


def _find_class_names(folder: Path, noise_path: Path | None) -> tuple[str, ...]:
    """The names of the class folders; the noise folder of `augment:` is not one."""
    if noise_path is not None and folder.resolve().is_relative_to(noise_path.resolve()):
        raise InputError(f"augment: noise: {noise_path} holds the recordings that it should be mixed into")
    return class_folders.find_class_names(folder, "recording", noise_path)


def _read_split(
    folder: Path, class_names: tuple[str, ...], spec: SoundSpec, sound_features: SoundFeatures, report: _AudioReadReport
) -> RawSplit:
    waves: list[Array] = []
    labels: list[int] = []
    group_names: list[str] = []
    for path, label in class_folders.iterate_labelled_files(folder, class_names, AUDIO_ENDINGS):
        try:
            wave = _read_wave(path, spec, report)
            group_names += [_group_name(path, spec.group_from)] if spec.group_from is not None else []
        except _CorruptRecording as reason:
            report.corrupt_files.append(f"{path} ({reason})")
            continue
        waves.append(wave)
        labels.append(label)
    if not waves:
        return RawSplit(np.empty((0, 1), np.float32), np.empty(0, np.int64))
    waveforms = np.stack(waves)
    kept_waveforms = waveforms if spec.augment is not None and spec.augment.waveform_change_names else None
    return RawSplit(
        sound_features.compute(waveforms),
        np.array(labels, np.int64),
        np.array(group_names) if group_names else None,
        kept_waveforms,
    )


def _group_name(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.name)
    if match is None:
        raise _CorruptRecording(f"its name does not match `group_from: {pattern}`")
    return str(match.group(1) if match.re.groups else match.group())


def _read_wave(path: Path, spec: SoundSpec, report: _AudioReadReport) -> Array:
    """A mono recording at the requested rate and length, float32 in [-1, 1]."""
    samples, rate = _decode(path)
    if rate < spec.rate:
        report.count_by_low_rate[rate] = report.count_by_low_rate.get(rate, 0) + 1
    report.silent_count += not samples.any()
    samples = _resample(samples, rate, spec.rate)
    target_length = round(spec.seconds * spec.rate)
    excess_samples = len(samples) - target_length
    if excess_samples > 0:
        report.cropped_seconds.append(excess_samples / spec.rate)
        return samples[excess_samples // 2 : excess_samples // 2 + target_length]
    if excess_samples < 0:
        report.padded_seconds.append(-excess_samples / spec.rate)
    return np.pad(samples, (-excess_samples // 2, -excess_samples - -excess_samples // 2))


def _resample(samples: Array, rate: int, target_rate: int) -> Array:
    if rate == target_rate:
        return samples
    return np.asarray(
        import_librosa().resample(samples, orig_sr=rate, target_sr=target_rate, res_type="soxr_hq"), np.float32
    )


def read_noises(root: Path, rate: int) -> tuple[Array, ...]:
    """Every recording below `root`, mono at `rate`, for `augment: noise`.

    Raises:
        InputError: no such folder, no recording in it, or some that are unreadable or silent; the message names all.
    """
    paths = class_folders.find_files(root, AUDIO_ENDINGS) if root.is_dir() else []
    if not paths:
        problem = "holds no recording" if root.is_dir() else "no such folder"
        raise InputError(f"augment: noise: {root}: {problem} (endings: {', '.join(sorted(AUDIO_ENDINGS))})")
    noise_waves, corrupt_files = [], []
    for path in count_steps(paths, f"reading {root}"):
        try:
            noise_waves.append(_read_noise(path, rate))
        except _CorruptRecording as reason:
            corrupt_files.append(f"{path} ({reason})")
    if corrupt_files:
        raise ListedError(
            f"augment: noise: {root}: {len(corrupt_files)} of {plural(len(paths), 'recording')} cannot be used:",
            corrupt_files,
        )
    return tuple(noise_waves)


def _read_noise(path: Path, rate: int) -> Array:
    samples = _resample(*_decode(path), rate)
    if not samples.any():
        raise _CorruptRecording("is silent")
    return samples


def _decode(path: Path) -> tuple[Array, int]:
    import soundfile

    try:
        _check_complete(path)
        _check_claims(path, soundfile.info(path))
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _CorruptRecording(error.error_string.strip(" .")) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _CorruptRecording(
            " ".join(str(error).replace(str(path), "").split()).strip(": '.") or "unreadable"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN is reported below
        mono = samples.mean(axis=1)
    if len(mono) == 0:
        raise _CorruptRecording("holds no samples")
    if not np.isfinite(mono).all():
        raise _CorruptRecording(f"holds {plural(int((~np.isfinite(mono)).sum()), 'NaN or infinite sample')}")
    return mono, int(rate)


def _check_claims(path: Path, info: Any) -> None:
    """Check what a header claims, before so much memory is taken."""
    if not MIN_RATE <= info.samplerate <= MAX_RATE:
        raise _CorruptRecording(f"claims {info.samplerate:,} samples a second; {MIN_RATE:,} to {MAX_RATE:,} are read")
    try:
        check_expansion("holds", path.stat().st_size, info.frames * info.channels * np.dtype(np.float32).itemsize)
    except InputError as error:
        raise _CorruptRecording(str(error)) from None


def _check_complete(path: Path) -> None:
    """Compare the size with the RIFF header: libsndfile reads a truncated file without an error."""
    with path.open("rb") as stream:
        header = stream.read(8)
    declared_size, actual_size = int.from_bytes(header[4:], "little") + 8, path.stat().st_size
    # A stream of unknown length declares the largest number.
    if header[:4] == b"RIFF" and actual_size < declared_size < 2**32 - 2:
        raise _CorruptRecording(f"ends after {actual_size} of {declared_size} bytes")


def _recording_notes(root: Path, spec: SoundSpec, report: _AudioReadReport) -> tuple[str, ...]:
    notes = list(class_folders.skipped_file_notes(root, report.corrupt_files, "recording"))
    for change_text, durations in (
        ("cropped equally at both ends", report.cropped_seconds),
        ("padded with silence", report.padded_seconds),
    ):
        if durations:
            count_text = plural(len(durations), "recording")
            notes.append(f"{root}: {count_text} {change_text} to {spec.seconds:g} s, by up to {max(durations):.3g} s")
    if report.silent_count:
        notes.append(f"{root}: {plural(report.silent_count, 'recording')} with nothing but silence")
    for rate, number in sorted(report.count_by_low_rate.items()):
        count_text = plural(number, "recording")
        notes.append(f"{root}: {count_text} at {rate} Hz (asked for {spec.rate}) with nothing above {rate // 2} Hz")
    return tuple(notes)


def read_spoken_digits(spec: SpokenDigitsSpec) -> RawDataset:
    """The ten digits in synthetic voices, grouped by voice.

    Raises:
        ToolError: espeak-ng or librosa is not installed.
    """
    voice_count = spec.spoken_digits or speech.DEFAULT_VOICE_COUNT
    raw_dataset = read(
        speech.get_recordings_folder(voice_count), spec.model_copy(update={"group_from": r"^(.+)_\d+\.wav$"})
    )
    raw_train, name = raw_dataset.raw_splits[Split.TRAIN], "spoken digits (synthetic)"
    labels = np.array([speech.DIGITS.index(digit) for digit in raw_dataset.class_names])[sole_array(raw_train.y)]
    origin_note = (
        f"synthetic speech: espeak-ng {speech.espeak_version()}, {len(speech.list_voices(voice_count))} voices"
    )
    notes = (origin_note, *(note.replace(raw_dataset.name, name) for note in raw_dataset.notes))
    return RawDataset(
        name, {Split.TRAIN: replace(raw_train, y=labels)}, speech.DIGITS, notes, raw_dataset.sound_features
    )
