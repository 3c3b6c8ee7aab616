"""Fake-quant ranges initialized from data, against the activations of the float model."""

from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.qat import range_initialization
from edgepipe.compress.qat.fake_quant import QatRecipe, activation_quantize_layers, build_fake_quant
from edgepipe.training.training_loop import set_seeds

DATA = np.random.RandomState(1).rand(96, 6).astype(np.float32) * 0.3


def _base() -> tf_keras.Model:
    set_seeds(2)
    inputs = tf_keras.Input((6,), name="x")
    x = tf_keras.layers.Dense(5, activation="relu", name="hidden")(inputs)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="out")(x))


def _model(base: Any) -> Any:
    return build_fake_quant(base, QatRecipe()).model


def _range(model: Any, name: str) -> tuple[float, float]:
    variables = model.get_layer(f"{name}_fake_quant").quantizer_vars
    return float(variables["min_var"]), float(variables["max_var"])


def test_ranges_are_those_of_the_float_model() -> None:
    base = _base()
    model = _model(base)
    assert range_initialization.initialize_ranges(model, DATA, seed=0, use_batch_statistics=False) == []
    hidden = tf_keras.Model(base.input, base.get_layer("hidden").output)(DATA).numpy()
    output = base(DATA).numpy()
    assert _range(model, "x") == pytest.approx((0.0, DATA.max()), abs=1e-6)
    assert _range(model, "hidden_activation") == pytest.approx((0.0, hidden.max()), rel=0.02)
    expected = min(output.min(), 0.0), max(output.max(), 0.0)
    assert _range(model, "out") == pytest.approx(expected, abs=0.02 * float(expected[1] - expected[0]))


def test_a_tensor_that_is_always_zero_is_named() -> None:
    base = _base()
    kernel, _ = base.get_layer("hidden").get_weights()
    base.get_layer("hidden").set_weights([-np.abs(kernel), np.zeros(5)])
    assert range_initialization.initialize_ranges(_model(base), DATA, seed=0, use_batch_statistics=False) == [
        "hidden_activation_fake_quant",
        "out_fake_quant",
    ]


def test_everything_else_is_left_as_it_was() -> None:
    model = _model(_base())
    names = [w.name for w in model.trainable_weights]
    weights = [w.numpy() for w in model.trainable_weights]
    range_initialization.initialize_ranges(model, DATA, seed=0, use_batch_statistics=True)
    assert [w.name for w in model.trainable_weights] == names
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(weights, model.trainable_weights, strict=True))
    trained_range = _range(model, "out")
    model.compile("sgd", "mse")
    model.fit(DATA * 50, np.zeros((96, 3)), epochs=1, verbose=0)
    assert _range(model, "out") != trained_range  # the quantizer that follows the data is back


def test_ids_that_arrive_as_floats_are_not_rounded() -> None:
    layers = tf_keras.layers
    inputs = tf_keras.Input((3, 4), name="ids")
    x = layers.Embedding(1000, 4)(layers.Reshape((12,))(inputs))
    model = tf_keras.Model(inputs, layers.Dense(2, name="scores")(layers.GlobalAveragePooling1D()(x)))
    ids = np.random.default_rng(0).integers(0, 1000, (8, 3, 4)).astype("float32")
    fake_quant_layers = activation_quantize_layers(build_fake_quant(model, QatRecipe(), ids).model)
    assert "ids_fake_quant" not in [layer.name for layer in fake_quant_layers]
