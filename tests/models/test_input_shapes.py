"""Models with open dimensions: fixed to the sizes that the user gives, by command, stage and pipeline."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import edgepipe
from edgepipe.compress.source_model import open_with_classes
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.models.fixed_inputs import fix_input_shapes
from edgepipe.models.input_shapes import parse_input_shapes
from edgepipe.tflite.reader import read

PHOTOS = np.random.default_rng(0).normal(size=(60, 8, 9, 3)).astype("float32")


def fully_convolutional(package: Any) -> Any:
    """Images of any size, through a nested model that takes any size too."""
    layers = package.layers
    backbone = package.Sequential([package.Input((None, None, 4)), layers.Conv2D(5, 3)], name="backbone")
    inputs = package.Input((None, None, 3), name="photo")
    x = layers.GlobalAveragePooling2D()(backbone(layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))))
    return package.Model(inputs, layers.Dense(3, activation="softmax")(x), name="net")


def two_inputs() -> Any:
    """A series of any length, and a row."""
    series, row = keras.Input((None, 4), name="series"), keras.Input((3,), name="row")
    x = keras.layers.Concatenate()([keras.layers.GlobalMaxPooling1D()(series), row])
    return keras.Model({"series": series, "row": row}, keras.layers.Dense(2)(x), name="net")


@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_the_fixed_model_computes_the_same(package: Any) -> None:
    model = fully_convolutional(package)
    fixed = fix_input_shapes(model, {"": (8, 9, 3)})
    assert tuple(fixed.inputs[0].shape) == (None, 8, 9, 3)
    assert [layer.name for layer in fixed.layers] == [layer.name for layer in model.layers]
    assert np.array_equal(model(PHOTOS[:2]), fixed(PHOTOS[:2]))
    assert fix_input_shapes(fixed, {"photo": (8, 9, 3)}) is fixed


def test_only_the_named_input_is_fixed() -> None:
    shapes = [tuple(tensor.shape) for tensor in fix_input_shapes(two_inputs(), {"series": (6, 4)}).inputs]
    assert sorted(map(str, shapes)) == ["(None, 3)", "(None, 6, 4)"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("9x4", r"'net' has 2 inputs; give an input shape by name, such as \w+=9x4 \(inputs: "),
        ("serie=9x4", r"input shape of 'serie': 'net' has no such input; did you mean 'series'\?"),
        (
            "series=9",
            r"9 does not fit input 'series' of the shape \(None, None, 4\): it takes 2 sizes without the batch",
        ),
        ("series=9x5", r"9x5 does not fit input 'series'.*only open ones \(None\) can be chosen"),
        ("row=0", r"input shape 'row=0' is not of the form 224x224x3"),
        ("row=1.5", r"input shape 'row=1\.5' is not of the form"),
        ("row=3,row=3", r"input shape 'row=3': input 'row' has one already"),
    ],
)
def test_wrong_shapes_are_refused(shapes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fix_input_shapes(two_inputs(), parse_input_shapes(shapes))


@pytest.mark.slow
def test_command_stage_and_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fully_convolutional(keras).save("open.keras")
    np.savez("data.npz", x=PHOTOS, y=np.arange(60) % 3)
    with pytest.raises(InputError, match=r"'photo' of 'net' has the shape \(None, None, None, 3\).*--input-shape"):
        edgepipe.convert("open.keras", data=PHOTOS)
    with pytest.raises(InputError, match=r"does not take inputs of the shape 'photo' \(None, 2, 2, 3\): ValueError"):
        edgepipe.convert("open.keras", data=PHOTOS, input_shape="2x2x3")
    edgepipe.convert("open.keras", data=PHOTOS, input_shape="8x9x3", out="command.tflite")
    assert read(Path("command.tflite")).inputs[0].shape == (1, 8, 9, 3)
    assert edgepipe.sensitivity("open.keras", data=PHOTOS, input_shape=["photo=8x9x3"]).layers
    pipeline = {"name": "p", "data": {"npz": "data.npz"}, "task": "classification"}
    staged = {"model": "open.keras", "stages": [{"train": {"epochs": 1}}, {"convert": {"input_shape": "8x9x3"}}]}
    edgepipe.run({**pipeline, **staged}, output_dir="staged")
    fixed = {"model": {"path": "open.keras", "input_shape": "8x9x3"}, "stages": [{"prune": {"epochs": 1}}, "convert"]}
    edgepipe.run({**pipeline, **fixed}, output_dir="fixed")
    with pytest.raises(ConfigError, match="input shape '8by9' is not of the form"):
        edgepipe.check({**pipeline, **fixed, "model": {"path": "open.keras", "input_shape": "8by9"}})


@pytest.mark.parametrize("kind", [ArtifactKind.TFLITE, ArtifactKind.SAVED_MODEL])
def test_only_a_keras_model_takes_a_shape(kind: ArtifactKind) -> None:
    with pytest.raises(InputError, match=f"input_shape is for a Keras model with open dimensions; this is a {kind}"):
        open_with_classes(Path("m"), kind, allow_code=True, custom_objects=None, input_shapes=("8x8x3",))
