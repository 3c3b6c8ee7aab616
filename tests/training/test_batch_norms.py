"""Batch-norm statistics: re-estimated over samples, against an independent computation, and frozen."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.training.batch_norms import frozen_statistics, refresh_batch_norms
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
X = np.random.default_rng(0).normal(3, 2, (128, 6)).astype("float32")


def _model() -> Any:
    set_seeds(0)
    layers = [K.Dense(5, name="dense"), K.BatchNormalization(name="first"), K.ReLU(), K.Dropout(0.5),
              tf_keras.Sequential([tf_keras.Input((5,)), K.BatchNormalization(name="second")])]  # fmt: skip
    return tf_keras.Sequential([tf_keras.Input((6,)), *layers])


def _norms(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, K.BatchNormalization)]


def test_statistics_are_those_of_the_samples() -> None:
    model = _model()
    refresh_batch_norms(model, X, 0)
    activations = model.get_layer("dense")(X).numpy()
    outer_norm, nested_norm = _norms(model)
    assert np.allclose(outer_norm.moving_mean, activations.mean(0), atol=1e-5)
    # the variance within batches, and which samples share one is drawn
    assert np.allclose(outer_norm.moving_variance, activations.reshape(2, 64, 5).var(1).mean(0), rtol=0.1)
    relu_output = np.maximum((activations - activations.mean(0)) / activations.std(0), 0)  # dropout is off
    assert np.allclose(nested_norm.moving_mean, relu_output.mean(0), atol=0.02)


def test_momentum_and_rate_are_restored_and_a_frozen_norm_is_unchanged() -> None:
    model = _model()
    outer_norm, nested_norm = _norms(model)
    nested_norm.trainable = False
    refresh_batch_norms(model, X, 0)
    assert outer_norm.momentum == nested_norm.momentum == 0.99
    assert [layer.rate for layer in model.layers if isinstance(layer, K.Dropout)] == [0.5]
    assert (nested_norm.moving_mean.numpy() == 0).all()
    assert (outer_norm.moving_mean.numpy() != 0).any()


def test_frozen_statistics_change_nothing() -> None:
    model = _model()
    weights_before = model.get_weights()
    with frozen_statistics(model):
        first_output, second_output = (model(X, training=True).numpy() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(weights_before, model.get_weights(), strict=True))
    assert np.array_equal(first_output, second_output)
