"""Models built by a user's function."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from edgepipe.core import references
from edgepipe.core.errors import InputError
from edgepipe.data.splits import DatasetSplits
from edgepipe.models.float32_rebuild import Float32Model, float32_by_default, in_float32
from edgepipe.models.keras3_graph import is_model
from edgepipe.models.subclassed import to_functional


def build_model(
    function_reference: str, args: dict[str, Any], base_folder: Path, splits: DatasetSplits | None
) -> Float32Model:
    """Build a model with the user's function; `input_shape` and `classes` come from the data if it takes them.

    One that computes in other floats is rebuilt in float32; a policy that the function sets is reset after it.

    Args:
        function_reference: `module:function`.
        args: Its keyword arguments, which override those from the data.
        base_folder: Folder of the pipeline file, searched for the module first.
        splits: The data; None if the pipeline has none.

    Raises:
        InputError: the function fails, or returns anything but a built Keras 3 model.
    """
    with float32_by_default():
        model = _call_function(function_reference, args, base_folder, splits)
    return in_float32(_check_model(function_reference, model, splits))


def _call_function(
    function_reference: str, args: dict[str, Any], base_folder: Path, splits: DatasetSplits | None
) -> Any:
    model_function = references.load(function_reference, base_folder)
    call_args = {**_arguments_from_data(model_function, splits), **args}
    try:
        inspect.signature(model_function).bind(**call_args)
    except TypeError as error:
        hint = "" if splits else "; without `data:`, give input_shape and classes in `args`"
        raise InputError(f"'{function_reference}' cannot be called with {sorted(call_args)}: {error}{hint}") from None
    try:
        return model_function(**call_args)
    except Exception as error:
        raise InputError(f"'{function_reference}' failed: {type(error).__name__}: {error}") from error


def _check_model(function_reference: str, model: Any, splits: DatasetSplits | None) -> keras.Model:
    if not isinstance(model, keras.Model):
        model_class = f"{type(model).__module__}.{type(model).__qualname__}"
        raise InputError(
            f"'{function_reference}' must return a Keras 3 model (keras.Model), it returned a {model_class}"
        )
    if not isinstance(model, keras.Sequential) and not is_model(model):
        return to_functional(model, splits.train.x if splits else None)
    if not model.built:
        raise InputError(
            f"the model of '{function_reference}' has no weights yet; start it with an Input of known shape"
        )
    return model


def _arguments_from_data(model_function: Callable[..., Any], splits: DatasetSplits | None) -> dict[str, Any]:
    if splits is None:
        return {}
    parameters = inspect.signature(model_function).parameters
    arguments: dict[str, Any] = {}
    if "input_shape" in parameters and isinstance(splits.train.x, np.ndarray):
        arguments["input_shape"] = tuple(splits.train.x.shape[1:])
    if "classes" in parameters and splits.class_count is not None:
        arguments["classes"] = splits.class_count
    return arguments
