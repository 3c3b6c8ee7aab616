"""Where each value of a profile comes from, across inheritance.

A file gives its sources as a mapping from a field (`system.memory`) to a citation, which covers the field and
everything below it, or as a plain list, which covers everything without a source of its own. They cover the values in
the file and inherited values that have no source; an inherited value with a source keeps it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from edgepipe.core.config import Document, KeyPath, describe_value
from edgepipe.core.errors import did_you_mean

SOURCES_KEY = "sources"
_METADATA_KEYS = ("name", "description", SOURCES_KEY, "abstract", "inherit")  # not facts about the device
CitationByPath = dict[KeyPath, str]


def leaf_paths(tree: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The paths of all leaf values of `tree`; list elements by index."""
    if not isinstance(tree, (dict, list)):
        yield path
        return
    children: Iterable[tuple[str | int, Any]] = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in children:
        if path or key not in _METADATA_KEYS:
            yield from leaf_paths(child, (*path, key))


def overlay_citations(
    merged_data: Any, lower_citations: CitationByPath, upper_data: Any, upper_citations: CitationByPath
) -> CitationByPath:
    """The sources after one inherited profile overrides another.

    Args:
        merged_data: the merged content of both.
        lower_citations: sources of the overridden profile.
        upper_data: content of the overriding profile.
        upper_citations: sources of the overriding profile.
    """
    upper_leaf_paths = set(leaf_paths(upper_data))
    leaf_citations = (
        (leaf, (upper_citations if leaf in upper_leaf_paths else lower_citations).get(leaf))
        for leaf in leaf_paths(merged_data)
    )
    return {leaf: citation for leaf, citation in leaf_citations if citation is not None}


def resolve_citations(document: Document, own_data: Any, inherited_citations: CitationByPath) -> CitationByPath:
    """The sources of a file combined with the inherited ones; problems with its own are added to `document`."""
    own_citations = _parse_citations(document)
    own_leaf_paths = set(leaf_paths(own_data))
    citation_by_leaf: CitationByPath = {}
    for leaf in leaf_paths(document.content):
        citation = (
            _nearest_citation(own_citations, leaf)
            if leaf in own_leaf_paths or leaf not in inherited_citations
            else inherited_citations[leaf]
        )
        if citation is not None:
            citation_by_leaf[leaf] = citation
    return citation_by_leaf


def _parse_citations(document: Document) -> CitationByPath:
    raw_sources = document.content.get(SOURCES_KEY) if isinstance(document.content, dict) else None
    if raw_sources is None:
        return {}
    if isinstance(raw_sources, list) and raw_sources and all(_is_citation(citation) for citation in raw_sources):
        return {(): "; ".join(raw_sources)}
    if not isinstance(raw_sources, dict) or not raw_sources:
        message = f"must be a list of citations, or map fields to citations, found {describe_value(raw_sources)}"
        document.add_problem((SOURCES_KEY,), message)
        return {}
    return {parse_path(key): text for key, text in raw_sources.items() if _check_source(document, key, text)}


def _is_citation(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _check_source(document: Document, key: Any, text: Any) -> bool:
    if not isinstance(key, str) or not _has_path(document.content, parse_path(key)):
        suggestion = did_you_mean(str(key), {format_path(leaf) for leaf in leaf_paths(document.content)})
        hint = (
            suggestion
            if suggestion.startswith("; did")
            else "; write a field of the profile, for example system.memory"
        )
        document.add_problem((SOURCES_KEY, key), f"this profile has no field '{key}'{hint}", anchor="key")
    elif not _is_citation(text):
        document.add_problem((SOURCES_KEY, key), f"must be a citation, found {describe_value(text)}")
    else:
        return True
    return False


def _has_path(tree: Any, path: KeyPath) -> bool:
    if not path:
        return True
    if isinstance(tree, list):
        return isinstance(path[0], int) and path[0] < len(tree) and _has_path(tree[path[0]], path[1:])
    return isinstance(tree, dict) and path[0] in tree and _has_path(tree[path[0]], path[1:])


def parse_path(dotted_path: str) -> KeyPath:
    """The path written as `dotted_path`; a number is a list index."""
    return tuple(int(step) if step.isdigit() else step for step in dotted_path.split("."))


def format_path(path: KeyPath) -> str:
    """For example `system.memory.banks.0.size`."""
    return ".".join(map(str, path))


def _nearest_citation(citations: CitationByPath, leaf: KeyPath) -> str | None:
    return next((citations[leaf[:end]] for end in range(len(leaf), -1, -1) if leaf[:end] in citations), None)


def find_citation(citation_by_field: dict[str, str], path: KeyPath) -> str | None:
    """The citation of the longest prefix of `path` that has one."""
    return _nearest_citation({parse_path(field): text for field, text in citation_by_field.items()}, path)


def collapse_citations(tree: Any, citations: CitationByPath) -> dict[str, str]:
    """The same sources, with a single entry for a field if everything below it shares one source."""
    return {
        format_path(path): text
        for key in tree
        if key not in _METADATA_KEYS
        for path, text in _collapse_below(tree[key], (key,), citations)
    }


def _collapse_below(tree: Any, path: KeyPath, citations: CitationByPath) -> list[tuple[KeyPath, str]]:
    citations_below = {citations.get(leaf) for leaf in leaf_paths(tree, path)}
    if citations_below == {None} or not citations_below:
        return []
    if len(citations_below) == 1:
        return [(path, str(next(iter(citations_below))))]
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [pair for key, child in children for pair in _collapse_below(child, (*path, key), citations)]
