"""The user's own classes and functions that a model file needs: `custom_objects: module:attribute`.

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

_active_objects: ContextVar[Mapping[str, Any] | None] = ContextVar("custom objects", default=None)


def load(reference: str, base_folder: Path) -> dict[str, Any]:
    """The objects of `module:attribute`, by the names under which a model file may refer to them.

    Raises:
        InputError: the module cannot be imported, or the attribute is not of an allowed type.
    """
    if not references.is_reference(reference):
        raise InputError(f"custom_objects '{reference}' is not of the form module:attribute")
    objects = references.load_attribute(reference, base_folder)
    if inspect.isfunction(objects):
        try:
            objects = objects()
        except Exception as error:
            raise InputError(f"custom_objects '{reference}' failed: {type(error).__name__}: {error}") from error
    if inspect.isclass(objects):
        objects = {objects.__name__: objects}
    if not isinstance(objects, dict) or not all(isinstance(name, str) and callable(objects[name]) for name in objects):
        raise InputError(
            f"custom_objects '{reference}' must be a dictionary name -> class or function, a class, or a function "
            f"that returns such a dictionary; it is a {type(objects).__name__}"
        )
    return _add_registered_names(objects)


def load_module_classes(function_reference: str, base_folder: Path) -> dict[str, Any]:
    """The layer and model classes that the module of `module:function` defines or imports, except those of Keras."""
    module = inspect.getmodule(references.load(function_reference, base_folder))
    class_by_name = {
        name: cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, keras.Layer) and not cls.__module__.startswith("keras.")
    }
    return _add_registered_names(class_by_name)


def _add_registered_names(objects: Mapping[str, Any]) -> dict[str, Any]:
    """`objects` also under their own and their registered names, plus the tf_keras twins of layer classes."""
    objects_by_name = dict(objects)
    for custom_object in objects.values():
        twin = getattr(custom_object, "tf_keras_twin", None)
        for named_object in (custom_object, *([] if twin is None else [twin])):
            objects_by_name[named_object.__name__] = named_object
            objects_by_name[keras.saving.get_registered_name(custom_object)] = custom_object
    return objects_by_name


@contextlib.contextmanager
def scope(objects: Mapping[str, Any]) -> Iterator[None]:
    """Make `objects` known to both Keras libraries, and to the check for code in model files, inside the block."""
    context_token = _active_objects.set({**active_objects(), **objects})
    try:
        with keras.saving.custom_object_scope(dict(objects)), tf_keras.saving.custom_object_scope(dict(objects)):
            yield
    finally:
        _active_objects.reset(context_token)


def active_objects() -> Mapping[str, Any]:
    """The custom objects of the enclosing scopes, by name."""
    return _active_objects.get() or {}
