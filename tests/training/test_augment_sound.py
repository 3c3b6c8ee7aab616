"""Augmented waveforms against audiomentations, spectra and levels; the model's input is recomputed from them."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

from edgepipe.core import config
from edgepipe.core.errors import InputError
from edgepipe.data.augmentation_options import Augment, Noise
from edgepipe.data.data_spec import AudioSpec, parse
from edgepipe.data.dataset_identity import compute_identity
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import Split
from edgepipe.data.splits import DatasetSplits
from edgepipe.training import waveform_augmentation
from edgepipe.training.augmentation import build_augmenter

WAVES = (np.random.RandomState(0).randn(40, 4000) * 0.1).astype("float32")
RATE = 16_000


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_shift_fills_with_silence() -> None:
    got = waveform_augmentation.shift_waveforms(WAVES, 300, rng())
    moves = rng().integers(-300, 301, (40, 1))[:, 0]
    assert moves.min() < 0 < moves.max()
    for shifted_wave, wave, by in zip(got, WAVES, moves, strict=True):
        expected_wave = np.pad(wave, (max(by, 0), max(-by, 0)))[max(-by, 0) :][:4000]
        np.testing.assert_array_equal(shifted_wave, expected_wave)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # invalid escapes in the source of audiomentations
def test_gain_equals_audiomentations() -> None:
    from audiomentations import Gain

    got = waveform_augmentation.change_volume(WAVES, (-6, 3), rng())
    decibel = rng().uniform(-6, 3, (40, 1))[:, 0]
    theirs = Gain(p=1.0)
    for louder, wave, by in zip(got, WAVES, decibel, strict=True):
        theirs.parameters = {"amplitude_ratio": 10 ** (by / 20)}
        np.testing.assert_allclose(louder, theirs.apply(wave, RATE), rtol=1e-6)
    assert 20 * np.log10(got.std(axis=1) / WAVES.std(axis=1)) == pytest.approx(decibel, abs=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # audioread imports modules removed in Python 3.13
def test_noise_of_a_folder_equals_audiomentations(tmp_path: Path) -> None:
    from audiomentations import AddBackgroundNoise

    recording = np.random.RandomState(5).uniform(-0.5, 0.5, 4000).astype("float32")
    soundfile.write(tmp_path / "n.wav", recording, RATE, subtype="FLOAT")
    got = waveform_augmentation.add_noise(WAVES[:1], Noise(snr=(7, 7), folder="n"), [recording], RATE, rng())
    theirs = AddBackgroundNoise(str(tmp_path), p=1.0)
    theirs.parameters = {"snr_db": 7, "noise_file_path": str(tmp_path / "n.wav"), "offset": 0.0, "duration": 0.25}
    np.testing.assert_allclose(got[0], theirs.apply(WAVES[0], RATE), atol=1e-6)


@pytest.mark.parametrize(("color", "slope"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_slope_of_synthetic_noise(color: str, slope: float) -> None:
    noise = np.concatenate([waveform_augmentation.colored_noise(color, RATE, RATE, rng(seed)) for seed in range(30)])
    frequencies, power = signal.welch(noise, RATE, nperseg=2048)
    in_band = (frequencies > 100) & (frequencies < 7000)
    fitted_slope = np.polyfit(np.log2(frequencies[in_band]), 10 * np.log10(power[in_band]), 1)[0]
    assert fitted_slope == pytest.approx(slope, abs=0.1)


def test_noise_has_the_requested_ratio_and_spares_silence() -> None:
    x = np.concatenate([WAVES, np.zeros((1, 4000), "float32")])
    options = Noise(snr=(3, 20), colors=("white", "brown"), folder="n")
    added_noise = waveform_augmentation.add_noise(x, options, [WAVES[0] * 9], RATE, rng())[:-1] - WAVES
    ratios = 20 * np.log10(WAVES.std(axis=1) / waveform_augmentation.loudness(added_noise)[:, 0])
    assert ratios.min() >= 2.9
    assert ratios.max() <= 20.1
    assert np.ptp(ratios) > 10
    is_from_folder = [
        np.abs(np.corrcoef(noise, WAVES[0])[0, 1]) > 0.99 for noise in added_noise
    ]  # the folder's recording, scaled
    assert 0.15 < np.mean(is_from_folder) < 0.6
    assert not waveform_augmentation.add_noise(x, options, [WAVES[0]], RATE, rng())[-1].any()


def test_a_short_recording_repeats_and_a_long_one_starts_anywhere() -> None:
    ramp = np.arange(10.0)
    np.testing.assert_array_equal(waveform_augmentation.random_stretch([ramp], 25, rng()), np.arange(25) % 10)
    starts = {int(waveform_augmentation.random_stretch([ramp], 4, rng(seed))[0]) for seed in range(80)}
    assert starts == set(range(7))


def write_recordings(root: Path) -> Path:
    for label, pitch in (("high", 900), ("low", 200)):
        (root / "a" / label).mkdir(parents=True)
        for number in range(9):
            wave = (0.1 + number / 20) * np.sin(2 * np.pi * (pitch + number) * np.arange(8000) / 8000)
            soundfile.write(root / "a" / label / f"{number}.wav", wave, 8000)
    (root / "noise" / "street").mkdir(parents=True)
    soundfile.write(root / "noise" / "street" / "n.flac", np.random.RandomState(0).randn(30000) * 0.1, 16000)
    return root


def audio_spec(**options: Any) -> AudioSpec:
    return AudioSpec.model_validate({"audio": "a", "rate": 8000, "mels": 20, **options})


def augment(splits: DatasetSplits, chosen: Any, seed: int = 3) -> np.ndarray:
    assert splits.augment_options is not None
    augmenter = build_augmenter(splits.augment_options, splits.train.x.shape[1:], 2, None, splits.waveforms)  # type: ignore[union-attr]
    got, _ = augmenter(chosen, splits.train.x[chosen], splits.train.y[chosen], rng(seed))  # type: ignore[index]
    return np.asarray(got)


def test_no_change_gives_the_same_features(tmp_path: Path) -> None:
    options = audio_spec(standardize=True, features="mfcc", augment={"gain": (0.0, 0.0)})
    splits = load(options, write_recordings(tmp_path), 1, frozenset(Split))
    chosen = np.array([3, 0, 7])
    np.testing.assert_allclose(augment(splits, chosen), splits.train.x[chosen], atol=1e-5)  # type: ignore[index]
    np.testing.assert_allclose(splits.train.x.mean(axis=(0, 1)), 0, atol=1e-4)  # type: ignore[union-attr]
    np.testing.assert_allclose(splits.train.x.std(axis=(0, 1)), 1, atol=1e-3)  # type: ignore[union-attr]


def test_gain_shifts_each_band_and_other_splits_stay_clean(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    clean = load(audio_spec(floor=1e-12), root, 1, frozenset(Split))
    noisy = load(audio_spec(floor=1e-12, augment={"gain": (-6.0, -6.0)}), root, 1, frozenset(Split))
    for split in Split:
        np.testing.assert_array_equal(clean.data_by_split[split].x, noisy.data_by_split[split].x)
    chosen = np.arange(5)
    difference = augment(noisy, chosen) - noisy.train.x[chosen]  # type: ignore[index]
    np.testing.assert_allclose(np.median(difference), -6 / 10 * np.log(10), atol=0.01)
    assert clean.waveforms is None


ALL_CHANGES: dict[str, Any] = {
    "shift": "100 ms",
    "gain": (-6.0, 6.0),
    "noise": {"snr": (5.0, 20.0), "colors": ("white", "pink"), "folder": "noise"},
    "spec_augment": {"time": 4},
    "mixup": 0.2,
}


@pytest.mark.slow
def test_all_changes_depend_on_samples_and_generator_only(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    np.random.seed(1)
    state_before = np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    splits = load(audio_spec(augment=ALL_CHANGES), root, 1, frozenset({Split.TRAIN}))
    got = augment(splits, np.arange(6))
    assert got.shape == splits.train.x[:6].shape  # type: ignore[index]
    assert np.isfinite(got).all()
    assert np.abs(augment(splits, np.arange(6), seed=4) - got).max() > 0.1
    assert np.array_equal(state_before, np.random.get_state()[1])  # type: ignore[index]
    code = (
        "import sys, hashlib, numpy as np; from pathlib import Path; "
        "from tests.training.test_augment_sound import *; "
        "s = load(audio_spec(augment=ALL_CHANGES), Path(sys.argv[1]), 1, frozenset({Split.TRAIN})); "
        "print(hashlib.sha256(augment(s, np.arange(6)).tobytes()).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == hashlib.sha256(got.tobytes()).hexdigest()


def test_waveforms_are_clipped(tmp_path: Path) -> None:
    splits = load(
        audio_spec(features="none", augment={"gain": (20.0, 20.0)}), write_recordings(tmp_path), 1, frozenset(Split)
    )
    got = augment(splits, np.arange(8))
    assert got.shape == (8, 8000, 1)
    assert np.abs(got).max() == 1.0


def test_noise_files_are_part_of_the_identity(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    options = audio_spec(augment=ALL_CHANGES)
    first_id = compute_identity(options, root)
    (root / "noise").rename(root / "sounds")
    moved_spec = audio_spec(augment={**ALL_CHANGES, "noise": {**ALL_CHANGES["noise"], "folder": "sounds"}})
    assert compute_identity(moved_spec, root) == first_id
    soundfile.write(root / "sounds" / "more.wav", np.ones(100) / 2, 8000)
    assert compute_identity(moved_spec, root) != first_id
    assert compute_identity(audio_spec(augment={"noise": {}}), root)["noise"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{npz: a.npz, augment: {gain: [0, 1]}}", "1:30: data.augment.gain: gain changes waveforms, and `npz` gives"),
        ("{audio: a, augment: {noise: {folder: nowhere}}}", "1:44: data.augment.noise.folder: no such folder: "),
        ("{audio: a, augment: {shift: 2 s}}", "a shift of 2 s leaves nothing of 1 s"),
        ("{audio: a, augment: {shift: 2}}", "data.augment.shift: "),
        ("{audio: a, augment: {gain: 3}}", "data.augment.gain: "),
        ("{audio: a, augment: {gain: [3, -3]}}", "a range [min, max] must rise; found [3, -3]"),
        ("{audio: a, augment: {noise: {snr: [1, 1000]}}}", "data.augment.noise.snr"),
        ("{audio: a, augment: {noise: {colors: [blue]}}}", "data.augment.noise.colors"),
    ],
)
def test_malformed(text: str, message: str, tmp_path: Path) -> None:
    np.savez(write_recordings(tmp_path) / "a.npz", x=np.ones(3))
    document = config.parse(f"data: {text}\n", "p.yaml")
    assert parse(document, ("data",), document.content["data"], tmp_path) is None
    assert message in str(document.problems[0])


def test_unusable_noise_files_are_reported(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    (root / "noise" / "text.wav").write_text("no sound")
    soundfile.write(root / "noise" / "still.wav", np.zeros(100), 8000)
    with pytest.raises(InputError, match="2 of 3 recordings cannot be used") as error_info:
        load(audio_spec(augment=ALL_CHANGES), root, 1, frozenset(Split))
    assert "text.wav (Format not recognised" in str(error_info.value)
    assert "still.wav (is silent)" in str(error_info.value)
    (root / "empty").mkdir()
    with pytest.raises(InputError, match=r"augment: noise: .*empty: holds no recording \(endings: .flac"):
        load(audio_spec(augment={"noise": {"folder": "empty"}}), root, 1, frozenset(Split))


def test_samples_without_waveforms_are_refused() -> None:
    with pytest.raises(InputError, match=r"gain changes waveforms, and samples of shape \(8, 8, 1\) have none"):
        build_augmenter(Augment(gain=(0, 1)), (8, 8, 1), None)
