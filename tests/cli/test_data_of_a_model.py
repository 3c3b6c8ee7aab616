"""`--data FOLDER`: `convert`, `sensitivity` and `init` read the same files and folders, as the model expects them."""

import wave
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from PIL import Image

from edgepipe.core import config
from edgepipe.data.source_guess import guess_source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, recordings and tables, and models for them."""
    import keras

    monkeypatch.chdir(tmp_path)
    random = np.random.RandomState(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "sounds" / label).mkdir(parents=True)
        for number in range(30):
            pixels = random.randint(0, 256, (9, 9, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
        with wave.open(str(tmp_path / "sounds" / label / "a.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(32000))
    (tmp_path / "tables").mkdir()
    rows = "\n".join(f"{time};{time % 7},5;{time % 3};{'sit' if time < 20 else 'walk'}" for time in range(40))
    for name in "abcdef":
        (tmp_path / "tables" / f"{name}.csv").write_text(f"time;ax;ay;activity\n{rows}\n")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255, name="to_unit")(inputs))
    keras.Model(inputs, keras.layers.Dense(2, "softmax")(x)).save("photo.keras")
    for name, shape in (("table", (10, 2)), ("sound", (16000, 1))):
        keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]).save(
            f"{name}.keras"
        )
    return tmp_path


@pytest.mark.slow
def test_convert_reads_a_folder_as_the_model_expects_it(folder: Path, command: Command) -> None:
    converted = command("convert", "photo.keras", "--data", "photos", "-o", "out.tflite")
    assert converted.code == 0, converted.err
    assert (
        "read as {images: photos, size: [8, 8], channels: 1, rescale: none} (rescale: 0 to 255: the model begins"
        in (" ".join(converted.out.split()))
    )
    windows = command("convert", "table.keras", "--data", "tables", "-o", "out.tflite")
    assert windows.code == 0, windows.err
    assert "read as {csv: tables, label: activity, window: 10}" in windows.out
    ranked = command("sensitivity", "photo.keras", "--data", "photos", "--samples", "8")
    assert ranked.code == 0, ranked.err


INIT = [
    ("photo.keras", "photos", {"images": "photos", "size": [8, 8], "channels": 1, "rescale": "none"}),
    ("table.keras", "tables", {"csv": "tables", "label": "activity", "window": 10}),
    ("table.keras", "tables/a.csv", {"csv": "tables/a.csv", "label": "activity", "window": 10}),
    ("sound.keras", "sounds", {"audio": "sounds", "features": "none", "seconds": 1.0}),
]


@pytest.mark.parametrize(("model", "data", "options"), INIT, ids=[case[1] for case in INIT])
def test_init(folder: Path, command: Command, model: str, data: str, options: dict[str, object]) -> None:
    written = command("init", model, "--data", data, "-o", "p.yaml")
    assert written.code == 0, written.err
    assert config.read(folder / "p.yaml").content["data"] == {**options, "representative": 200}
    assert command("check", "p.yaml").code == 0


def test_what_a_folder_holds(folder: Path) -> None:
    kinds = {name: guess_source(folder / name) for name in ("photos", "sounds", "tables", "tables/a.csv")}
    assert kinds == {"photos": "images", "sounds": "audio", "tables": "csv", "tables/a.csv": "csv"}
