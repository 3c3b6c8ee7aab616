"""A channel whose weights are tiny or zero keeps its bias, in 8 and 16 bits."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer import recipes
from edgepipe.compress.quantizer.activation_calibration import calibrate
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.reader import read

X = np.random.RandomState(0).rand(20, 6, 6, 4).astype("float32")
KINDS: dict[str, Any] = {
    "Conv2D": lambda: keras.layers.Conv2D(4, 3, name="layer"),
    "DepthwiseConv2D": lambda: keras.layers.DepthwiseConv2D(3, name="layer"),
    "Conv2DTranspose": lambda: keras.layers.Conv2DTranspose(4, 3, name="layer"),
    "Dense": lambda: keras.layers.Dense(4, name="layer"),
}


def dead_channel_model(kind: str, tiny: float) -> Any:
    """A layer in which one channel has `tiny` weights and a bias of 3."""
    x = inputs = keras.Input((6, 6, 4), name="x")
    if kind == "Dense":
        x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, KINDS[kind]()(x))
    kernel, bias = model.get_layer("layer").get_weights()
    axis = {"Conv2D": 3, "DepthwiseConv2D": 2, "Conv2DTranspose": 2, "Dense": 1}[kind]
    np.moveaxis(kernel, axis, 0)[1] = tiny
    bias[:] = 0.25
    bias[1] = 3.0
    model.get_layer("layer").set_weights([kernel, bias])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("tiny", [0.0, 1e-12])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_dead_channel_keeps_its_bias(kind: str, tiny: float, bits: int, tmp_path: Path) -> None:
    model = dead_channel_model(kind, tiny)
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    lite = read(path)
    ranges = calibrate(lite, X, ActivationCalibration()).by_tensor
    path.write_bytes(
        recipes.quantize_with_recipe(
            lite.content, recipes.scheme_recipe("int8" if bits == 8 else "int16x8"), ranges
        ).content
    )
    for runtime in (Runtime.REFERENCE, Runtime.XNNPACK):
        outputs = np.asarray(predict(path, X, runtime).real_values)
        expected = np.asarray(model.predict(X, verbose=0))
        assert np.abs(outputs.reshape(expected.shape) - expected).max() < (0.08 if bits == 8 else 0.04)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_a_single_channel_keeps_its_bias(scheme: Any, tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1, name="layer")(inputs))
    model.get_layer("layer").set_weights([np.full((6, 1), 1e-12, np.float32), np.array([5.0], np.float32)])
    path = tmp_path / "m.tflite"
    x = np.random.RandomState(0).rand(4, 6).astype("float32")
    path.write_bytes(convert(model, scheme, x))
    np.testing.assert_allclose(predict(path, x).real_values, 5.0, atol=0.03)


def test_only_what_is_out_of_range_is_touched(tmp_path: Path) -> None:
    model = dead_channel_model("Conv2D", 0.0)
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    lite = read(path)
    ranges = calibrate(lite, X, ActivationCalibration()).by_tensor
    quantized = recipes.quantize_with_recipe(lite.content, recipes.scheme_recipe("int8"), ranges).content
    path.write_bytes(quantized)
    scales = next(op for op in read(path).operators if op.name == "CONV_2D").inputs[1].quantization.scales
    kernel = model.get_layer("layer").get_weights()[0]
    plain_scales = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    np.testing.assert_allclose(np.delete(scales, 1), np.delete(plain_scales, 1), rtol=1e-5)
    assert scales[1] > 0
