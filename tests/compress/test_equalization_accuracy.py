"""The effect of equalization and bias correction on int8: on networks made hard to quantize, and on healthy ones."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.equalization.batch_norm_folding import fold_batch_norms
from edgepipe.compress.equalization.bias_correction import correct_biases
from edgepipe.compress.equalization.cross_layer import equalize_channels
from edgepipe.compress.keras_to_tflite import convert
from edgepipe.core.arrays import Array
from edgepipe.data import digits
from edgepipe.tflite.interpreter import predict
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
TRAIN, SAMPLES = 1078, 100
pytestmark = pytest.mark.slow


@cache
def _load_data() -> tuple[Array, Array]:
    """Shuffled; 1,078 to train on, 719 to test."""
    x, y = digits()
    chosen = np.random.default_rng(0).permutation(len(x))
    return (x / x.max()).astype("float32").reshape(-1, 8, 8, 1)[chosen], y[chosen]


def _block(layer: Any, x: Any, limit: float | None) -> Any:
    return K.ReLU(limit)(K.BatchNormalization(momentum=0.9)(layer(x)))


@cache
def _weights(limit: float | None) -> list[Array]:
    set_seeds(1)
    model = _network(limit)
    model.compile(tf_keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(_load_data()[0][:TRAIN], _load_data()[1][:TRAIN], batch_size=32, epochs=12, verbose=0)
    return list(model.get_weights())


def _network(limit: float | None) -> Any:
    x = inputs = tf_keras.Input((8, 8, 1), name="image")
    x = _block(K.Conv2D(16, 3, padding="same", use_bias=False), x, limit)
    for filters, stride in ((24, 2), (32, 1), (48, 2)):
        x = _block(K.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False), x, limit)
        x = _block(K.Conv2D(filters, 1, use_bias=False), x, limit)
    x = K.Dense(10, name="scores")(K.GlobalAveragePooling2D()(x))
    return tf_keras.Model(inputs, K.Softmax(name="probabilities")(x))


def _train_model(limit: float | None = None) -> Any:
    weights = _weights(limit)
    model = _network(limit)
    model.set_weights(weights)
    return model


def _rescale(model: Any, spread: float) -> None:
    """Scale one channel in eight after each batch norm by `spread`, compensated where it is read."""
    generator = np.random.default_rng(0)
    readers = [layer for layer in model.layers if isinstance(layer, (K.Conv2D, K.DepthwiseConv2D, K.Dense))][1:]
    norms = [layer for layer in model.layers if isinstance(layer, K.BatchNormalization)]
    for norm, reader in zip(norms, readers, strict=True):
        factors = np.where(generator.permutation(norm.gamma.shape[0]) % 8 == 0, spread, 1.0).astype("float32")
        norm.gamma.assign(norm.gamma * factors)
        norm.beta.assign(norm.beta * factors)
        kernel = reader.depthwise_kernel if isinstance(reader, K.DepthwiseConv2D) else reader.kernel
        kernel.assign(kernel / (factors if len(kernel.shape) == 2 else factors.reshape(1, 1, -1))[..., None])


def _accuracy(scores: Array) -> float:
    return float((np.asarray(scores).argmax(axis=1) == _load_data()[1][TRAIN:]).mean() * 100)


def _int8(model: Any, folder: Path) -> float:
    (folder / "m.tflite").write_bytes(convert(model, samples=_load_data()[0][:SAMPLES]))
    return _accuracy(predict(folder / "m.tflite", _load_data()[0][TRAIN:]).real_values)


def _float(model: Any) -> Array:
    return np.asarray(model.predict(_load_data()[0][TRAIN:], verbose=0))


@pytest.mark.parametrize("samples", [None, SAMPLES], ids=["data-free", "samples"])
def test_a_model_that_int8_breaks_is_fixed_without_labels(samples: int | None, tmp_path: Path) -> None:
    model = _train_model()
    float_scores = _float(model)
    _rescale(model, 100.0)
    assert np.abs(_float(model) - float_scores).max() < 1e-5
    broken = _int8(model, tmp_path)
    lost = _accuracy(float_scores) - broken
    assert lost >= 10
    calibration_samples = None if samples is None else _load_data()[0][:samples]
    equal = equalize_channels(fold_batch_norms(model), calibration_samples)
    corrected = _int8(correct_biases(equal.folded_model, calibration_samples).model, tmp_path)
    print(
        f"float {_accuracy(float_scores):.2f} int8 {broken:.2f} corrected {corrected:.2f}",
        [(j.producer_names, round(j.spread_before, 1), round(j.spread_after, 1)) for j in equal.equalization_groups],
    )
    assert corrected - broken >= 0.8 * lost


@pytest.mark.parametrize("limit", [None, 6.0], ids=["relu", "relu6"])
def test_a_healthy_model_stays_as_good(limit: float | None, tmp_path: Path) -> None:
    model = _train_model(limit)
    int8_accuracy = _int8(model, tmp_path)
    for calibration_samples in (None, _load_data()[0][:SAMPLES]):
        equal = equalize_channels(fold_batch_norms(model), calibration_samples)
        assert any("clips at 6" in why for why in equal.exclusion_notes) == (limit == 6.0)
        corrected = _int8(correct_biases(equal.folded_model, calibration_samples).model, tmp_path)
        print(limit, calibration_samples is None, _accuracy(_float(model)), int8_accuracy, corrected)
        assert abs(corrected - int8_accuracy) < 0.3
