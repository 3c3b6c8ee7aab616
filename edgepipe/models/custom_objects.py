"""Classes and functions of the user's own that a model file needs: `custom_objects: module:attribute`.

The attribute is a dictionary name -> class or function, one class, or a function that returns such a dictionary. For a
model built by `module:function`, the layer classes of that module are known without being listed.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import keras
import tf_keras

from edgepipe.core import references
from edgepipe.core.errors import InputError

_known: ContextVar[Mapping[str, Any] | None] = ContextVar("custom objects", default=None)


def load(reference: str, base: Path) -> dict[str, Any]:
    """The objects that `module:attribute` names, by the name under which a model file may ask for them.

    Raises:
        InputError: the module fails to import, or the attribute is none of what is allowed.
    """
    if not references.is_reference(reference):
        raise InputError(f"custom_objects '{reference}' is not of the form module:attribute")
    found = references.attribute(reference, base)
    if inspect.isfunction(found):
        try:
            found = found()
        except Exception as error:
            raise InputError(f"custom_objects '{reference}' failed: {type(error).__name__}: {error}") from error
    if inspect.isclass(found):
        found = {found.__name__: found}
    if not isinstance(found, dict) or not all(isinstance(name, str) and callable(found[name]) for name in found):
        raise InputError(
            f"custom_objects '{reference}' must be a dictionary name -> class or function, a class, or a function "
            f"that returns such a dictionary; it is a {type(found).__name__}"
        )
    return _all_names(found)


def of_module(function: str, base: Path) -> dict[str, Any]:
    """The classes of layers and models that the module of `module:function` defines or imports from beside itself."""
    module = inspect.getmodule(references.load(function, base))
    classes = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, keras.Layer) and not value.__module__.startswith("keras.")
    }
    return _all_names(classes)


def _all_names(objects: Mapping[str, Any]) -> dict[str, Any]:
    """`objects` also under their own and their registered names, and the tf_keras twins of layer classes."""
    named = dict(objects)
    for value in objects.values():
        twin = getattr(value, "tf_keras_twin", None)
        for part in (value, *([] if twin is None else [twin])):
            named[part.__name__] = part
            named[keras.saving.get_registered_name(value)] = value
    return named


@contextlib.contextmanager
def known(objects: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block both Keras libraries, and the check for code in model files, know `objects`."""
    token = _known.set({**current(), **objects})
    try:
        with keras.saving.custom_object_scope(dict(objects)), tf_keras.saving.custom_object_scope(dict(objects)):
            yield
    finally:
        _known.reset(token)


def current() -> Mapping[str, Any]:
    """The objects known here."""
    return _known.get() or {}
