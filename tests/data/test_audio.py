"""Recordings: features against two independent implementations, lengths and rates, every corrupt file reported."""

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import fft

from edgepipe.core import config
from edgepipe.core.errors import InputError
from edgepipe.data import speech
from edgepipe.data.audio import build_features, read
from edgepipe.data.data_spec import AudioSpec, SpokenDigitsSpec, parse
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import Split

RANDOM = np.random.RandomState(0)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"features": "mfcc"},
    {"rate": 8000, "window": "25 ms", "hop": "10 ms", "mels": 26, "fmin": 100.0, "fmax": 3800.0, "floor": 1e-3},
    {"rate": 16000, "window": "32 ms", "hop": "32 ms", "mels": 64, "features": "mfcc", "coefficients": 20},
]


def waves(rate: int) -> np.ndarray:
    """A chirp, a chord and noise, one second each."""
    time = np.arange(rate) / rate
    chirp = np.sin(2 * np.pi * (100 + 1500 * time) * time)
    chord = sum(np.sin(2 * np.pi * f * time) for f in (220, 440, 987)) / 4
    return np.stack([0.5 * chirp, chord, 0.1 * RANDOM.randn(rate)]).astype("float32")


def reference_features(x: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """Log-mel and MFCC in float64 from the definitions."""
    rate, window, hop = spec.rate, round(spec.window * spec.rate), round(spec.hop * spec.rate)
    size = 2 ** math.ceil(math.log2(window))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    offset = (size - window) // 2
    starts = range(0, x.shape[1] - size + 1, hop)
    frames = np.stack([x[:, s + offset : s + offset + window] * hann for s in starts], axis=1)
    power = np.abs(np.fft.rfft(frames, size)) ** 2
    mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(mel(spec.fmin), mel(spec.fmax or rate / 2), spec.mels + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / rate)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bands = np.log(power @ np.maximum(0, np.minimum(rising, falling)).T + spec.floor)
    return fft.dct(bands, type=2, norm="ortho")[..., : spec.coefficients] if spec.features == "mfcc" else bands


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_features_equal_an_independent_implementation(options: dict[str, Any]) -> None:
    spec = AudioSpec(audio="x", **options)
    x = waves(spec.rate)
    got = build_features(spec).compute(x)[..., 0]
    np.testing.assert_allclose(got, reference_features(x.astype(np.float64), spec), atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_features_equal_those_of_tensorflow(options: dict[str, Any]) -> None:
    import tensorflow as tf

    spec = AudioSpec.model_validate({"audio": "x", "window": "32 ms", **options})
    x = waves(spec.rate)
    length, hop = round(spec.window * spec.rate), round(spec.hop * spec.rate)
    power = tf.abs(tf.signal.stft(x, length, hop, length)) ** 2
    matrix = tf.signal.linear_to_mel_weight_matrix(spec.mels, length // 2 + 1, spec.rate, spec.fmin, spec.rate / 2)
    bands = tf.math.log(tf.matmul(power, matrix) + spec.floor)
    got = build_features(spec).compute(x)[..., 0]
    if spec.features == "mfcc":  # TensorFlow scales as HTK does: the first coefficient by sqrt(2) less than orthonormal
        theirs = tf.signal.mfccs_from_log_mel_spectrograms(bands)[..., : spec.coefficients].numpy()
        theirs[..., 0] /= math.sqrt(2)
    else:
        theirs = bands.numpy()
    np.testing.assert_allclose(got, theirs, atol=5e-2)  # tf.signal interpolates in mel, not in Hz: near, not equal
    assert np.abs(got - theirs).mean() < 5e-2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_digits_are_synthetic_and_split_by_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE_DIR", str(tmp_path))
    splits = load(SpokenDigitsSpec(spoken_digits=10), tmp_path, 1, frozenset(Split))
    assert splits.class_names == speech.DIGITS
    assert sum(splits.count_by_split.values()) == 10 * 10 * speech.TAKES_PER_DIGIT
    notes = " ".join(splits.notes)
    assert "synthetic speech: espeak-ng 1." in notes
    assert "no group on two sides: 6 in train, 2 in test, 2 in validation" in notes
    repeated_splits = load(SpokenDigitsSpec(spoken_digits=10), tmp_path, 1, frozenset(Split))
    np.testing.assert_array_equal(splits.train.x, repeated_splits.train.x)


def write_recordings(root: Path) -> Path:
    for label, pitch in (("high", 900), ("low", 200)):
        (root / "a" / label).mkdir(parents=True)
        for number in range(9):
            wave = 0.3 * np.sin(2 * np.pi * (pitch + number) * np.arange(16000) / 16000)
            soundfile.write(root / "a" / label / f"s{number // 3}_{number}.wav", wave, 16000)
    return root


def test_class_folders(tmp_path: Path) -> None:
    splits = load(AudioSpec(audio="a", group_from=r"^(s\d)"), write_recordings(tmp_path), 1, frozenset(Split))
    assert splits.class_names == ("high", "low")
    assert splits.train.x.shape[1:] == (49, 40, 1)  # type: ignore[union-attr]
    assert {split: len(split_data) for split, split_data in splits.data_by_split.items()} == dict.fromkeys(Split, 6)
    assert any("log_mel at 16000 Hz" in note and "ln(power + 1e-06)" in note for note in splits.notes)
    peak = splits.train.x[..., 0].mean(axis=1).argmax(axis=1)  # type: ignore[union-attr, index]
    assert (peak[splits.train.y == 0].min()) > peak[splits.train.y == 1].max()


def test_lengths_rates_and_channels(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    tone = lambda rate, seconds: np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate) * 0.5  # noqa: E731
    soundfile.write(root / "a" / "low" / "long.flac", tone(16000, 1.5), 16000)
    soundfile.write(root / "a" / "low" / "short.wav", np.stack([tone(48000, 0.5)] * 2, axis=1), 48000)
    soundfile.write(root / "a" / "low" / "slow.ogg", tone(8000, 1.0), 8000)
    raw = read(root / "a", AudioSpec(audio="a", features="none"))
    x, notes = raw.raw_splits[Split.TRAIN].x, " ".join(raw.notes)
    assert x.shape == (21, 16000, 1)  # type: ignore[union-attr]
    assert "1 recording cropped equally at both ends to 1 s, by up to 0.5 s" in notes
    assert "1 recording padded with silence to 1 s, by up to 0.5 s" in notes
    assert "1 recording at 8000 Hz (asked for 16000) with nothing above 4000 Hz" in notes
    short = x[-2, :, 0]  # type: ignore[index]
    assert np.abs(short[:3900]).max() < 0.02
    spectrum = np.abs(np.fft.rfft(short[4000:12000]))
    assert np.argmax(spectrum) * 2 == 440


CORRUPT: list[tuple[str, bytes, str]] = [
    ("text.wav", b"this is no sound at all, it only says so", "Format not recognised"),
    ("empty.wav", b"", ""),
    ("header.flac", b"fLaC\0\0\0", ""),
]


@pytest.mark.parametrize(("name", "content", "reason"), CORRUPT, ids=[case[0] for case in CORRUPT])
def test_a_corrupt_recording_is_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    (root / "a" / "high" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"1 recording cannot be used(.|\n)*{name} \((.|\n)*{reason}"):
        read(root / "a", AudioSpec(audio="a"))
    raw = read(root / "a", AudioSpec(audio="a", skip_corrupt=True))
    assert any("skipped 1 recording that" in note and name in note for note in raw.notes)


def test_truncated_silent_and_nan_recordings(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    wav_bytes = (root / "a" / "low" / "s0_0.wav").read_bytes()
    (root / "a" / "low" / "cut.wav").write_bytes(wav_bytes[:20000])
    soundfile.write(root / "a" / "low" / "nan.wav", np.array([0.0, np.nan, 1.0]), 16000, subtype="FLOAT")
    soundfile.write(root / "a" / "low" / "none.wav", np.zeros(0), 16000)
    with pytest.raises(InputError) as error_info:
        read(root / "a", AudioSpec(audio="a"))
    for text in (
        "cut.wav (ends after 20000 of 32044 bytes)",
        "nan.wav (holds 1 NaN or infinite sample)",
        "none.wav (holds no samples)",
    ):
        assert text in str(error_info.value)


def test_mel_bands_are_accepted_where_librosa_has_no_empty_ones() -> None:
    import librosa

    for mels in range(30, 120):  # warnings are errors here, and librosa warns of empty bands
        with warnings.catch_warnings(record=True) as librosa_warnings:
            warnings.simplefilter("always")
            librosa.filters.mel(sr=16000, n_fft=512, n_mels=mels, fmin=20, fmax=8000, htk=True, norm=None)
        try:
            AudioSpec(audio="a", mels=mels)
            is_accepted = True
        except ValueError:
            is_accepted = False
        assert is_accepted == (not librosa_warnings), mels


def test_noise_folder_is_not_a_class(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    (root / "a" / "_noise_").mkdir()
    shutil.copy(root / "a" / "low" / "s0_0.wav", root / "a" / "_noise_")
    augment = {"noise": {"folder": "a/_noise_"}}
    splits = load(AudioSpec.model_validate({"audio": "a", "augment": augment}), root, 1, frozenset(Split))
    assert splits.class_names == ("high", "low")
    assert any("_noise_ is the noise folder of `augment:`, not a class" in note for note in splits.notes)
    with pytest.raises(InputError, match="holds the recordings that it should be mixed into"):
        load(AudioSpec.model_validate({"audio": "a", "augment": {"noise": {"folder": "."}}}), root, 1, frozenset(Split))


def test_silence_is_reported(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    soundfile.write(root / "a" / "low" / "still.wav", np.zeros(16000), 16000)
    assert any("1 recording with nothing but silence" in note for note in read(root / "a", AudioSpec(audio="a")).notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{audio: nowhere}", "no such folder"),
        ("{audio: a, fmax: 9000}", "must rise and stay within half the rate, 8000"),
        ("{audio: a, features: mfcc, coefficients: 50}", "50 coefficients need as many mel bands"),
        ("{audio: a, window: 2 s}", "must be shorter than a recording"),
        ("{audio: a, window: 30 kg}", "window"),
        ("{audio: a, mels: 400}", "of 400 mel bands would be empty: they lie between the frequencies of an FFT of 512"),
        ("{audio: a, seconds: 0.031}", "a recording of 496 samples, windows of 480 in an FFT of 512"),
        ("{audio: a, hop: 1 us}", "every 0: an FFT must fit"),
        ("{audio: a, feature: mfcc}", "did you mean 'features'"),
    ],
)
def test_wrong_options(text: str, message: str, tmp_path: Path) -> None:
    document = config.parse(f"data: {text}\n", "p.yaml")
    assert parse(document, ("data",), document.content["data"], write_recordings(tmp_path)) is None
    assert message in str(document.problems[0])
