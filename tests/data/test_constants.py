"""The constants stored with a model suffice to reproduce every sample from sensor data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy import fft

from edgepipe.data.data_spec import AudioSpec, CsvSpec, DataSpec, FunctionSpec, ImagesSpec, NpzSpec
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import Split

RANDOM = np.random.RandomState(0)


def load_constants(spec: DataSpec, base: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The JSON stored in the model file, and the training samples."""
    splits = load(spec, base, 1, frozenset(Split))
    assert splits.preprocessing is not None
    return json.loads(splits.preprocessing.to_json()), np.asarray(splits.train.x)


def sound(wave: np.ndarray, constants: dict[str, Any]) -> np.ndarray:
    """Features in float64 from the constants alone."""
    s = constants["sound"]
    excess = len(wave) - s["samples"]
    wave = wave[excess // 2 :][: s["samples"]] if excess > 0 else np.pad(wave, (-excess // 2, -excess - -excess // 2))
    assert s["window_function"] == "periodic Hann"
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(s["window"]) / s["window"])
    window = np.pad(hann, ((s["fft"] - s["window"]) // 2, -(-(s["fft"] - s["window"]) // 2)))
    starts = range(0, len(wave) - s["fft"] + 1, s["hop"])
    power = np.abs(np.fft.rfft([wave[at : at + s["fft"]] * window for at in starts])) ** 2
    assert s["mel_scale"] == "2595 log10(1 + f / 700)"
    mel = [2595 * np.log10(1 + f / 700) for f in (s["fmin"], s["fmax"])]
    edges = 700 * (10 ** (np.linspace(*mel, s["mels"] + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(s["fft"], 1 / s["rate"])
    assert s["mel_shape"] == "triangles in Hz of peak 1"
    weights = np.maximum(0, np.minimum((bins - edges[:-2, None]) / np.diff(edges)[:-1, None],
                                       (edges[2:, None] - bins) / np.diff(edges)[1:, None]))  # fmt: skip
    bands = np.log(power @ weights.T + s["floor"])
    if s.get("coefficients") is not None:
        assert s["dct"] == "II, orthonormal"
        bands = fft.dct(bands, type=2, norm="ortho")[:, : s["coefficients"]]
    if "standardize" in constants:
        assert constants["standardize"]["axis"] == "bands"
        bands = (bands - constants["standardize"]["mean"]) / constants["standardize"]["deviation"]
    return bands


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"features": "mfcc", "standardize": True},
        {"standardize": True, "mels": 21, "window": "25 ms", "hop": "11 ms", "fmax": 3000.0, "floor": 1e-3},
    ],
)
def test_sound(options: dict[str, Any], tmp_path: Path) -> None:
    waves = [RANDOM.uniform(-0.5, 0.5, size).astype("float32") for size in (8000, 8001, 5001, 9003, 8000, 8000)]
    for number, wave in enumerate(waves):
        (tmp_path / "a" / str(number // 3)).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "a" / str(number // 3) / f"{number}.wav", wave, 8000, subtype="FLOAT")
    constants, x = load_constants(AudioSpec.model_validate({"audio": "a", "rate": 8000, **options}), tmp_path)
    assert constants["classes"] == ["0", "1"]
    expected_features = [sound(wave, constants) for wave in waves]
    for sample in x:
        assert min(np.abs(sample[..., 0] - features).max() for features in expected_features) < 2e-4


def test_windows(tmp_path: Path) -> None:
    rows = RANDOM.normal(5, 3, (200, 2)).round(3)
    lines = [f"{number},{a},{b},{'up' if number < 100 else 'down'}" for number, (a, b) in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(["time,b,a,label", *lines]))
    spec = CsvSpec(csv="t.csv", label="label", ignore=("time",), window=10, step=5, standardize=True)
    constants, x = load_constants(spec, tmp_path)
    assert constants["windows"] == {"channels": ["b", "a"], "rows": 10, "step": 5}
    assert constants["classes"] == ["down", "up"]
    assert constants["standardize"]["axis"] == "channels"
    unscaled_windows = x * constants["standardize"]["deviation"] + constants["standardize"]["mean"]
    windows = [rows[at : at + 10] for start in (0, 100) for at in range(start, start + 91, 5)]
    for window in unscaled_windows:
        assert min(np.abs(window - window_rows).max() for window_rows in windows) < 1e-4


@pytest.mark.parametrize(("rescale", "given_range"), [("unit", [0, 1]), ("signed", [-1, 1]), ("none", [0, 255])])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images(rescale: str, given_range: list[float], channels: int, mode: str, tmp_path: Path) -> None:
    pictures = RANDOM.randint(0, 256, (8, 6, 5, 3)).astype("uint8")
    for number, picture in enumerate(pictures):
        (tmp_path / "p" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "p" / "ab"[number % 2] / f"{number}.png")
    constants, x = load_constants(
        ImagesSpec.model_validate({"images": "p", "channels": channels, "rescale": rescale}), tmp_path
    )
    pixels = {"stored": [0, 255], "given": given_range, "shape": [6, 5, channels], "mode": mode}
    assert constants == {"schema": "edgepipe.preprocessing/1", "pixels": pixels, "classes": ["a", "b"]}
    stored_pixels = [np.asarray(Image.fromarray(picture).convert(mode)).reshape(6, 5, channels) for picture in pictures]
    low, high = constants["pixels"]["given"]
    for sample in x:
        assert min(np.abs(sample - (p / 255 * (high - low) + low)).max() for p in stored_pixels) < 1e-4
    resized_constants, _ = load_constants(ImagesSpec.model_validate({"images": "p", "size": (4, 4)}), tmp_path)
    assert resized_constants["pixels"]["resize"] == "bilinear, antialiased (Pillow)"
    assert resized_constants["pixels"]["shape"] == [4, 4, 3]


def test_unknown_preprocessing_is_omitted(tmp_path: Path) -> None:
    splits = load(FunctionSpec(function="edgepipe.data:digits"), tmp_path, 1, frozenset(Split))
    assert splits.preprocessing is not None
    assert not splits.preprocessing.has_steps
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 4), "uint16"), y=np.arange(20) % 2)
    constants, _ = load_constants(NpzSpec(npz="a.npz", rescale="signed"), tmp_path)
    assert constants["pixels"] == {"stored": [0, 65535], "given": [-1, 1], "shape": [4]}
