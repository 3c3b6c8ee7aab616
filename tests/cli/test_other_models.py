"""A command that takes a .tflite says of another model what it is and what to do with it."""

from pathlib import Path

import pytest
from commands import Command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras
    import tensorflow as tf
    import tf_keras

    folder = tmp_path_factory.mktemp("other")
    image = keras.Input((8, 8, 3), name="image")
    keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(image))).save(folder / "net.keras")
    old = tf_keras.Sequential([tf_keras.Input((12,)), tf_keras.layers.Dense(3)])
    tf_keras.src.saving.legacy.hdf5_format.save_model_to_hdf5(old, str(folder / "old.h5"))
    tf.saved_model.save(tf.Module(), str(folder / "saved"))
    (folder / "text.tflite").write_text("not a model at all")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.keras", "net.keras: a Keras 3 model of 2 layers (in 8x8x3; out 10), not a .tflite; convert it first: "),
        ("old.h5", "old.h5: a tf_keras (Keras 2) model of 1 layer (in 12; out 3), not a .tflite; convert it first: "),
        (
            "saved",
            "saved: a SavedModel, not a .tflite; convert it first: `edgepipe convert saved` (add --data for int8)",
        ),
        ("text.tflite", "text.tflite: not a .tflite: bytes 5 to 8 must be 'TFL3'"),
        ("gone.keras", "gone.keras: cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("words", [("inspect",), ("profile", "--device", "host"), ("verify",)])
def test_another_kind_of_model_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: Command, name: str, message: str, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    ended = command(words[0], name, *words[1:])
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.strip().removeprefix("edgepipe: ").startswith(message)
    assert len(ended.err.strip().splitlines()) == 1
