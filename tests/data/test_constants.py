"""The constants that travel with a model say enough to repeat every sample from what a sensor gives."""

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
from edgepipe.data.splits import Split

RANDOM = np.random.RandomState(0)


def known(spec: DataSpec, base: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The JSON that goes into the file, and the training samples."""
    splits = load(spec, base, 1, frozenset(Split))
    assert splits.preprocessing is not None
    return json.loads(splits.preprocessing.to_json()), np.asarray(splits.train.x)


def sound(wave: np.ndarray, told: dict[str, Any]) -> np.ndarray:
    """Features in float64 by nothing but the constants."""
    s = told["sound"]
    over = len(wave) - s["samples"]
    wave = wave[over // 2 :][: s["samples"]] if over > 0 else np.pad(wave, (-over // 2, -over - -over // 2))
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
    if "standardize" in told:
        assert told["standardize"]["axis"] == "bands"
        bands = (bands - told["standardize"]["mean"]) / told["standardize"]["deviation"]
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
    told, x = known(AudioSpec.model_validate({"audio": "a", "rate": 8000, **options}), tmp_path)
    assert told["classes"] == ["0", "1"]
    repeated = [sound(wave, told) for wave in waves]
    for sample in x:
        assert min(np.abs(sample[..., 0] - other).max() for other in repeated) < 2e-4


def test_windows(tmp_path: Path) -> None:
    rows = RANDOM.normal(5, 3, (200, 2)).round(3)
    lines = [f"{number},{a},{b},{'up' if number < 100 else 'down'}" for number, (a, b) in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(["time,b,a,label", *lines]))
    spec = CsvSpec(csv="t.csv", label="label", ignore=("time",), window=10, step=5, standardize=True)
    told, x = known(spec, tmp_path)
    assert told["windows"] == {"channels": ["b", "a"], "rows": 10, "step": 5}
    assert told["classes"] == ["down", "up"]
    assert told["standardize"]["axis"] == "channels"
    back = x * told["standardize"]["deviation"] + told["standardize"]["mean"]
    windows = [rows[at : at + 10] for start in (0, 100) for at in range(start, start + 91, 5)]
    for window in back:
        assert min(np.abs(window - other).max() for other in windows) < 1e-4


@pytest.mark.parametrize(("rescale", "given"), [("unit", [0, 1]), ("signed", [-1, 1]), ("none", [0, 255])])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images(rescale: str, given: list[float], channels: int, mode: str, tmp_path: Path) -> None:
    pictures = RANDOM.randint(0, 256, (8, 6, 5, 3)).astype("uint8")
    for number, picture in enumerate(pictures):
        (tmp_path / "p" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "p" / "ab"[number % 2] / f"{number}.png")
    told, x = known(ImagesSpec.model_validate({"images": "p", "channels": channels, "rescale": rescale}), tmp_path)
    pixels = {"stored": [0, 255], "given": given, "shape": [6, 5, channels], "mode": mode}
    assert told == {"schema": "edgepipe.preprocessing/1", "pixels": pixels, "classes": ["a", "b"]}
    stored = [np.asarray(Image.fromarray(picture).convert(mode)).reshape(6, 5, channels) for picture in pictures]
    low, high = told["pixels"]["given"]
    for sample in x:
        assert min(np.abs(sample - (p / 255 * (high - low) + low)).max() for p in stored) < 1e-4
    resized, _ = known(ImagesSpec.model_validate({"images": "p", "size": (4, 4)}), tmp_path)
    assert resized["pixels"]["resize"] == "bilinear, antialiased (Pillow)"
    assert resized["pixels"]["shape"] == [4, 4, 3]


def test_what_is_not_known_is_not_told(tmp_path: Path) -> None:
    splits = load(FunctionSpec(function="edgepipe.data:digits"), tmp_path, 1, frozenset(Split))
    assert splits.preprocessing is not None
    assert not splits.preprocessing.has_steps
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 4), "uint16"), y=np.arange(20) % 2)
    told, _ = known(NpzSpec(npz="a.npz", rescale="signed"), tmp_path)
    assert told["pixels"] == {"stored": [0, 65535], "given": [-1, 1], "shape": [4]}
