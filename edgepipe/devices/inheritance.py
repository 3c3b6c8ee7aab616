"""Profile inheritance: finds parents by name and merges them, keeping the position and source of every value."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from edgepipe.core.config import Document, KeyPath, describe_value, parse, read_text
from edgepipe.core.errors import did_you_mean
from edgepipe.devices import citations, metric_basis
from edgepipe.devices.citations import CitationByPath
from edgepipe.devices.metric_basis import BasisByMetric

INHERIT_KEY = "inherit"
ABSTRACT_KEY = "abstract"
PARENT_FOLDERS = ("systems", "runtimes", "fits")  # subfolders of profiles that exist only to be inherited
MAX_PROFILES = 100  # that one may inherit, those of its parents included; the shipped ones inherit up to five
_OWN_KEYS = ("name", "description", citations.SOURCES_KEY, ABSTRACT_KEY, INHERIT_KEY)  # never inherited
_ATOMIC_KEYS = (("latency",), ("ram",), ("flash",))  # replaced as a whole: halves of two methods do not make one


@dataclass
class ResolvedProfile:
    """A profile with everything it inherits: the values, the source of each, and what its metrics were stated for."""

    document: Document
    citations: CitationByPath = field(default_factory=dict)
    bases: BasisByMetric = field(default_factory=dict)


def find_profile(name: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of the profile `name`, such as `host` or `systems/rp2040-pico`: the first match in `folders`."""
    candidates = (folder / f"{name}.yaml" for folder in folders)
    return next((file for file in candidates if file.is_file()), None) if _is_safe_name(name) else None


