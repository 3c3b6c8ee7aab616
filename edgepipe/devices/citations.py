"""Where each value of a profile comes from, also when profiles inherit each other.

A file gives its sources as a mapping from a field (`system.memory`) to a citation, which covers the field and all
below it, or as a plain list, which covers everything that has no source of its own. They cover what the file itself
says, and what it inherits without a source; an inherited value keeps the source it was inherited with.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from edgepipe.core.config import Document, Path_, describe
from edgepipe.core.errors import did_you_mean

SOURCES = "sources"
_ABOUT = ("name", "description", SOURCES, "abstract", "inherit")  # no facts of the device
Citations = dict[Path_, str]


def leaves(data: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The paths of all single values of `data`; items of a list by their index."""
    if not isinstance(data, (dict, list)):
        yield path
        return
    items: Iterable[tuple[str | int, Any]] = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if path or key not in _ABOUT:
            yield from leaves(value, (*path, key))


def over(merged: Any, lower: Citations, upper_data: Any, upper: Citations) -> Citations:
    """The sources of two inherited profiles laid over each other."""
    replaced = set(leaves(upper_data))
    chosen = ((leaf, (upper if leaf in replaced else lower).get(leaf)) for leaf in leaves(merged))
    return {leaf: citation for leaf, citation in chosen if citation is not None}


def own(merged: Document, data: Any, inherited: Citations) -> Citations:
    """The sources of a file over those it inherits; notes what is wrong with its own in `merged`."""
    given = _given(merged)
    said = set(leaves(data))
    found: Citations = {}
    for leaf in leaves(merged.data):
        citation = _covering(given, leaf) if leaf in said or leaf not in inherited else inherited[leaf]
        if citation is not None:
            found[leaf] = citation
    return found


def _given(document: Document) -> Citations:
    value = document.data.get(SOURCES) if isinstance(document.data, dict) else None
    if value is None:
        return {}
    if isinstance(value, list) and value and all(_citation(item) for item in value):
        return {(): "; ".join(value)}
    if not isinstance(value, dict) or not value:
        message = f"must be a list of citations, or map fields to citations, found {describe(value)}"
        document.problem((SOURCES,), message)
        return {}
    return {steps(key): text for key, text in value.items() if _checked(document, key, text)}


def _citation(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _checked(document: Document, key: Any, text: Any) -> bool:
    if not isinstance(key, str) or not _has(document.data, steps(key)):
        close = did_you_mean(str(key), {dotted(leaf) for leaf in leaves(document.data)})
        hint = (
            close if close.startswith("; did") else "; a source is given for a field of the profile, as system.memory"
        )
        document.problem((SOURCES, key), f"this profile has no field '{key}'{hint}", at="key")
    elif not _citation(text):
        document.problem((SOURCES, key), f"must be a citation, found {describe(text)}")
    else:
        return True
    return False


def _has(data: Any, path: Path_) -> bool:
    if not path:
        return True
    if isinstance(data, list):
        return isinstance(path[0], int) and path[0] < len(data) and _has(data[path[0]], path[1:])
    return isinstance(data, dict) and path[0] in data and _has(data[path[0]], path[1:])


def steps(dotted_path: str) -> Path_:
    """The path that is written `dotted_path`; a number is the index of an item."""
    return tuple(int(part) if part.isdigit() else part for part in dotted_path.split("."))


def dotted(path: Path_) -> str:
    """For example `system.memory.banks.0.size`."""
    return ".".join(map(str, path))


def _covering(citations: Citations, leaf: Path_) -> str | None:
    return next((citations[leaf[:end]] for end in range(len(leaf), -1, -1) if leaf[:end] in citations), None)


def source_of(sources: dict[str, str], path: Path_) -> str | None:
    """The citation of the longest part of `path` that has one."""
    return _covering({steps(field): text for field, text in sources.items()}, path)


def collapsed(data: Any, citations: Citations) -> dict[str, str]:
    """The same sources with one entry for a field where all below it share one."""
    return {
        dotted(path): text
        for key in data
        if key not in _ABOUT
        for path, text in _collapsed(data[key], (key,), citations)
    }


def _collapsed(data: Any, path: Path_, citations: Citations) -> list[tuple[Path_, str]]:
    below = {citations.get(leaf) for leaf in leaves(data, path)}
    if below == {None} or not below:
        return []
    if len(below) == 1:
        return [(path, str(next(iter(below))))]
    items = data.items() if isinstance(data, dict) else enumerate(data)
    return [entry for key, value in items for entry in _collapsed(value, (*path, key), citations)]
