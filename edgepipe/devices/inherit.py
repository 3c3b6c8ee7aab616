"""Profiles that inherit: found by name, merged, with the position of every value kept."""

from pathlib import Path
from typing import Any

from edgepipe.config import Document, Path_, describe, read
from edgepipe.errors import did_you_mean

INHERIT = "inherit"
ABSTRACT = "abstract"
_OWN = ("name", "description", "sources", ABSTRACT, INHERIT)  # what a child never takes from its parent
_WHOLE = (("latency",), ("ram",), ("flash",))  # half of one way to obtain a metric and half of another is neither


def find(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of the profile `name`, from the first of `folders` that has it."""
    candidates = (folder / f"{name}.yaml" for folder in folders)
    return next((file for file in candidates if file.is_file()), None) if _plain(name) else None


def _plain(name: str) -> bool:
    return bool(name) and name == Path(name).name


def resolve(file: Path, folders: tuple[Path, ...]) -> Document:
    """The profile at `file` with everything it inherits; a parent is looked up beside its child, then in `folders`.

    Problems (not YAML, an unknown parent, a cycle) are noted in the document; only an unreadable file raises.
    """
    return _resolve(file, folders, ())


def _resolve(file: Path, folders: tuple[Path, ...], children: tuple[Path, ...]) -> Document:
    document = read(file)
    if document.problems:
        return document
    if not isinstance(document.data, dict):
        document.problem((), f"a device profile is a mapping, found {describe(document.data)}")
        return document
    if not isinstance(document.data.get(ABSTRACT, False), bool):
        document.problem((ABSTRACT,), f"must be true or false, found {describe(document.data[ABSTRACT])}")
    if INHERIT not in document.data:
        return document
    parent = _parent(document, file, folders, (*children, file))
    document.data.pop(INHERIT)
    if parent is None:
        return document
    return _merged(_resolve(parent, folders, (*children, file)), document)


def _parent(document: Document, file: Path, folders: tuple[Path, ...], chain: tuple[Path, ...]) -> Path | None:
    name = document.data[INHERIT]
    if not isinstance(name, str):
        document.problem((INHERIT,), f"must name one profile, found {describe(name)}")
        return None
    places = (file.parent, *folders)
    found = find(name, places)
    if found is None:
        known = {path.stem for place in places for path in place.glob("*.yaml")} - {file.stem}
        document.problem((INHERIT,), f"unknown profile '{name}'{did_you_mean(name, known)}")
        return None
    opened = [path.resolve() for path in chain]
    if found.resolve() in opened:
        cycle = [path.stem for path in opened[opened.index(found.resolve()) :]]
        document.problem((INHERIT,), f"inherits itself: {' -> '.join([*cycle, found.stem])}")
        return None
    return found


def _merged(parent: Document, child: Document) -> Document:
    """`child` laid over `parent`; each value keeps the position of the file that holds it."""
    result = Document(child.source, problems=[*parent.problems, *child.problems])
    if not isinstance(parent.data, dict):
        return result
    _drop(parent, _OWN)
    result.keys, result.values = dict(parent.keys), dict(parent.values)
    result.data = _overlay(result, (), parent.data, child.data)
    result.keys |= child.keys
    result.values |= child.values
    return result


def _drop(document: Document, keys: tuple[str, ...]) -> None:
    for key in keys:
        document.data.pop(key, None)
        _forget(document, (key,))


def _overlay(result: Document, path: Path_, parent: Any, child: Any) -> Any:
    if not isinstance(parent, dict) or not isinstance(child, dict) or path in _WHOLE:
        _forget(result, path)  # the child's value replaces all that stood here
        return child
    merged = dict(parent)
    for key, value in child.items():
        merged[key] = _overlay(result, (*path, key), parent[key], value) if key in parent else value
    return merged


def _forget(document: Document, path: Path_) -> None:
    for table in (document.keys, document.values):
        for inner in [place for place in table if place[: len(path)] == path]:
            del table[inner]


def is_abstract(file: Path) -> bool:
    """Whether the profile at `file` is only there for others to inherit."""
    data = read(file).data
    return isinstance(data, dict) and data.get(ABSTRACT) is True
