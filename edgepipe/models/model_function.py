"""Models that a user's function builds."""

import inspect
from pathlib import Path
from typing import Any

import keras
import numpy as np

from edgepipe.core import references
from edgepipe.core.errors import InputError
from edgepipe.data.splits import Splits
from edgepipe.models.keras3_graph import is_model
from edgepipe.models.subclassed import functional


def build(function: str, args: dict[str, Any], base: Path, splits: Splits | None) -> keras.Model:
    """Call `module:function` with `args`; `input_shape` and `classes` come from the data if it takes them.

    Raises:
        InputError: the function fails, or gives anything but a built Keras 3 model.
    """
    call = references.load(function, base)
    given = {**_from_data(call, splits), **args}
    try:
        inspect.signature(call).bind(**given)
    except TypeError as error:
        hint = "" if splits else "; without `data:`, input_shape and classes must stand in `args`"
        raise InputError(f"'{function}' cannot be called with {sorted(given)}: {error}{hint}") from None
    try:
        model = call(**given)
    except Exception as error:
        raise InputError(f"'{function}' failed: {type(error).__name__}: {error}") from error
    return _checked(function, model, splits)


def _checked(function: str, model: Any, splits: Splits | None) -> keras.Model:
    if not isinstance(model, keras.Model):
        origin = f"{type(model).__module__}.{type(model).__qualname__}"
        raise InputError(f"'{function}' must give a Keras 3 model (keras.Model), it gave a {origin}")
    if not isinstance(model, keras.Sequential) and not is_model(model):
        return functional(model, splits.train.x if splits else None)
    if not model.built:
        raise InputError(f"the model of '{function}' has no weights yet; begin it with an Input of known shape")
    return model


def _from_data(call: Any, splits: Splits | None) -> dict[str, Any]:
    if splits is None:
        return {}
    wanted = inspect.signature(call).parameters
    known: dict[str, Any] = {}
    if "input_shape" in wanted and isinstance(splits.train.x, np.ndarray):
        known["input_shape"] = tuple(splits.train.x.shape[1:])
    if "classes" in wanted and splits.classes is not None:
        known["classes"] = splits.classes
    return known
