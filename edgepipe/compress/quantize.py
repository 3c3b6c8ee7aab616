"""Quantization-aware training with tfmot, and fake-quant models on disk.

Jacob et al. 2018 (arXiv 1712.05877): weights and activations pass through fake-quant while training, so that the
network learns to live with rounding. A fake-quant model cannot be reloaded from a `.keras` file of its own (its
wrappers lose variables); it is stored as what it was made from - the float model and the recipe - and its weights.
"""

import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2

from edgepipe.artifact import BASE_FILE, RECIPE_FILE, WEIGHTS_FILE, Kind
from edgepipe.compress.kernels import kernel
from edgepipe.errors import InputError
from edgepipe.models.loading import load, save_float

Scheme = Literal["default_8bit", "default_8bit_preserve_sparsity"]
SPARSE_FROM = 0.1  # a kernel with a tenth of zeros was pruned; rounding to float32 never gives that by chance


def is_sparse(model: Any) -> bool:
    """Whether any kernel of `model` holds more exact zeros than chance gives."""
    kernels = [np.asarray(weights) for weights in map(kernel, model.layers) if weights is not None]
    return any(1 - np.count_nonzero(values) / values.size > SPARSE_FROM for values in kernels)


def fake_quant(model: Any, scheme: Scheme) -> Any:
    """`model` with tfmot's fake-quant on weights and activations.

    Raises:
        InputError: a layer that tfmot does not support, named, with tfmot's reason.
    """
    integers = [f"'{tensor.name}' ({tensor.dtype.name})" for tensor in model.inputs if not tensor.dtype.is_floating]
    if integers:
        raise InputError(
            f"tfmot cannot quantize '{model.name}': its input {', '.join(integers)} is not a float; "
            "leave out `quantize`, `convert` quantizes such a model by calibration"
        )
    try:
        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        if scheme == "default_8bit":
            return tfmot.quantization.keras.quantize_apply(annotated)
        preserve = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
        return tfmot.quantization.keras.quantize_apply(annotated, preserve)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"tfmot cannot quantize '{model.name}': {' '.join(str(error).split())}") from error


def left_in_float(model: Any) -> list[str]:
    """The layers of a fake-quant model that carry no fake-quant at all, except inputs."""
    known = (QuantizeWrapperV2, tf_keras.layers.InputLayer)
    quantize_layer = "QuantizeLayer"
    return [
        layer.name for layer in model.layers if not isinstance(layer, known) and type(layer).__name__ != quantize_layer
    ]


def save(model: Any, base: Any, scheme: Scheme, folder: Path) -> None:
    """Write the fake-quant `model` that `fake_quant(base, scheme)` made, with its trained weights, to `folder`."""
    folder.mkdir(parents=True)
    save_float(base, folder / BASE_FILE)
    recipe = {"scheme": scheme, "weights": [[w.name, list(w.shape), w.dtype.name] for w in model.weights]}
    (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=1))
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        np.savez(stream, **{str(index): value for index, value in enumerate(model.get_weights())})


def restore(folder: Path) -> Any:
    """The fake-quant model that `save` wrote.

    Raises:
        InputError: a file is missing or damaged, or what is rebuilt has other weights than what was saved.
    """
    try:
        recipe = json.loads((folder / RECIPE_FILE).read_text())
        with (folder / WEIGHTS_FILE).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            weights = [stored[str(index)] for index in range(len(recipe["weights"]))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: not a readable fake-quant model: {error}") from error
    model = fake_quant(load(folder / BASE_FILE, Kind.FLOAT, allow_code=False), recipe["scheme"])
    rebuilt = [[list(w.shape), w.dtype.name] for w in model.weights]
    if rebuilt != [entry[1:] for entry in recipe["weights"]]:
        raise InputError(f"{folder}: the rebuilt fake-quant model has other weights than the stored one")
    model.set_weights(weights)
    return model
