"""Stores fake-quant models as base model, recipe and weights.

A fake-quant model cannot be reloaded from a `.keras` file (tfmot's wrappers lose variables); it is rebuilt from the
float model and the recipe, then the stored weights are set.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.compress.qat.fake_quant import FakeQuantModel, QatRecipe, build_fake_quant
from edgepipe.core.artifact import BASE_MODEL_FILE, QAT_RECIPE_FILE, WEIGHTS_FILE, ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.npy_headers import open_npz
from edgepipe.models.keras_types import TfKerasModel
from edgepipe.models.model_files import load_model, save_float

STORE_FORMAT = "edgepipe.qat/3"  # increment when lowering or placement changes: stored weights no longer fit
_RENAMED_CLASSES = {"Operator": "OperatorLayer", "Weight": "WeightLayer"}  # their names in older recipes


def save(model: TfKerasModel, base_model: TfKerasModel, recipe: QatRecipe, folder: Path) -> None:
    """Write a trained fake-quant model to `folder`.

    Args:
        model: The fake-quant model, built by `build_fake_quant(base_model, recipe)`.
        base_model: The float model it was built from.
        recipe: The recipe it was built with.
        folder: A new folder.
    """
    folder.mkdir(parents=True)
    save_float(base_model, folder / BASE_MODEL_FILE)
    weight_specs = [[w.name, list(w.shape), w.dtype.name] for w in model.weights]
    recipe_json = {"format": STORE_FORMAT, "recipe": _recipe_fields(recipe), "weights": weight_specs}
    (folder / QAT_RECIPE_FILE).write_text(json.dumps(recipe_json, indent=1))
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        np.savez(stream, **{str(index): weight for index, weight in enumerate(model.get_weights())})


def _recipe_fields(recipe: QatRecipe) -> dict[str, Any]:
    return {
        "keep_zeros": recipe.keep_zeros,
        "keep_clusters": recipe.keep_clusters,
        "leave": recipe.excluded_layers,
        "leave_types": recipe.excluded_types,
    }


def restore_model(folder: Path) -> TfKerasModel:
    """The fake-quant model that `save` wrote; see `restore_fake_quant`."""
    return restore_fake_quant(folder).model


def restore_fake_quant(folder: Path) -> FakeQuantModel:
    """The fake-quant model that `save` wrote, with its coverage.

    Raises:
        InputError: a file is missing or damaged, or the rebuilt model has other weights than the stored ones.
    """
    try:
        recipe_json = json.loads((folder / QAT_RECIPE_FILE).read_text())
        recipe = _parse_recipe(recipe_json)
        with open_npz(folder / WEIGHTS_FILE) as stored_arrays:
            stored_weights = [stored_arrays[str(index)] for index in range(len(recipe_json["weights"]))]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: not a readable fake-quant model: {error}") from error
    fake_quant_model = build_fake_quant(
        load_model(folder / BASE_MODEL_FILE, ArtifactKind.FLOAT, allow_code=False), recipe
    )
    model = fake_quant_model.model
    rebuilt_weight_specs = [[w.name, list(w.shape), w.dtype.name] for w in model.weights]
    if rebuilt_weight_specs != recipe_json["weights"]:
        raise InputError(f"{folder}: the rebuilt fake-quant model has other weights than the stored one")
    model.set_weights(stored_weights)
    return fake_quant_model


def _parse_recipe(recipe_json: dict[str, Any]) -> QatRecipe:
    if recipe_json["format"] != STORE_FORMAT:
        raise ValueError(
            f"its format is {recipe_json['format']}, this edgepipe writes {STORE_FORMAT}; run `quantize` again"
        )
    recipe_fields = recipe_json["recipe"]
    excluded_layers = tuple(recipe_fields["leave"])
    excluded_types = tuple(_RENAMED_CLASSES.get(cls, cls) for cls in recipe_fields["leave_types"])
    return QatRecipe(recipe_fields["keep_zeros"], recipe_fields["keep_clusters"], excluded_layers, excluded_types)
