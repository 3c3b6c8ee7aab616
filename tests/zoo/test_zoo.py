"""The zoo's architectures: light to import, named without counters, and good enough for the demo."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from edgepipe import zoo
from edgepipe.core import references
from edgepipe.core.errors import InputError
from edgepipe.data.data_spec import FunctionSpec
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import Split


def test_importing_the_zoo_loads_no_tensorflow() -> None:
    code = "import sys, edgepipe.zoo; print([m for m in ('tensorflow', 'keras', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", zoo.__all__)
def test_a_pipeline_can_name_it(name: str) -> None:
    references.check(f"edgepipe.zoo:{name}", Path())
    assert references.load(f"edgepipe.zoo:{name}", Path()) is getattr(zoo, name)


@pytest.mark.parametrize("name", ["small_cnn", "ds_cnn"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (49, 10, 1), (28, 28, 3), (1, 1, 2), (3, 40, 1)])
def test_classifiers(name: str, shape: tuple[int, ...]) -> None:
    model = getattr(zoo, name)(input_shape=shape, classes=5)
    outputs = np.asarray(model(np.random.RandomState(0).rand(3, *shape).astype("f4")))
    assert outputs.shape == (3, 5)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)


def test_hello_edge_size() -> None:
    """The small DS-CNN of the paper: 49x10 MFCC, 12 keywords; table 6 gives 38.6 KB of 8-bit weights in all."""
    model = zoo.ds_cnn(input_shape=(49, 10, 1), classes=12)
    weights = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert 20_000 < weights < 38_600


def test_autoencoder_gives_back_the_shape() -> None:
    model = zoo.autoencoder(input_shape=(8, 8, 1))
    assert model.output_shape == (None, 8, 8, 1)
    assert model.get_layer("code").units == 8
    assert zoo.autoencoder(input_shape=(640,), widths=(16,)).output_shape == (None, 640)


@pytest.mark.parametrize("name", ["small_cnn", "ds_cnn"])
def test_names_do_not_depend_on_what_was_built_before(name: str) -> None:
    build = getattr(zoo, name)
    first = [layer.name for layer in build(input_shape=(8, 8, 1), classes=3).layers]
    keras.layers.Conv2D(1, 1)
    second = [layer.name for layer in build(input_shape=(8, 8, 1), classes=3).layers]
    assert first == second
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((64,), 10, r"takes images \(height, width, channels\), found samples of shape \(64,\)"),
        ((8, 8), 10, "add the channel axis to the data"),
        ((8, 8, 1), 1, "needs at least 2 classes, found 1"),
    ],
)
def test_wrong_shapes(shape: tuple[int, ...], classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        zoo.small_cnn(input_shape=shape, classes=classes)


@pytest.mark.slow
def test_small_cnn_learns_the_digits() -> None:
    spec = FunctionSpec(function="edgepipe.data:digits")
    splits = load(spec, Path(), 7, frozenset({Split.TRAIN, Split.VALIDATION}))
    keras.utils.set_random_seed(7)
    model = zoo.small_cnn(input_shape=(8, 8, 1), classes=10)
    assert 20_000 <= model.count_params() <= 60_000
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(splits.train.x, splits.train.y, epochs=20, batch_size=32, verbose=0)
    assert model.evaluate(splits.validation.x, splits.validation.y, verbose=0)[1] >= 0.97
