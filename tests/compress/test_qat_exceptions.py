"""Layers that fake-quant cannot reach inside: listed with the reason, same outputs, still trainable."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.qat import range_initialization
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
from edgepipe.models.perturb import perturb
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers


def _sequence(*layers: Any, shape: tuple[int, ...] = (8, 4)) -> Any:
    return tf_keras.Sequential([tf_keras.Input(shape, name="x"), *layers, K.Flatten(), K.Dense(3)], name="user")


def _scored() -> Any:
    x = tf_keras.Input((8, 4), name="x")
    y, _ = K.MultiHeadAttention(2, 2, name="scored")(x, x, use_causal_mask=True, return_attention_scores=True)
    return tf_keras.Model(x, K.Dense(3, name="out")(K.Flatten()(y)), name="user")


@tf_keras.utils.register_keras_serializable("test_qat_exceptions")
class Doubled(tf_keras.layers.Layer):  # type: ignore[misc]
    """A custom layer."""

    def call(self, x: Any) -> Any:
        return x * 2.0 + 1.0


CASES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "lstm": (lambda: _sequence(K.LSTM(3, name="it")), "calibration", "recurrent: unrolled into its 8 steps"),
    "gru": (lambda: _sequence(K.GRU(3, return_sequences=True, name="it")), "calibration", "recurrent: unrolled"),
    "bidirectional": (lambda: _sequence(K.Bidirectional(K.LSTM(3), name="it")), "calibration", "recurrent: unrolled"),
    "custom": (lambda: _sequence(Doubled(name="it")), "calibration", "no rule for Doubled"),
    "softplus": (
        lambda: _sequence(K.Activation("softplus", name="it")), "calibration", "the activation softplus",
    ),
    "attention that returns its scores": (_scored, "calibration", "attention that also returns its scores"),
    "batch norm of another axis": (
        lambda: _sequence(K.BatchNormalization(axis=1, name="it")), "calibration", r"normalizes axis \[1\]",
    ),
    "layer norm of two axes": (
        lambda: _sequence(K.LayerNormalization(axis=[1, 2], name="it")), "calibration", r"normalizes axes \[1, 2\]",
    ),
    "conv 3d": (
        lambda: _sequence(K.Conv3D(2, 2, name="it"), shape=(4, 4, 4, 2)), "float", "no int8 operator for Conv3D",
    ),
}  # fmt: skip


def _build(name: str) -> tuple[Any, Any, Any]:
    set_seeds(1)
    base = CASES[name][0]()
    perturb(base)
    x = np.random.default_rng(0).normal(0, 1, (16, *base.input_shape[1:])).astype("float32")
    return base, build_fake_quant(base, QatRecipe(), x), x


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_layer_is_listed_and_the_model_trains(name: str) -> None:
    import re

    _, quantized_by, reason = CASES[name]
    _, fake_quant, x = _build(name)
    (exception,) = [entry for entry in fake_quant.layer_coverages if entry.quantized_by != "training"]
    assert exception.quantized_by == quantized_by
    assert re.search(reason, exception.reason)
    range_initialization.initialize_ranges(fake_quant.model, x, seed=0, use_batch_statistics=False)
    fake_quant.model.compile("adam", "mse")
    losses = fake_quant.model.fit(x, np.ones((16, 3)), epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_an_unrolled_lstm_converts(tmp_path: Any) -> None:
    from edgepipe.tflite.integer_check import check_integer_only
    from edgepipe.tflite.reader import read

    _, fake_quant, x = _build("lstm")
    range_initialization.initialize_ranges(fake_quant.model, x, seed=0, use_batch_statistics=False)
    (tmp_path / "m.tflite").write_bytes(convert(fake_quant.model, samples=x))
    assert check_integer_only(read(tmp_path / "m.tflite")) == []
