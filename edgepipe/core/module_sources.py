"""The source files of a module and of what it imports, and a digest of them, without importing anything.

A digest covers the module and every module it imports, directly or not, from the same package or folder, so that an
edit to a helper counts as much as an edit to the function.
"""

import ast
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from edgepipe.core.artifact import text_digest
from edgepipe.core.errors import InputError
from edgepipe.core.file_memo import active_memo

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
IMPORTS_KIND = "imports/1"  # of the stored texts; count up when _imports_text changes
ModuleImport = tuple[str, str]  # module, and the name that is imported from it ("" for the module itself)


class SourceScan:
    """Looks up each module and each file once: sources are taken not to change while one scan is used."""

    def __init__(self) -> None:
        self._spec_by_module: dict[tuple[str, Path | None], ModuleSpec | None] = {}
        self._stems_by_folder: dict[str, frozenset[str]] = {}
        self._imports_by_file: dict[tuple[Path, str], tuple[ModuleImport, ...]] = {}
        self._neighbours_by_module: dict[tuple[str, str, Path | None], tuple[str, ...]] = {}
        self._digest_by_file: dict[Path, str] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Use this scan for every look-up in the body."""
        token = _active_scan.set(self)
        try:
            yield
        finally:
            _active_scan.reset(token)

    def find_spec(self, module_name: str, base_folder: Path | None) -> ModuleSpec | None:
        """Python's description of the module, looked up in `base_folder` first; None if there is none."""
        key = (module_name, base_folder)
        if key not in self._spec_by_module:
            search_path = self._search_path(module_name, base_folder)
            self._spec_by_module[key] = PathFinder.find_spec(module_name, search_path) if search_path else None
        return self._spec_by_module[key]

    def _search_path(self, module_name: str, base_folder: Path | None) -> list[str]:
        """The folders that may hold the module; none if it cannot be in any."""
        package, _, stem = module_name.rpartition(".")
        if not package:
            own_folders = [str(base_folder)] if base_folder is not None else []
            return [*own_folders, str(PACKAGE_ROOT), *(folder for folder in sys.path if folder)]
        package_spec = self.find_spec(package, base_folder)
        folders = list(package_spec.submodule_search_locations or []) if package_spec is not None else []
        return [folder for folder in folders if stem in self._list_stems(folder)]

    def _list_stems(self, folder: str) -> frozenset[str]:
        """What the names of files and folders in `folder` begin with; most imported names are no modules."""
        if folder not in self._stems_by_folder:
            names = os.listdir(folder) if os.path.isdir(folder) else []  # noqa: PTH112, PTH208 - no paths are needed
            self._stems_by_folder[folder] = frozenset(name.split(".")[0] for name in names)
        return self._stems_by_folder[folder]

    def list_imports(self, file: Path, module_name: str) -> tuple[ModuleImport, ...]:
        """What the module in `file` imports, wherever the statement stands."""
        key = (file, module_name)
        if key not in self._imports_by_file:
            kind = f"{IMPORTS_KIND} of {module_name}"
            text = active_memo().text_of(file, kind, lambda path: _imports_text(path, module_name))
            self._imports_by_file[key] = tuple((module, name) for module, name in json.loads(text))
        return self._imports_by_file[key]

    def list_neighbours(self, module_name: str, top_package: str, base_folder: Path | None) -> tuple[str, ...]:
        """The modules that a module imports from `top_package` or from `base_folder`."""
        key = (module_name, top_package, base_folder)
        if key not in self._neighbours_by_module:
            imports = self.list_imports(_find_source(module_name, base_folder, self), module_name)
            self._neighbours_by_module[key] = tuple(
                _resolve_import(origin, name, base_folder, self)
                for origin, name in imports
                if _is_local(origin, top_package, base_folder)
            )
        return self._neighbours_by_module[key]

    def digest_of(self, file: Path) -> str:
        """The SHA-256 of the bytes of `file`."""
        if file not in self._digest_by_file:
            self._digest_by_file[file] = active_memo().digest_of(file)
        return self._digest_by_file[file]


