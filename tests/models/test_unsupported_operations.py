"""Operations that TFLite lacks: the same numbers as Keras computes, and full integer models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.core.errors import InputError
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal(size=(60, 9, 8, 3)).astype("float32")
VIDEOS = GENERATOR.normal(size=(60, 5, 6, 7, 2)).astype("float32")

Layer = Callable[[Any], Any]
REPLACED: dict[str, tuple[Layer, Any]] = {
    "max pooling in 3-D": (layers.MaxPooling3D((2, 3, 2), (1, 2, 2), padding="same"), VIDEOS),
    "average pooling in 3-D": (layers.AveragePooling3D((2, 3, 2), (2, 1, 2), padding="same"), VIDEOS),
    "average pooling in 3-D, valid": (layers.AveragePooling3D(2), VIDEOS),
    "bicubic, smaller": (layers.Resizing(5, 7, interpolation="bicubic"), IMAGES),
    "bicubic, larger": (lambda x: ops.image.resize(x, (12, 20), "bicubic"), IMAGES),
    "dilated transposed convolution": (layers.Conv2DTranspose(4, 3, dilation_rate=2, padding="same"), IMAGES),
    "unequal dilations": (layers.Conv2DTranspose(4, (3, 2), dilation_rate=(1, 3), padding="valid"), IMAGES),
    "error function": (lambda x: ops.erf(x) + 0.5 * ops.erfc(2.0 * x), IMAGES),
    "patches": (lambda x: ops.image.extract_patches(x, 4, strides=2, padding="same"), IMAGES),
    "argmax": (lambda x: ops.argmax(x, axis=-1), IMAGES),
    "argmin, kept dimension": (lambda x: ops.argmin(x, axis=1, keepdims=True), IMAGES),
}


def _model(layer: Layer, samples: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(samples.shape[1:], name="x")
    return keras.Model(inputs, layer(inputs * 1.5))


def _outputs(content: bytes, samples: Any, folder: Path) -> Any:
    path = folder / "m.tflite"
    path.write_bytes(content)
    return np.asarray(predict(path, samples).real_values)


@pytest.mark.parametrize("name", REPLACED)
def test_the_same_numbers_as_keras(name: str, tmp_path: Path) -> None:
    layer, samples = REPLACED[name]
    model = _model(layer, samples)
    outputs = _outputs(convert(model, "float32"), samples, tmp_path)
    np.testing.assert_allclose(outputs, np.asarray(model(samples)), atol=2e-5)
    assert read(tmp_path / "m.tflite").inputs[0].name.startswith(("x", "serving_default_x"))


@pytest.mark.parametrize("name", ["max pooling in 3-D", "bicubic, larger", "unequal dilations", "argmax"])
def test_integer_models(name: str, tmp_path: Path) -> None:
    layer, samples = REPLACED[name]
    model = _model(layer, samples)
    outputs = _outputs(convert(model, "int8", samples), samples, tmp_path)
    assert not check_integer_only(read(tmp_path / "m.tflite"))
    truth = np.asarray(model(samples))
    if name == "argmax":
        assert (outputs == truth).mean() > 0.95
    else:
        assert np.abs(outputs - truth).max() < 0.05 * np.ptp(truth)


def test_a_convolution_of_volumes_becomes_one_of_pictures(tmp_path: Path) -> None:
    model = _model(layers.Conv3D(4, (3, 3, 2), strides=(2, 1, 1), padding="same", activation="relu"), VIDEOS)
    outputs = _outputs(convert(model, "int8", VIDEOS), VIDEOS, tmp_path)
    assert not check_integer_only(read(tmp_path / "m.tflite"))
    truth = np.asarray(model(VIDEOS))
    assert np.abs(outputs - truth).max() < 0.05 * np.ptp(truth)


def test_what_stays_unsupported_is_named() -> None:
    model = _model(ops.erfinv, IMAGES)
    with pytest.raises(InputError, match=r"no builtin operator for tf\.Erfinv \(node '.*Erfinv'\); replace the layer"):
        convert(model, "int8", IMAGES)


GELU_SPELLINGS: dict[str, Layer] = {
    "activation": layers.Activation("gelu"),
    "half first": lambda x: 0.5 * x * (1 + ops.erf(x / np.sqrt(2, dtype="float32"))),
    "half inside": lambda x: x * (0.5 + 0.5 * ops.erf(x * 0.70710678)),
    "divided by two": lambda x: (ops.erf(x / np.sqrt(2, dtype="float32")) + 1) * x / 2,
    "complement": lambda x: x * (ops.erfc(-x / np.sqrt(2, dtype="float32")) * 0.5),
}


@pytest.mark.parametrize("name", GELU_SPELLINGS)
def test_every_spelling_of_gelu_is_one_operator(name: str, tmp_path: Path) -> None:
    model = _model(GELU_SPELLINGS[name], IMAGES)
    outputs = _outputs(convert(model, "float32"), IMAGES, tmp_path)
    np.testing.assert_allclose(outputs, np.asarray(model(IMAGES)), atol=2e-5)
    assert read(tmp_path / "m.tflite").operator_counts == {"MUL": 1, "GELU": 1}


def test_what_is_no_gelu_keeps_its_error_function(tmp_path: Path) -> None:
    model = _model(lambda x: 0.5 * x * (1 + ops.erf(x)), IMAGES)
    np.testing.assert_allclose(
        _outputs(convert(model, "float32"), IMAGES, tmp_path), np.asarray(model(IMAGES)), atol=2e-5
    )
    assert read(tmp_path / "m.tflite").operator_counts["TANH"] == 1
