"""`edgepipe sensitivity`: tables, JSON, chart, and what is refused."""

import json
from pathlib import Path
from typing import Any

import hard_models as hm
import keras
import numpy as np
import pytest
from commands import Command

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.models.model_files import save_keras


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as Keras file, float and int8 .tflite, with samples."""
    place = tmp_path_factory.mktemp("sensitivity")
    _, _, x, y = hm.data()
    save_keras(hm.depthwise(1), place / "m.keras")
    (place / "m.tflite").write_bytes(convert(hm.depthwise(1), "float32"))
    (place / "int8.tflite").write_bytes(convert(hm.depthwise(1), "int8", x[:20]))
    np.savez(place / "d.npz", x=x[:60], y=y[:60])
    np.savez(place / "unlabelled.npz", x=x[:60])
    np.savez(place / "short.npz", x=x[:60], y=y[:50])
    np.savez(place / "wrong.npz", x=x[:60, :4], y=y[:60])
    np.savez(place / "two.npz", x=x[:60], y=y[:60] % 2)
    return place


@pytest.mark.parametrize("model", ["m.keras", "m.tflite"])
def test_json_is_one_document(model: str, folder: Path, command: Command) -> None:
    done = command("sensitivity", folder / model, "--data", folder / "d.npz", "--json", "--samples", 30)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert found["schema"] == "edgepipe.sensitivity/1"
    assert [layer["alone"] for layer in found["layers"]] == sorted((x["alone"] for x in found["layers"]), reverse=True)
    assert {layer["layer"] for layer in found["layers"]} == {"c0", "d1", "p1", "scores"}
    assert found["quality"] == "accuracy"
    assert "30 samples" in found["how"]


def test_tables_and_chart(folder: Path, tmp_path: Path, command: Command) -> None:
    chart = tmp_path / "c.png"
    done = command("sensitivity", folder / "m.keras", "--data", folder / "unlabelled.npz", "--chart", chart)
    assert done.code == 0, done.err
    assert "layers by the error of the scores when only one is int8" in done.out
    assert "accuracy" not in done.out
    assert chart.read_bytes()[:4] == b"\x89PNG"


def test_labels_of_something_else_give_no_accuracy(folder: Path, command: Command) -> None:
    done = command("sensitivity", folder / "m.tflite", "--data", folder / "two.npz")
    assert done.code == 0, done.err
    assert "note: no accuracy: the labels have 2 classes, the model has 1 output of 10" in done.out


def test_a_tflite_needs_no_tensorflow(folder: Path, process: Command) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from edgepipe import api\n"
        f"api.sensitivity({str(folder / 'm.tflite')!r}, data={str(folder / 'd.npz')!r}, samples=5)\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


REFUSED = [
    (["int8.tflite", "--data", "d.npz"], "int8.tflite: is quantized already: "),
    (["no.keras", "--data", "d.npz"], "no.keras: no such file"),
    (["m.keras", "--data", "no.npz"], "no.npz: cannot be read"),
    (["m.keras", "--data", "short.npz"], "short.npz: 60 samples, but 'y' has the shape (50,)"),
    (
        ["m.keras", "--data", "wrong.npz"],
        "samples have the shape (4, 8, 1), input 'image' takes (8, 8, 1)",
    ),
    (["m.keras", "--data", "d.npz", "--chart", "c.gif"], "c.gif: charts end in .png, .svg, .pdf"),
    (["m.keras", "--data", "edgepipe.data:digit"], "edgepipe.data"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refused(
    words: list[str], message: str, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = command("sensitivity", *words)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_a_model_without_a_layer_to_quantize(tmp_path: Path, folder: Path, command: Command) -> None:
    inputs = keras.Input((8, 8, 1), name="image")
    save_keras(keras.Model(inputs, keras.layers.Flatten()(inputs)), tmp_path / "flat.keras")
    done = command("sensitivity", tmp_path / "flat.keras", "--data", folder / "unlabelled.npz", "--json")
    assert done.code == 0, done.err
    assert [layer["alone"] for layer in json.loads(done.out)["layers"]] == pytest.approx([0], abs=1e-3)
