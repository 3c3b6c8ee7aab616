"""Keras 3 -> tf_keras -> Keras 3: equal outputs, and a file that Keras 3 alone loads and trains."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from layer_table import LAYERS, model_of
from test_bridge import MODELS

from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge, random_inputs, relative_difference
from edgepipe.models.keras3_export import export_to_keras3, to_keras
from edgepipe.models.keras3_graph import build_graph
from edgepipe.models.perturb import perturb

STRICT = 1e-5
K = keras.layers


def _outputs(model: Any, samples: list[Any]) -> list[Any]:
    functional = model._functional if isinstance(model, keras.Sequential) else model
    packed_samples = keras.tree.pack_sequence_as(functional._inputs_struct, samples)
    return list(keras.tree.flatten(functional(packed_samples, training=False)))


def _round_trip(model: Any) -> Any:
    perturb(model, 1)
    twin = bridge(model).model
    weights_before = [weight.numpy() for weight in twin.weights]
    exported = export_to_keras3(twin)
    assert exported.difference.worst_difference.relative_error < STRICT, exported.text
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(weights_before, twin.weights, strict=True))
    samples = random_inputs(build_graph(model), 3)
    for a, b in zip(_outputs(model, samples), _outputs(exported.model, samples), strict=True):
        assert relative_difference(a, b) < STRICT
    return exported.model


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYERS if "Hash" not in name])
def test_layers_round_trip(name: str) -> None:
    _round_trip(model_of(LAYERS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS)
def test_models_round_trip(make: Any) -> None:
    keras3_model = _round_trip(make())
    bridge(keras3_model)  # can be bridged again


@pytest.mark.slow
def test_the_file_loads_and_trains_without_edgepipe(tmp_path: Path) -> None:
    x = keras.Input((6,), name="x")
    y = K.Dense(4, activation="hard_silu", name="d")(x)
    y = K.Dense(2, activation="squareplus", name="out")(K.RMSNormalization(name="rms")(y * 2.0))
    model = keras.Model(x, keras.src.applications.convnext.LayerScale(0.5, 2, name="scale")(y), name="plain")
    _round_trip(model).save(tmp_path / "m.keras")
    code = (
        "import sys, keras, numpy as np; m = keras.saving.load_model(sys.argv[1]); m.compile('adam', 'mse');"
        "m.fit(np.ones((8, 6)), np.ones((8, 2)), verbose=0); assert 'tf_keras' not in sys.modules; print('trained')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}  # tfmot sets it
    command = [sys.executable, "-c", code, str(tmp_path / "m.keras")]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.stdout.strip() == "trained", process.stderr


def test_plain_tf_keras_models() -> None:
    x = tf_keras.Input((8, 8, 3), name="x")
    inner = tf_keras.Sequential(
        [tf_keras.Input((6, 6, 4)), tf_keras.layers.BatchNormalization(name="bn")], name="inner"
    )
    y = tf_keras.layers.Conv2D(4, 3, activation="hard_sigmoid", name="c")(x)
    y = tf_keras.layers.LeakyReLU(0.2, name="leaky")(inner(y))
    y = tf_keras.layers.Activation("hard_sigmoid", name="a")(inner(y))
    model = tf_keras.Model(x, [tf_keras.layers.GlobalAveragePooling2D(name="pool")(y), y], name="old")
    exported = export_to_keras3(model)
    assert exported.difference.worst_difference.relative_error < STRICT
    assert {"c", "inner_bn", "leaky", "a", "pool"} <= {layer.name for layer in exported.model.layers}


def test_pruned_zeros_stay_zeros() -> None:
    model = keras.Sequential([keras.Input((4,)), K.Dense(6, name="d")])
    twin = bridge(model).model
    kernel = twin.layers[-1].kernel
    kernel.assign(np.where(np.arange(24).reshape(4, 6) % 2, kernel.numpy(), 0))
    assert np.array_equal(to_keras(twin).get_layer("d").kernel, kernel)


class Theirs(tf_keras.layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x


def test_refuses_all_at_once() -> None:
    x = tf_keras.Input((3, 4), name="x")
    y = tf_keras.layers.LSTM(2, recurrent_activation="hard_sigmoid", name="lstm")(Theirs(name="mine")(x))
    with pytest.raises(InputError) as raised:
        to_keras(tf_keras.Model(x, y, name="bad"))
    assert "'mine', of class Theirs: Keras 3 has no layer of this class" in str(raised.value)
    assert "'lstm', of class LSTM: its recurrent_activation is tf_keras's hard_sigmoid" in str(raised.value)
