"""Code named as `module:function`: where its source is, a digest of it, and loading it.

Digests are taken from the files, without importing anything: a cached run must not load what it will not use. A
digest covers the module and every module it imports, directly or not, from the same package or folder, so that an edit
to a helper counts as much as an edit to the function.
"""

import ast
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepipe.core.artifact import file_digest, text_digest
from edgepipe.core.errors import EdgepipeError, InputError

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_digest_by_module: dict[str, str] = {}  # module -> digest of its source when it was imported


def is_reference(text: str) -> bool:
    """Whether `text` has the form `module:function`."""
    module_name, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(package.isidentifier() for package in module_name.split("."))


def find_source(module_name: str, base_folder: Path | None) -> Path:
    """The source file of `module`, looked up in `base` first, then as Python would; nothing is imported.

    Raises:
        InputError: there is no such module, or it has no Python source.
    """
    own_folders = [str(base_folder)] if base_folder is not None else []
    search_path = [*own_folders, str(PACKAGE_ROOT), *(folder for folder in sys.path if folder)]
    module_spec = None
    for index, _ in enumerate(module_name.split(".")):
        module_spec = importlib.machinery.PathFinder.find_spec(
            ".".join(module_name.split(".")[: index + 1]), search_path
        )
        if module_spec is None:
            folder_hint = f"beside the pipeline ({base_folder}) or " if base_folder is not None else ""
            raise InputError(f"no module '{module_name}' {folder_hint}on Python's path")
        search_path = list(module_spec.submodule_search_locations or [])
    if module_spec is None or module_spec.origin is None or not module_spec.origin.endswith(".py"):
        raise InputError(f"module '{module_name}' has no Python source file")
    return Path(module_spec.origin)


def check(reference: str, base_folder: Path) -> None:
    """Raise an `InputError` unless `module:function` exists; only the source is read, nothing is run."""
    module_name, _, name = reference.partition(":")
    tree = _parse(find_source(module_name, base_folder))
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


def source_digest(module_name: str, base_folder: Path | None = None) -> str:
    """SHA-256 over the sources of `module` and what it imports from its own package, or from the folder `base`."""
    path_by_module = import_closure(module_name, base_folder)
    return text_digest(
        *(text for name in sorted(path_by_module) for text in (name, _current_file_digest(path_by_module[name])))
    )


def import_closure(module_name: str, base_folder: Path | None) -> dict[str, Path]:
    """Every module that `module` imports, directly or not, within its own package or folder, with its file.

    Without a folder `base` only its own package counts: installed packages share one folder.
    """
    path_by_module: dict[str, Path] = {}
    pending_modules = [module_name]
    while pending_modules:
        name = pending_modules.pop()
        if name not in path_by_module:
            path_by_module[name] = find_source(name, base_folder)
            local_imports = (
                pair
                for pair in _list_imports(path_by_module[name], name)
                if _is_local(pair[0], module_name, base_folder)
            )
            pending_modules += [_resolve_import(origin, attribute, base_folder) for origin, attribute in local_imports]
    return path_by_module


def _is_local(name: str, root_module: str, base_folder: Path | None) -> bool:
    top_package = name.split(".")[0]
    if top_package == root_module.split(".")[0]:
        return True
    return base_folder is not None and (
        (base_folder / f"{top_package}.py").is_file() or (base_folder / top_package / "__init__.py").is_file()
    )


def _resolve_import(origin: str, attribute: str, base_folder: Path | None) -> str:
    # `from package import name` needs the package's own __init__ only if `name` is not a module in it.
    if attribute:
        with contextlib.suppress(InputError):
            find_source(f"{origin}.{attribute}", base_folder)
            return f"{origin}.{attribute}"
    return origin


def _list_imports(file: Path, module_name: str) -> tuple[tuple[str, str], ...]:
    """The (module, attribute) pairs that a module imports, wherever the statement stands."""
    return _list_imports_cached(file, module_name, file.stat().st_mtime_ns)


@functools.cache
def _list_imports_cached(file: Path, module_name: str, mtime: int) -> tuple[tuple[str, str], ...]:
    package = module_name if file.name == "__init__.py" else module_name.rpartition(".")[0]
    imports: list[tuple[str, str]] = []
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.Import):
            imports += ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent_packages = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parent_packages, *([node.module] if node.module else [])])
            imports += ((origin, alias.name) for alias in node.names)
    return tuple(imports)


def _current_file_digest(file: Path) -> str:
    return _file_digest_cached(file, file.stat().st_mtime_ns)


@functools.cache
def _file_digest_cached(file: Path, mtime: int) -> str:
    return file_digest(file)


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise InputError(f"{file}:{error.lineno}:{error.offset}: not valid Python: {error.msg}") from None


@functools.cache
def installed_version(package: str) -> str:
    """The installed version of `package`, or `absent`; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