def _is_safe_name(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def resolve_profile(file: Path, folders: tuple[Path, ...]) -> ResolvedProfile:
    """The profile at `file` with everything it inherits; a parent is looked up beside its child, then in `folders`.

    `sources` of the document maps each field with a source to that source. Problems (not YAML, an unknown parent, a
    cycle) are recorded in the document; only an unreadable file raises.
    """
    profile = _resolve_with_parents(file, folders, (), [])
    if isinstance(profile.document.content, dict):
        profile.document.content = {
            **profile.document.content,
            citations.SOURCES_KEY: citations.collapse_citations(profile.document.content, profile.citations),
        }
    return profile


def _resolve_with_parents(
    file: Path, folders: tuple[Path, ...], child_paths: tuple[Path, ...], read_paths: list[Path]
) -> ResolvedProfile:
    document = _read_document(file)
    read_paths.append(file)
    if document.problems:
        return ResolvedProfile(document)
    if not isinstance(document.content, dict):
        document.add_problem((), f"a device profile is a mapping, found {describe_value(document.content)}")
        return ResolvedProfile(document)
    if not isinstance(document.content.get(ABSTRACT_KEY, False), bool):
        document.add_problem(
            (ABSTRACT_KEY,), f"must be true or false, found {describe_value(document.content[ABSTRACT_KEY])}"
        )
    inheritance_chain = (*child_paths, file)
    profile = ResolvedProfile(Document(document.source_name, {}))
    for parent_path in _parent_paths(document, file, folders, inheritance_chain):
        if len(read_paths) >= MAX_PROFILES:
            document.add_problem((INHERIT_KEY,), f"inherits more than {MAX_PROFILES} profiles")
            break
        parent_profile = _resolve_with_parents(parent_path, folders, inheritance_chain, read_paths)
        profile = _overlay_profile(profile, parent_profile)
    return _apply_own_document(profile, document)


def _read_document(file: Path) -> Document:
    """The file's own content; the copy may be modified, except for its `content`."""
    cached_document = _parse_cached(read_text(file), str(file))
    return Document(
        cached_document.source_name,
        cached_document.content,
        dict(cached_document.key_positions),
        dict(cached_document.value_positions),
        list(cached_document.problems),
    )


@lru_cache(maxsize=512)
def _parse_cached(text: str, source: str) -> Document:
    """Cached, because many devices share a runtime and each is read twice: to list it and to load it."""
    return parse(text, source)


def _parent_paths(
    document: Document, file: Path, folders: tuple[Path, ...], inheritance_chain: tuple[Path, ...]
) -> list[Path]:
    """The files that the profile inherits; later ones override earlier ones."""
    parent_names = document.content.get(INHERIT_KEY, [])
    if isinstance(parent_names, list) and len(parent_names) > MAX_PROFILES:
        document.add_problem((INHERIT_KEY,), f"names {len(parent_names):,} profiles; at most {MAX_PROFILES} are read")
        return []
    if isinstance(parent_names, str):
        parent_paths = [
            _find_parent(document, (INHERIT_KEY,), parent_names, (file.parent, *folders), inheritance_chain)
        ]
    elif isinstance(parent_names, list) and all(isinstance(name, str) for name in parent_names):
        search_folders = (file.parent, *folders)
        parent_paths = [
            _find_parent(document, (INHERIT_KEY, index), name, search_folders, inheritance_chain)
            for index, name in enumerate(parent_names)
        ]
    else:
        document.add_problem(
            (INHERIT_KEY,), f"must name one profile or a list of them, found {describe_value(parent_names)}"
        )
        parent_paths = []
    return [parent for parent in parent_paths if parent is not None]


def _find_parent(
    document: Document,
    key_path: KeyPath,
    name: str,
    search_folders: tuple[Path, ...],
    inheritance_chain: tuple[Path, ...],
) -> Path | None:
    parent_path = find_profile(name, search_folders)
    if parent_path is None:
        candidate_names = _available_profiles(search_folders) - {inheritance_chain[-1].stem}
        document.add_problem(key_path, f"unknown profile '{name}'{did_you_mean(name, candidate_names)}")
        return None
    resolved_chain = [path.resolve() for path in inheritance_chain]
    if parent_path.resolve() in resolved_chain:
        cycle_names = [path.stem for path in resolved_chain[resolved_chain.index(parent_path.resolve()) :]]
        document.add_problem(key_path, f"inherits itself: {' -> '.join([*cycle_names, parent_path.stem])}")
        return None
    return parent_path


def _available_profiles(search_folders: tuple[Path, ...]) -> set[str]:
    patterns = ("*.yaml", *(f"{subfolder}/*.yaml" for subfolder in PARENT_FOLDERS))
    files = ((folder, file) for folder in search_folders for pattern in patterns for file in folder.glob(pattern))
    return {file.relative_to(folder).with_suffix("").as_posix() for folder, file in files}


def _overlay_profile(lower_profile: ResolvedProfile, upper_profile: ResolvedProfile) -> ResolvedProfile:
    """`upper` overrides `lower`; each value keeps the position and source of its file."""
    document = _merge_documents(lower_profile.document, upper_profile.document)
    return ResolvedProfile(
        document,
        citations.overlay_citations(
            document.content, lower_profile.citations, upper_profile.document.content, upper_profile.citations
        ),
        metric_basis.overlay_bases(
            lower_profile.bases, upper_profile.document.content, upper_profile.bases, document.content
        ),
    )


def _apply_own_document(inherited_profile: ResolvedProfile, own_document: Document) -> ResolvedProfile:
    """The values and sources of a file override what it inherits."""
    document = _merge_documents(inherited_profile.document, own_document)
    bases = metric_basis.overlay_bases(inherited_profile.bases, own_document.content, {}, document.content)
    is_own_abstract = own_document.content.get(ABSTRACT_KEY) is True
    return ResolvedProfile(
        document,
        citations.resolve_citations(document, own_document.content, inherited_profile.citations),
        bases if is_own_abstract else metric_basis.name_bases(bases, str(own_document.content.get("name", ""))),
    )


def _merge_documents(parent_document: Document, child_document: Document) -> Document:
    """`child` overrides `parent`; each value keeps the position in its file."""
    document = Document(child_document.source_name, problems=[*parent_document.problems, *child_document.problems])
    document.content = child_document.content
    if not isinstance(parent_document.content, dict) or not isinstance(child_document.content, dict):
        return document
    document.key_positions, document.value_positions = (
        dict(parent_document.key_positions),
        dict(parent_document.value_positions),
    )
    replaced_paths: set[KeyPath] = {(key,) for key in _OWN_KEYS}
    parent_data = {key: content for key, content in parent_document.content.items() if key not in _OWN_KEYS}
    child_data = {key: content for key, content in child_document.content.items() if key != INHERIT_KEY}
    document.content = _overlay_data((), parent_data, child_data, replaced_paths)
    _forget_positions(document, replaced_paths)
    document.key_positions |= child_document.key_positions
    document.value_positions |= child_document.value_positions
    return document


def _overlay_data(path: KeyPath, parent_data: Any, child_data: Any, replaced_paths: set[KeyPath]) -> Any:
    if not isinstance(parent_data, dict) or not isinstance(child_data, dict) or path in _ATOMIC_KEYS:
        replaced_paths.add(path)  # the child replaces everything below it
        return child_data
    merged_data = dict(parent_data)
    for key, content in child_data.items():
        merged_data[key] = (
            _overlay_data((*path, key), parent_data[key], content, replaced_paths) if key in parent_data else content
        )
    return merged_data


def _forget_positions(document: Document, replaced_paths: set[KeyPath]) -> None:
    for position_by_path in (document.key_positions, document.value_positions):
        for key_path in [path for path in position_by_path if _is_below(path, replaced_paths)]:
            del position_by_path[key_path]


def _is_below(path: KeyPath, upper_paths: set[KeyPath]) -> bool:
    return any(path[:depth] in upper_paths for depth in range(len(path) + 1))


def is_abstract(file: Path) -> bool:
    """Whether the profile at `file` exists only to be inherited."""
    profile_data = _read_document(file).content
    return isinstance(profile_data, dict) and profile_data.get(ABSTRACT_KEY) is True