_active_scan: ContextVar[SourceScan | None] = ContextVar("_active_scan", default=None)


def find_source(module_name: str, base_folder: Path | None) -> Path:
    """The source file of the module, looked up in `base_folder` first, then as Python would; nothing is imported.

    Raises:
        InputError: there is no such module, or it has no Python source.
    """
    return _find_source(module_name, base_folder, _current_scan())


def source_digest(module_name: str, base_folder: Path | None = None) -> str:
    """SHA-256 over the sources of the module and of what it imports from its own package, or from `base_folder`."""
    scan = _current_scan()
    path_by_module = _import_closure(module_name, base_folder, scan)
    return text_digest(
        *(text for name in sorted(path_by_module) for text in (name, scan.digest_of(path_by_module[name])))
    )


def import_closure(module_name: str, base_folder: Path | None) -> dict[str, Path]:
    """Every module that the module imports, directly or not, within its own package or folder, with its file.

    Without a `base_folder` only its own package counts: installed packages share one folder.
    """
    return _import_closure(module_name, base_folder, _current_scan())


def imported_packages(module_name: str, base_folder: Path | None) -> set[str]:
    """The top-level packages that the module and its import closure import, its own among them."""
    scan = _current_scan()
    path_by_module = _import_closure(module_name, base_folder, scan)
    return {
        origin.partition(".")[0] for name, file in path_by_module.items() for origin, _ in scan.list_imports(file, name)
    }


def parse_source(file: Path) -> ast.Module:
    """The syntax tree of a Python file.

    Raises:
        InputError: it is not valid Python; with file, line and column.
    """
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise InputError(f"{file}:{error.lineno}:{error.offset}: not valid Python: {error.msg}") from None


def _current_scan() -> SourceScan:
    return _active_scan.get() or SourceScan()


def _find_source(module_name: str, base_folder: Path | None, scan: SourceScan) -> Path:
    spec = scan.find_spec(module_name, base_folder)
    if spec is None:
        folder_hint = f"beside the pipeline ({base_folder}) or " if base_folder is not None else ""
        raise InputError(f"no module '{module_name}' {folder_hint}on Python's path")
    if not _has_source(spec):
        raise InputError(f"module '{module_name}' has no Python source file")
    return Path(spec.origin or "")


def _has_source(spec: ModuleSpec) -> bool:
    return spec.origin is not None and spec.origin.endswith(".py")


def _import_closure(module_name: str, base_folder: Path | None, scan: SourceScan) -> dict[str, Path]:
    path_by_module: dict[str, Path] = {}
    pending_modules = [module_name]
    while pending_modules:
        name = pending_modules.pop()
        if name not in path_by_module:
            path_by_module[name] = _find_source(name, base_folder, scan)
            pending_modules += scan.list_neighbours(name, module_name.split(".")[0], base_folder)
    return path_by_module


def _is_local(name: str, top_package: str, base_folder: Path | None) -> bool:
    package = name.split(".")[0]
    if package == top_package:
        return True
    return base_folder is not None and (
        (base_folder / f"{package}.py").is_file() or (base_folder / package / "__init__.py").is_file()
    )


def _resolve_import(origin: str, attribute: str, base_folder: Path | None, scan: SourceScan) -> str:
    # `from package import name` needs the package's own __init__ only if `name` is not a module in it.
    if attribute:
        spec = scan.find_spec(f"{origin}.{attribute}", base_folder)
        if spec is not None and _has_source(spec):
            return f"{origin}.{attribute}"
    return origin


def _imports_text(file: Path, module_name: str) -> str:
    """The imports of a module as JSON, which a memo can store."""
    package = module_name if file.name == "__init__.py" else module_name.rpartition(".")[0]
    imports: list[ModuleImport] = []
    for node in ast.walk(parse_source(file)):
        if isinstance(node, ast.Import):
            imports += ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent_packages = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parent_packages, *([node.module] if node.module else [])])
            imports += ((origin, alias.name) for alias in node.names)
    return json.dumps(sorted(set(imports)))
