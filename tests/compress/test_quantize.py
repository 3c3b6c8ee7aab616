"""Fake-quant models: sparsity kept, refusals named, damage found."""

import json
from pathlib import Path

import numpy as np
import pytest
import tf_keras

from edgepipe.artifact import content_digest
from edgepipe.compress import quantize
from edgepipe.errors import InputError
from edgepipe.training.fit import seeded


def _base(sparse: bool = False) -> tf_keras.Model:
    seeded(2)
    inputs = tf_keras.Input((6,), name="x")
    x = tf_keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="out")(x), name="base")
    if sparse:
        kernel, bias = model.get_layer("hidden").get_weights()
        model.get_layer("hidden").set_weights([np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel), bias])
    return model


def test_a_sparse_model_is_told_from_a_dense_one() -> None:
    assert quantize.is_sparse(_base(sparse=True))
    assert not quantize.is_sparse(_base())


def _zeros_after_training(scheme: str) -> tuple[int, int]:
    base = _base(sparse=True)
    zeros = base.get_layer("hidden").get_weights()[0] == 0
    model = quantize.fake_quant(base, scheme)
    model.compile(tf_keras.optimizers.SGD(0.5), "mse")
    x = np.random.RandomState(0).rand(64, 6).astype(np.float32)
    model.fit(x, np.ones((64, 3)), epochs=2, verbose=0)
    layer = model.get_layer("quant_hidden")
    layer(x, training=False)
    effective = np.asarray(layer.layer.kernel)
    return int((effective[zeros] == 0).sum()), int(zeros.sum())


def test_training_keeps_zeros_only_when_sparsity_is_preserved() -> None:
    kept, all_zeros = _zeros_after_training("default_8bit_preserve_sparsity")
    assert kept == all_zeros
    kept, all_zeros = _zeros_after_training("default_8bit")
    assert kept < all_zeros / 2


def test_a_layer_that_tfmot_does_not_know_is_named() -> None:
    inputs = tf_keras.Input((6,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.LayerNormalization(name="norm")(inputs), name="user")
    with pytest.raises(InputError, match=r"tfmot cannot quantize 'user'.*norm"):
        quantize.fake_quant(model, "default_8bit")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    base = _base()
    quantize.save(quantize.fake_quant(base, "default_8bit"), base, "default_8bit", tmp_path / "qat")
    return tmp_path / "qat"


def test_equal_models_have_equal_digests(stored: Path, tmp_path: Path) -> None:
    base = _base()
    quantize.save(quantize.fake_quant(base, "default_8bit"), base, "default_8bit", tmp_path / "again")
    assert content_digest(stored) == content_digest(tmp_path / "again")


@pytest.mark.parametrize("name", ["base.keras", "recipe.json", "weights.npz"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damage_is_one_error(stored: Path, name: str, damage: str) -> None:
    file = stored / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError):
        quantize.restore(stored)


def test_other_weights_than_the_recipe_says(stored: Path) -> None:
    recipe = json.loads((stored / "recipe.json").read_text())
    recipe["weights"][1][1] = [7, 7]
    (stored / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match="other weights"):
        quantize.restore(stored)
