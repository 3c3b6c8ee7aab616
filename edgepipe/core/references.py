"""Code named as `module:function`: whether it exists, without importing it, and loading it."""

import ast
import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.core.module_sources import find_source, import_closure, parse_source, source_digest

_digest_by_module: dict[str, str] = {}  # module -> digest of its source when it was imported


def is_reference(text: str) -> bool:
    """Whether `text` has the form `module:function`."""
    module_name, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(package.isidentifier() for package in module_name.split("."))


def check(reference: str, base_folder: Path) -> None:
    """Raise an `InputError` unless `module:function` exists; only the source is read, nothing is run."""
    module_name, _, name = reference.partition(":")
    tree = parse_source(find_source(module_name, base_folder))
    defined_names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    defined_names |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    defined_names |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if name not in defined_names and "__getattr__" not in defined_names:
        raise InputError(f"module '{module_name}' has no '{name}'")


def load(reference: str, base_folder: Path) -> Callable[..., Any]:
    """Import `module:function`. A module whose source changed since it was imported here is imported again.

    Raises:
        InputError: the module fails to import, lacks the name, or the name is not callable.
    """
    function = load_attribute(reference, base_folder)
    if not callable(function):
        raise InputError(f"'{reference}' is not callable")
    return function  # type: ignore[no-any-return]


def load_attribute(reference: str, base_folder: Path | None) -> Any:
    """Import `module:name`, which may be anything; otherwise as `load`."""
    module_name, _, name = reference.partition(":")
    current_digest = source_digest(module_name, base_folder)
    if (
        sys.modules.get(module_name) is not None
        and module_name in _digest_by_module
        and _digest_by_module[module_name] != current_digest
    ):
        for stale_module in import_closure(module_name, base_folder):
            sys.modules.pop(stale_module, None)
    try:
        attribute = getattr(_import_module(module_name, base_folder), name)
    except EdgepipeError:
        raise
    except Exception as error:
        raise InputError(f"'{reference}' cannot be loaded: {type(error).__name__}: {error}") from error
    _digest_by_module[module_name] = current_digest
    return attribute


def _import_module(module_name: str, base_folder: Path | None) -> Any:
    if base_folder is None:
        return importlib.import_module(module_name)
    sys.path.insert(0, str(base_folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    finally:
        sys.path.remove(str(base_folder))


@functools.cache
def installed_version(package: str) -> str:
    """The installed version of `package`, or `absent`; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
