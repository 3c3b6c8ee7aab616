"""The mean error of the outputs is taken off the biases of the last layers."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgepipe.compress.keras_to_tflite import float_model
from edgepipe.compress.quantizer import output_bias
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import SchemeName
from edgepipe.core.arrays import Array
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

SHAPE = (12, 12, 3)


def _samples(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def _network(outputs: Any) -> keras.Model:
    """Normalized convolutions in front of an average over the image, where mean errors show."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input(SHAPE)
    for _ in range(3):
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, padding="same")(x)))
    model = keras.Model(inputs, outputs(x))
    for variable in model.variables:
        if "moving_variance" in variable.path:
            variable.assign(0.5 * variable)
    return model


def _dense(units: int, **options: Any) -> Any:
    return keras.layers.Dense(units, bias_initializer="uniform", **options)  # the converter drops a bias of zeros


def _classifier(x: Any) -> Any:
    return _dense(5, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))


def _logits(x: Any) -> Any:
    return _dense(5)(keras.layers.GlobalAveragePooling2D()(x))


def _two_heads(x: Any) -> Any:
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    return [_dense(5, name="a")(pooled), _dense(4, name="b")(pooled)]


def _pixels(x: Any) -> Any:
    return keras.layers.Conv2D(2, 1)(x)


def _quantize(model: keras.Model, count: int, scheme: SchemeName = "int8") -> tuple[bytes, bytes]:
    """The float .tflite and the integer one."""
    with float_model(model, _samples(count), requires_samples=True) as (lite, feeds):
        return lite.content, quantize_tflite(lite, QuantizationRequest(scheme, "float32", "float32"), feeds).content


def _errors(folder: Path, float_content: bytes, content: bytes) -> list[Array]:
    """Integer minus float outputs on other samples than those that calibrated."""
    outputs = []
    for name, model_content in (("float", float_content), ("integer", content)):
        path = folder / f"{name}.tflite"
        path.write_bytes(model_content)
        values = predict(path, _samples(200, seed=1)).real_values
        outputs.append(list(values.values()) if isinstance(values, dict) else [values])
    return [integer - exact for exact, integer in zip(*outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("head", [_classifier, _logits, _two_heads, _pixels])
def test_the_mean_error_is_taken_off(head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _network(head)
    float_content, corrected = _quantize(model, 64)
    monkeypatch.setattr(output_bias, "MIN_SAMPLES", 10_000)
    _, uncorrected = _quantize(model, 64)
    pairs = zip(_errors(tmp_path, float_content, uncorrected), _errors(tmp_path, float_content, corrected), strict=True)
    for before, after in pairs:
        axes = tuple(range(before.ndim - 1))
        assert np.linalg.norm(after.mean(axis=axes)) < 0.8 * np.linalg.norm(before.mean(axis=axes))
        assert np.square(after).mean() <= 1.02 * np.square(before).mean()


def _biases(folder: Path, content: bytes) -> list[list[int]]:
    path = folder / "m.tflite"
    path.write_bytes(content)
    model: Model = read(path)
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    biases = (operator.input(2) for operator in model.operators if operator.name in output_bias.LINEAR_OPERATORS)
    return [interpreter.get_tensor(bias.index).tolist() for bias in biases if bias is not None]


def test_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _network(_logits)
    _, corrected = _quantize(model, 64)
    monkeypatch.setattr(output_bias, "MIN_SAMPLES", 10_000)
    _, uncorrected = _quantize(model, 64)
    *before, last_before = _biases(tmp_path, uncorrected)
    *after, last_after = _biases(tmp_path, corrected)
    assert (before, len(uncorrected)) == (after, len(corrected))
    assert last_before != last_after


@pytest.mark.parametrize(("scheme", "count"), [("int8", output_bias.MIN_SAMPLES - 1), ("int16x8", 64)])
def test_too_few_samples_and_16_bits_leave_the_model_as_it_is(
    scheme: SchemeName, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _network(_logits)
    _, content = _quantize(model, count, scheme)
    monkeypatch.setattr(output_bias, "MIN_SAMPLES", 10_000)
    assert _quantize(model, count, scheme)[1] == content


@pytest.mark.parametrize(
    "head",
    [
        lambda x: keras.layers.GlobalAveragePooling2D()(x),
        lambda x: _dense(5, activation="relu")(keras.layers.Flatten()(x)),
        lambda x: keras.layers.Add()([_pixels(x), _pixels(x)]),
        lambda x: keras.layers.Dense(5, use_bias=False)(keras.layers.GlobalAveragePooling2D()(x)),
    ],
    ids=["no layer", "clipped", "a sum", "no bias"],
)
def test_other_last_layers_are_left_alone(head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _network(head)
    _, content = _quantize(model, 32)
    monkeypatch.setattr(output_bias, "MIN_SAMPLES", 10_000)
    assert _quantize(model, 32)[1] == content
