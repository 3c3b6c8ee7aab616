"""Fails if modules of a package import each other in a cycle: `python tools/check_imports.py [FOLDER]`.

Every import statement counts, wherever it is written: inside functions and below `TYPE_CHECKING` too. `from package
import x` counts as an import of `package.x`. The root package's own lazy exports are the one exemption.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def import_graph(package: Path) -> dict[str, set[str]]:
    """The modules of the package in the folder `package`, each with those of them it imports."""
    files = {_module_name(file, package): file for file in sorted(package.rglob("*.py"))}
    graph = {module: set(_imports(file, module, files)) - {module} for module, file in files.items()}
    graph[package.name] = set()
    return graph


def _module_name(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path, module: str, files: dict[str, Path]) -> Iterator[str]:
    containing = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            parents = containing.split(".")
            prefix = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*prefix, *([node.module] if node.module else [])])
            names = (f"{origin}.{alias.name}" for alias in node.names)
            yield from (name if name in files else origin for name in names if name in files or origin in files)


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a cycle, the first of them again at the end; empty if there is no cycle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib lists a module after what it imports
    return []


def main() -> int:
    """Check the folder on the command line, else `edgepipe`; the exit code."""
    package = Path(sys.argv[1] if len(sys.argv) > 1 else "edgepipe").resolve()
    graph = import_graph(package)
    if cycle := find_cycle(graph):
        print(f"import cycle: {' -> '.join(cycle)}", file=sys.stderr)
        return 1
    print(f"no import cycle among {len(graph)} modules")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
