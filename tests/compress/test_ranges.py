"""Ranges of fake-quant taken from data, against the float model's own activations."""

import numpy as np
import pytest
import tf_keras

from edgepipe.compress import quantize, ranges
from edgepipe.training.fit import seeded

DATA = np.random.RandomState(1).rand(96, 6).astype(np.float32) * 0.3


def _base() -> tf_keras.Model:
    seeded(2)
    inputs = tf_keras.Input((6,), name="x")
    x = tf_keras.layers.Dense(5, activation="relu", name="hidden")(inputs)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="out")(x))


def _range(model: tf_keras.Model, layer: str, name: str) -> tuple[float, float]:
    values = {w.name.split("/")[-1].split(":")[0]: float(w) for w in model.get_layer(layer).weights if w.shape == ()}
    return values[f"{name}_min"], values[f"{name}_max"]


@pytest.mark.parametrize("scheme", ["default_8bit", "default_8bit_preserve_sparsity"])
def test_ranges_are_those_of_the_float_model(scheme: str) -> None:
    base = _base()
    model = quantize.fake_quant(base, scheme)
    ranges.initialise(model, DATA, seed=0)
    hidden = tf_keras.Model(base.input, base.get_layer("hidden").output)(DATA).numpy()
    output = base(DATA).numpy()
    assert _range(model, "quant_hidden", "post_activation") == pytest.approx((0.0, hidden.max()), abs=1e-6)
    expected = min(output.min(), 0.0), max(output.max(), 0.0)
    assert _range(model, "quant_out", "post_activation") == pytest.approx(expected, abs=1e-6)


def test_without_them_a_small_output_has_a_handful_of_levels() -> None:
    base = _base()
    stock, ours = quantize.fake_quant(base, "default_8bit"), quantize.fake_quant(base, "default_8bit")
    ranges.initialise(ours, DATA, seed=0)
    for model in (stock, ours):
        model.compile("sgd", "mse")
        model.fit(DATA, base.predict(DATA, verbose=0), epochs=1, verbose=0)
    truth = base.predict(DATA, verbose=0)
    stock_error, our_error = (np.abs(m.predict(DATA, verbose=0) - truth).mean() for m in (stock, ours))
    assert our_error < stock_error / 3


def test_everything_else_is_left_as_it_was() -> None:
    base = _base()
    model = quantize.fake_quant(base, "default_8bit")
    names = [w.name for w in model.trainable_weights]
    weights = [w.numpy() for w in model.trainable_weights]
    ranges.initialise(model, DATA, seed=0)
    assert [w.name for w in model.trainable_weights] == names
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(weights, model.trainable_weights, strict=True))
    before = _range(model, "quant_out", "post_activation")
    model.compile("sgd", "mse")
    model.fit(DATA * 50, np.zeros((96, 3)), epochs=1, verbose=0)
    assert _range(model, "quant_out", "post_activation") != before  # tfmot's own quantizer is back
