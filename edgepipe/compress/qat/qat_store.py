"""Fake-quant models on disk: what they were made from, and their weights.

The layers of a fake-quant model cannot be reloaded from a `.keras` file of their own (tfmot's wrappers lose variables);
it is rebuilt from the float model and the recipe, and given its weights.
"""

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.compress.qat.fake_quant import FakeQuant, Recipe, fake_quant
from edgepipe.core.artifact import BASE_FILE, RECIPE_FILE, WEIGHTS_FILE, Kind
from edgepipe.core.errors import InputError
from edgepipe.models.model_files import load, save_float

FORMAT = "edgepipe.qat/2"  # another way of lowering or placing is another number: the weights no longer fit


def save(model: Any, base: Any, recipe: Recipe, folder: Path) -> None:
    """Write the fake-quant `model` that `fake_quant(base, recipe)` made, with its trained weights, to `folder`."""
    folder.mkdir(parents=True)
    save_float(base, folder / BASE_FILE)
    weights = [[w.name, list(w.shape), w.dtype.name] for w in model.weights]
    told = {"format": FORMAT, "recipe": asdict(recipe), "weights": weights}
    (folder / RECIPE_FILE).write_text(json.dumps(told, indent=1))
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        np.savez(stream, **{str(index): value for index, value in enumerate(model.get_weights())})


def restore(folder: Path) -> Any:
    """The fake-quant model that `save` wrote; see `restored`."""
    return restored(folder).model


def restored(folder: Path) -> FakeQuant:
    """The fake-quant model that `save` wrote, and which layers training reached.

    Raises:
        InputError: a file is missing or damaged, or what is rebuilt has other weights than what was saved.
    """
    try:
        told = json.loads((folder / RECIPE_FILE).read_text())
        recipe = _recipe(told)
        with (folder / WEIGHTS_FILE).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            weights = [stored[str(index)] for index in range(len(told["weights"]))]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: not a readable fake-quant model: {error}") from error
    made = fake_quant(load(folder / BASE_FILE, Kind.FLOAT, allow_code=False), recipe)
    model = made.model
    rebuilt = [[w.name, list(w.shape), w.dtype.name] for w in model.weights]
    if rebuilt != told["weights"]:
        raise InputError(f"{folder}: the rebuilt fake-quant model has other weights than the stored one")
    model.set_weights(weights)
    return made


def _recipe(told: dict[str, Any]) -> Recipe:
    if told["format"] != FORMAT:
        raise ValueError(f"its format is {told['format']}, this edgepipe writes {FORMAT}; run `quantize` again")
    found = told["recipe"]
    leave, types = tuple(found["leave"]), tuple(found["leave_types"])
    return Recipe(found["keep_zeros"], found["keep_clusters"], leave, types)
