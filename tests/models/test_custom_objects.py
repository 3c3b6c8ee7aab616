"""Custom classes: traced, replaced by their twin, wrapped or refused; known in every stage; checked first."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from commands import Command

from edgepipe import api
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.models import custom_objects
from edgepipe.models.bridge import bridge
from edgepipe.models.keras3_export import export_to_keras3
from edgepipe.models.model_files import load_model, save_float
from edgepipe.models.model_function import build_model
from edgepipe.pipeline.schema import load as load_pipeline
from edgepipe.render.report import Report

STRICT = 1e-5
MODULE = '''
import keras
import tensorflow as tf
import tf_keras
from keras import layers, ops


class Block(layers.Layer):
    """Layers, operators and its own weight: can be traced."""

    def __init__(self, units, **common):
        super().__init__(**common)
        self.units = units
        self.dense = layers.Dense(units, activation="gelu")
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.2)

    def build(self, shape):
        self.scale = self.add_weight(shape=(self.units,), name="scale", initializer="ones")
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.units))
        self.built = True

    def call(self, x, training=None):
        y = self.drop(self.norm(self.dense(x), training=training), training=training)
        return y * self.scale + ops.mean(x, axis=-1, keepdims=True)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Raw(Block):
    """Calls TensorFlow: cannot be traced, is wrapped."""

    def call(self, x):
        return tf.nn.relu(self.scale * self.dense(x))

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], self.units))


class Noisy(layers.Layer):
    """Computes something else in training: is wrapped, so that it still does."""

    def call(self, x, training=None):
        return x + 1.0 if training else x * 2.0


class DoubledTwin(tf_keras.layers.Layer):
    def build(self, shape):
        self.by = self.add_weight(name="by", shape=(1,))

    def call(self, x):
        return x * self.by


class Doubled(layers.Layer):
    tf_keras_twin = DoubledTwin

    def build(self, shape):
        self.by = self.add_weight(name="by", shape=(1,), initializer="ones")

    def call(self, x):
        return tf.multiply(x, self.by)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape)


def swirl(x):
    return ops.tanh(x) * ops.sin(x)


class Net(keras.Model):
    """A subclassed model."""

    def __init__(self, classes=10, **common):
        super().__init__(**common)
        self.conv = layers.Conv2D(4, 3, strides=2, activation="relu", name="conv")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.block = Block(6, name="block")
        self.head = layers.Dense(classes, activation="softmax", name="head")

    def call(self, x, training=None):
        return self.head(self.block(self.pool(self.conv(x)), training=training))

    def get_config(self):
        return {**super().get_config(), "classes": self.head.units}


class Weighted(keras.Model):
    """A subclassed model with its own weight."""

    def __init__(self, **common):
        super().__init__(**common)
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.shift = self.add_weight(shape=(3,), name="shift")
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x) + self.shift


def net(classes):
    return Net(classes)


def functional_net(input_shape, classes):
    x = layers.Input(input_shape)
    y = Block(6, name="block")(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, strides=2, activation="relu")(x)))
    return keras.Model(x, layers.Dense(classes, activation="softmax")(y))


OBJECTS = {"Block": Block, "Raw": Raw, "Noisy": Noisy, "Doubled": Doubled, "swirl": swirl, "Net": Net,
           "Weighted": Weighted}


def objects():
    return OBJECTS


nothing = 3
'''


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a module of custom layers, and a model file of each."""
    (tmp_path / "mylayers.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def own_objects(base: Path) -> dict[str, Any]:
    return custom_objects.load("mylayers:OBJECTS", base)


def _model(layer: Any, shape: tuple[int, ...] = (5,)) -> Any:
    x = keras.Input(shape, name="x")
    return keras.Model(x, layer(x), name="net")


MAKERS = {  # o: the custom objects
    "block": (lambda o: _model(o["Block"](4, name="b")), {"Dense", "BatchNormalization", "Dropout", "WeightLayer"}),
    "block twice": (
        lambda o: (lambda b: _model(lambda x: keras.ops.add(b(x), b(-x))))(o["Block"](4, name="b")),
        {"Dense", "BatchNormalization", "Dropout", "WeightLayer"},
    ),
    "raw": (lambda o: _model(o["Raw"](4, name="r")), {"Keras3Layer"}),
    "noisy": (lambda o: _model(o["Noisy"](name="n")), {"Keras3Layer"}),
    "twin": (lambda o: _model(o["Doubled"](name="d")), {"DoubledTwin"}),
    "wrapped": (
        lambda o: _model(keras.layers.TimeDistributed(o["Block"](4, name="b"), name="t"), (3, 5)), {"Keras3Layer"}
    ),
    "activation": (
        lambda o: _model(keras.layers.Dense(3, activation=o["swirl"], name="d")), {"Dense", "Keras3Layer"}
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_is_bridged_stored_and_exported(name: str, base: Path, own_objects: dict[str, Any]) -> None:
    make, classes = MAKERS[name]
    model = make(own_objects)
    model.save(base / "m.keras")
    with custom_objects.scope(own_objects):
        loaded = load_model(base / "m.keras")
        bridged = bridge(loaded)
        assert bridged.difference.worst_difference.relative_error < STRICT, bridged.difference.text()
        assert classes <= {type(layer).__name__ for layer in bridged.model.layers}
        assert bool(bridged.keras3_notes) == ("Keras3Layer" in classes)
        save_float(bridged.model, base / "f.keras")
        samples = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype("float32")
        reloaded = load_model(base / "f.keras")
        assert np.array_equal(reloaded(samples), bridged.model(samples))
        exported = export_to_keras3(reloaded)
        assert exported.difference.worst_difference.relative_error < STRICT
        assert np.allclose(exported.model(samples), model(samples), atol=1e-5)


def test_a_layer_that_differs_in_training_still_does(own_objects: dict[str, Any]) -> None:
    twin = bridge(_model(own_objects["Noisy"]())).model
    ones = np.ones((2, 5), "float32")
    assert np.array_equal(twin(ones, training=True), ones + 1)
    assert np.array_equal(twin(ones, training=False), ones * 2)


def test_a_wrapped_layer_trains(own_objects: dict[str, Any]) -> None:
    twin = bridge(_model(own_objects["Raw"](4))).model
    weights_before = [weight.numpy() for weight in twin.trainable_weights]
    twin.compile("sgd", "mse")
    twin.fit(np.ones((8, 5)), np.ones((8, 4)), verbose=0)
    assert all(
        not np.array_equal(a, b.numpy()) for a, b in zip(weights_before, twin.trainable_weights[:1], strict=False)
    )


def test_subclassed_models(base: Path, own_objects: dict[str, Any]) -> None:
    net = own_objects["Net"](3)
    net(np.zeros((1, 8, 8, 2), "float32"))
    net.save(base / "net.keras")
    with custom_objects.scope(own_objects):
        loaded = load_model(base / "net.keras")
        bridged = bridge(loaded)
    assert bridged.difference.worst_difference.relative_error < STRICT
    assert {"conv", "pool", "head", "block_dense"} <= {layer.name.split("_7")[0] for layer in loaded.layers} | {
        "_".join(layer.name.split("_")[:2]) for layer in bridged.model.layers
    }
    weighted = own_objects["Weighted"]()
    weighted.build((None, 5))
    assert bridge(weighted).difference.worst_difference.relative_error < STRICT


def test_a_subclassed_model_from_a_function_takes_the_shape_of_the_data(base: Path) -> None:
    class Splits:
        """The part of the splits that `build_model` reads."""

        class train:  # noqa: N801
            x = np.zeros((4, 8, 8, 2), "float32")

        class_count = 3

    model = build_model("mylayers:net", {}, base, Splits()).model  # type: ignore[arg-type]
    assert model.input_shape == (None, 8, 8, 2)
    with pytest.raises(InputError, match=r"subclassed model \(Net\) whose input shape is not known; build it with"):
        build_model("mylayers:net", {"classes": 3}, base, None)


PIPELINE = """\
name: own
model: {path: m.keras, custom_objects: "mylayers:OBJECTS"}
data: edgepipe.data:digits
task: classification
stages:
  - train: {epochs: 1, batch_size: 256}
  - prune: {epochs: 1, batch_size: 256}
  - export: {format: keras}
  - convert: {scheme: dynamic}
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["path", "function"])
def test_known_in_every_stage_also_from_the_cache(source: str, base: Path, own_objects: dict[str, Any]) -> None:
    if source == "path":
        model = own_objects["Net"](10)
        model(np.zeros((1, 8, 8, 1), "float32"))
        model.save(base / "m.keras")
        text = PIPELINE
    else:
        text = PIPELINE.replace('{path: m.keras, custom_objects: "mylayers:OBJECTS"}', '"mylayers:functional_net"')
    only_converted = text[: text.index("  - train")] + "  - convert: {scheme: float32}\n"
    first = _run(base, only_converted)
    assert [stage.status for stage in first.stages] == ["ran", "ran"]
    report = _run(base, text)  # takes the model from the cache
    assert [stage.status for stage in report.stages] == ["cached", "ran", "ran", "ran", "ran"]
    assert any("written back to Keras 3" in note for note in report.stage("export").outcome.notes)
    (base / "mylayers.py").write_text(MODULE + "\n# another digest\n")
    assert _run(base, only_converted).stages[0].status == "ran"


def _run(base: Path, pipeline: str) -> Report:
    (base / "p.yaml").write_text(pipeline)
    return api.run(base / "p.yaml", output_dir=base / "out", cache_dir=base / "cache")


WRONG = [
    ("mylayers:NOTHERE", "module 'mylayers' has no 'NOTHERE'"),
    ("nowhere:OBJECTS", "no module 'nowhere'"),
    ("mylayers", "custom_objects 'mylayers' is not of the form module:attribute"),
]


@pytest.mark.parametrize(("reference", "message"), WRONG)
def test_check_finds_a_wrong_reference(reference: str, message: str, base: Path, own_objects: dict[str, Any]) -> None:
    _model(own_objects["Block"](4)).save(base / "m.keras")
    (base / "p.yaml").write_text(PIPELINE.replace("mylayers:OBJECTS", reference))
    with pytest.raises(ConfigError, match=message):
        load_pipeline(base / "p.yaml")


def test_check_validates_custom_objects(base: Path, own_objects: dict[str, Any], command: Command) -> None:
    _model(own_objects["Block"](4)).save(base / "m.keras")
    (base / "p.yaml").write_text(PIPELINE)
    assert command("check", base / "p.yaml").code == 0
    wrong = PIPELINE.replace("mylayers:OBJECTS", "mylayers:nothing")
    (base / "p.yaml").write_text(wrong.replace("  - train: {epochs: 1, batch_size: 256}\n", ""))
    with pytest.raises(InputError, match="custom_objects 'mylayers:nothing' must be a dictionary name -> class"):
        custom_objects.load("mylayers:nothing", base)
    assert custom_objects.load("mylayers:objects", base).keys() >= {"Block", "DoubledTwin"}
    assert custom_objects.load("mylayers:Block", base).keys() >= {"Block"}


def test_convert_takes_custom_objects(
    base: Path, own_objects: dict[str, Any], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base)
    _model(own_objects["Block"](4)).save(base / "m.keras")
    accepted = command("convert", "m.keras", "--scheme", "float32", "--custom-objects", "mylayers:OBJECTS")
    assert accepted.code == 0, accepted.err
    assert (base / "m.tflite").is_file()
    refused = command("convert", "m.keras", "--scheme", "float32", "--custom-objects", "mylayers:swirl")
    assert refused.code == 2
