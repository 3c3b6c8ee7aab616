"""Profiles that inherit: found by name, merged, with the position and the source of every value kept."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from edgepipe.core.config import Document, Path_, describe, parse, read_text
from edgepipe.core.errors import did_you_mean
from edgepipe.devices import citations
from edgepipe.devices.citations import Citations

INHERIT = "inherit"
ABSTRACT = "abstract"
PARTS = ("systems", "runtimes", "fits")  # the subfolders of profiles that are only there for others to inherit
_OWN = ("name", "description", citations.SOURCES, ABSTRACT, INHERIT)  # what a child never takes from its parent
_WHOLE = (("latency",), ("ram",), ("flash",))  # half of one way to obtain a metric and half of another is neither


@dataclass
class Resolved:
    """A profile with everything it inherits: the values, and where each of them was taken from."""

    document: Document
    citations: Citations = field(default_factory=dict)


def find(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of the profile `name`, such as `host` or `systems/rp2040-pico`: the first that `folders` have."""
    candidates = (folder / f"{name}.yaml" for folder in folders)
    return next((file for file in candidates if file.is_file()), None) if _plain(name) else None


def _plain(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def resolve(file: Path, folders: tuple[Path, ...]) -> Document:
    """The profile at `file` with everything it inherits; a parent is looked up beside its child, then in `folders`.

    `sources` of the result maps each field that somebody gave a source for to that source. Problems (not YAML, an
    unknown parent, a cycle) are noted in the document; only an unreadable file raises.
    """
    found = _resolve(file, folders, ())
    if isinstance(found.document.data, dict):
        found.document.data = {
            **found.document.data,
            citations.SOURCES: citations.collapsed(found.document.data, found.citations),
        }
    return found.document


def _resolve(file: Path, folders: tuple[Path, ...], children: tuple[Path, ...]) -> Resolved:
    document = _read(file)
    if document.problems:
        return Resolved(document)
    if not isinstance(document.data, dict):
        document.problem((), f"a device profile is a mapping, found {describe(document.data)}")
        return Resolved(document)
    if not isinstance(document.data.get(ABSTRACT, False), bool):
        document.problem((ABSTRACT,), f"must be true or false, found {describe(document.data[ABSTRACT])}")
    opened = (*children, file)
    merged = Resolved(Document(document.source, {}))
    for parent in _parents(document, file, folders, opened):
        merged = _over(merged, _resolve(parent, folders, opened))
    return _own(merged, document)


def _read(file: Path) -> Document:
    """The file's own content; the copy may be changed but for what `data` holds."""
    parsed = _parsed(read_text(file), str(file))
    return Document(parsed.source, parsed.data, dict(parsed.keys), dict(parsed.values), list(parsed.problems))


@lru_cache(maxsize=512)
def _parsed(text: str, source: str) -> Document:
    """Many devices share a runtime, and each is read once to list them and once to load them."""
    return parse(text, source)


def _parents(document: Document, file: Path, folders: tuple[Path, ...], chain: tuple[Path, ...]) -> list[Path]:
    """The files that the profile inherits, the first of them the lowest."""
    given = document.data.get(INHERIT, [])
    if isinstance(given, str):
        found = [_parent(document, (INHERIT,), given, (file.parent, *folders), chain)]
    elif isinstance(given, list) and all(isinstance(name, str) for name in given):
        places = (file.parent, *folders)
        found = [_parent(document, (INHERIT, at), name, places, chain) for at, name in enumerate(given)]
    else:
        document.problem((INHERIT,), f"must name one profile, or a list of them, found {describe(given)}")
        found = []
    return [parent for parent in found if parent is not None]


def _parent(document: Document, at: Path_, name: str, places: tuple[Path, ...], chain: tuple[Path, ...]) -> Path | None:
    found = find(name, places)
    if found is None:
        document.problem(at, f"unknown profile '{name}'{did_you_mean(name, _known(places) - {chain[-1].stem})}")
        return None
    opened = [path.resolve() for path in chain]
    if found.resolve() in opened:
        cycle = [path.stem for path in opened[opened.index(found.resolve()) :]]
        document.problem(at, f"inherits itself: {' -> '.join([*cycle, found.stem])}")
        return None
    return found


def _known(places: tuple[Path, ...]) -> set[str]:
    patterns = ("*.yaml", *(f"{part}/*.yaml" for part in PARTS))
    files = ((place, file) for place in places for pattern in patterns for file in place.glob(pattern))
    return {file.relative_to(place).with_suffix("").as_posix() for place, file in files}


def _over(lower: Resolved, upper: Resolved) -> Resolved:
    """`upper` laid over `lower`; each value keeps the position and the source of the file that holds it."""
    document = _merged(lower.document, upper.document)
    return Resolved(document, citations.over(document.data, lower.citations, upper.document.data, upper.citations))


def _own(inherited: Resolved, own: Document) -> Resolved:
    """The values and sources of a file over what it inherits."""
    document = _merged(inherited.document, own)
    return Resolved(document, citations.own(document, own.data, inherited.citations))


def _merged(parent: Document, child: Document) -> Document:
    """`child` laid over `parent`; each value keeps the position of the file that holds it."""
    result = Document(child.source, problems=[*parent.problems, *child.problems])
    result.data = child.data
    if not isinstance(parent.data, dict) or not isinstance(child.data, dict):
        return result
    result.keys, result.values = dict(parent.keys), dict(parent.values)
    for key in _OWN:
        _forget(result, (key,))
    kept = {key: value for key, value in parent.data.items() if key not in _OWN}
    result.data = _overlay(result, (), kept, {key: value for key, value in child.data.items() if key != INHERIT})
    result.keys |= child.keys
    result.values |= child.values
    return result


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
    data = _read(file).data
    return isinstance(data, dict) and data.get(ABSTRACT) is True
