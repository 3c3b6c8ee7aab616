"""Fake-quant models on disk: equal models give equal bytes; damage is detected."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.qat import qat_store
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant, freeze_batch_norms
from edgepipe.core.artifact import content_digest
from edgepipe.core.errors import InputError
from edgepipe.training.training_loop import set_seeds


def _base() -> tf_keras.Model:
    set_seeds(2)
    inputs = tf_keras.Input((6,), name="x")
    x = tf_keras.layers.Dense(8, name="hidden")(inputs)
    x = tf_keras.layers.ReLU()(tf_keras.layers.BatchNormalization(name="norm")(x))
    return tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="out")(x), name="base")


def _store(folder: Path, recipe: QatRecipe) -> tf_keras.Model:
    base = _base()
    model = build_fake_quant(base, recipe).model
    qat_store.save(model, base, recipe, folder)
    return model


@pytest.fixture(scope="module")
def stored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "qat"
    _store(folder, QatRecipe())
    return folder


@pytest.fixture
def qat_folder(stored_folder: Path, tmp_path: Path) -> Path:
    """A copy, to damage."""
    return Path(shutil.copytree(stored_folder, tmp_path / "qat"))


def test_equal_models_have_equal_digests(qat_folder: Path, tmp_path: Path) -> None:
    _store(tmp_path / "again", QatRecipe())
    assert content_digest(qat_folder) == content_digest(tmp_path / "again")


@pytest.mark.parametrize(
    "recipe", [QatRecipe(), QatRecipe(excluded_layers=("hid.*",)), QatRecipe(excluded_types=("Dense",))]
)
def test_the_recipe_comes_back(tmp_path: Path, recipe: QatRecipe) -> None:
    model = _store(tmp_path / "qat", recipe)
    restored = qat_store.restore_model(tmp_path / "qat")
    assert [layer.name for layer in restored.layers] == [layer.name for layer in model.layers]


@pytest.mark.slow
def test_frozen_batch_norms_do_not_mix_weights_up(tmp_path: Path) -> None:
    base = _base()
    model = build_fake_quant(base, QatRecipe()).model
    assert freeze_batch_norms(model) == ["norm"]
    x = np.random.RandomState(0).rand(64, 6).astype(np.float32)
    model.compile("adam", "mse")
    model.fit(x, np.ones((64, 3)), epochs=2, verbose=0)
    qat_store.save(model, base, QatRecipe(), tmp_path / "qat")
    assert np.array_equal(qat_store.restore_model(tmp_path / "qat").predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("name", ["base.keras", "recipe.json", "weights.npz"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damage_is_one_error(qat_folder: Path, name: str, damage: str) -> None:
    file = qat_folder / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError):
        qat_store.restore_model(qat_folder)


def test_weights_that_claim_more_than_they_hold_are_not_read(qat_folder: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(qat_folder / "weights.npz", "w") as archive:
        archive.writestr("0.npy", header.getvalue())
    with pytest.raises(InputError, match=r"weights\.npz: array '0': its header claims float32"):
        qat_store.restore_model(qat_folder)


def test_other_weights_than_the_recipe_says(qat_folder: Path) -> None:
    recipe = json.loads((qat_folder / "recipe.json").read_text())
    recipe["weights"][1][1] = [7, 7]
    (qat_folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match="other weights"):
        qat_store.restore_model(qat_folder)


def test_a_recipe_with_the_former_name_of_a_class(qat_folder: Path) -> None:
    recipe = json.loads((qat_folder / "recipe.json").read_text())
    recipe["recipe"]["leave_types"] = ["Operator"]
    (qat_folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match="no layer is of the class 'OperatorLayer'"):
        qat_store.restore_model(qat_folder)


def test_the_format_of_another_edgepipe(qat_folder: Path) -> None:
    recipe = json.loads((qat_folder / "recipe.json").read_text())
    (qat_folder / "recipe.json").write_text(json.dumps({**recipe, "format": "edgepipe.qat/1"}))
    with pytest.raises(InputError, match=r"edgepipe\.qat/1.*run `quantize` again"):
        qat_store.restore_model(qat_folder)
