"""Magnitude pruning: the share it reaches, what it leaves alone, and that the smallest weights are the ones to go."""

import numpy as np
import pytest
import tf_keras

from edgepipe.compress import prune
from edgepipe.compress.prune import Plan
from edgepipe.errors import InputError
from edgepipe.training.fit import seeded

PLAN = Plan(sparsity=0.75, schedule="polynomial", initial_sparsity=0.0, power=3.0, ramp=0.75, exclude_last=True)


def _model() -> tf_keras.Model:
    seeded(0)
    inputs = tf_keras.Input((8, 8, 1), name="image")
    x = tf_keras.layers.Conv2D(8, 3, name="conv")(inputs)
    x = tf_keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = tf_keras.layers.Flatten(name="flatten")(x)
    x = tf_keras.layers.Dense(12, activation="relu", name="hidden")(x)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(3, activation="softmax", name="last")(x))


def _pruned(plan: Plan, epochs: int = 2) -> tf_keras.Model:
    model = _model()
    x = np.random.RandomState(0).rand(60, 8, 8, 1).astype(np.float32)
    steps = epochs * 6
    wrapped = prune.wrap(model, plan, steps)
    wrapped.compile("adam", "sparse_categorical_crossentropy")
    wrapped.fit(x, np.arange(60) % 3, batch_size=10, epochs=epochs, verbose=0, callbacks=prune.callbacks())
    return prune.strip(wrapped)


@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
@pytest.mark.parametrize("sparsity", [0.3, 0.75, 0.9])
def test_every_pruned_layer_reaches_the_target(schedule: str, sparsity: float) -> None:
    plan = Plan(sparsity, schedule, 0.0, 3.0, 0.75, exclude_last=True)
    layers = prune.measure(_pruned(plan), prune.left_alone(_model(), exclude_last=True))
    prune.check_reached(layers, sparsity)
    for layer in layers:
        if not layer.left_alone:
            assert layer.zeros == pytest.approx(sparsity * layer.elements, abs=1)


def test_what_is_left_alone_is_named_with_the_reason() -> None:
    assert set(prune.left_alone(_model(), exclude_last=True)) == {"depthwise", "last"}
    assert set(prune.left_alone(_model(), exclude_last=False)) == {"depthwise"}
    layers = {layer.name: layer for layer in prune.measure(_pruned(PLAN), prune.left_alone(_model(), True))}
    assert "the last layer is excluded" in layers["last"].left_alone
    assert layers["last"].zeros == 0
    assert "DepthwiseConv2D is not pruned" in layers["depthwise"].left_alone
    assert layers["conv"].left_alone == ""


def test_the_smallest_weights_go() -> None:
    plan = Plan(0.5, "constant", 0.0, 3.0, 1.0, exclude_last=True)
    model = _model()
    before = model.get_layer("hidden").get_weights()[0]
    wrapped = prune.wrap(model, plan, 1)
    wrapped.compile(tf_keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    x = np.zeros((4, 8, 8, 1), np.float32)
    wrapped.fit(x, np.zeros(4), epochs=1, verbose=0, callbacks=prune.callbacks())
    after = prune.strip(wrapped).get_layer("hidden").get_weights()[0]
    kept = after != 0
    assert np.array_equal(after[kept], before[kept])
    assert np.abs(before[kept]).min() >= np.abs(before[~kept]).max()


def test_nothing_to_prune_is_said() -> None:
    inputs = tf_keras.Input((4,), name="x")
    only = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="only")(inputs), name="one_layer")
    with pytest.raises(InputError, match="nothing to prune in 'one_layer': only: the last layer is excluded"):
        prune.wrap(only, PLAN, 10)


def test_a_missed_target_is_an_error_not_a_smaller_number() -> None:
    layers = [prune.LayerSparsity("conv", "Conv2D", 100, 50)]
    with pytest.raises(InputError, match="layer 'conv' holds 50 zeros of 100, under the target 75%"):
        prune.check_reached(layers, 0.75)
