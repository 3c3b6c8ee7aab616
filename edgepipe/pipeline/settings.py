"""Options that override those of a pipeline: `--set stages.prune.sparsity=0.8`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from edgepipe.core import config
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import InputError, did_you_mean

KEYS = ("name", "description", "model", "data", "task", "seed", "stages")
Settings = Mapping[str, object] | Iterable[str]


def apply_settings(document: Document, settings: Settings) -> None:
    """Override options of `document`: `{"stages.prune.sparsity": 0.8}` or `["stages.prune.sparsity=0.8"]`.

    Raises:
        InputError: a setting that is not of this form, or names a stage or an option that does not exist.
    """
    if isinstance(settings, Mapping):
        settings = [f"{path}={json.dumps(option)}" for path, option in settings.items()]  # JSON is YAML
    for setting in settings:
        _apply(document, setting)


def _apply(document: Document, setting: str) -> None:
    path_text, equals, text = setting.partition("=")
    source = f"--set {setting}"
    words = tuple(path_text.split(".")) if equals else ()
    if not all(words) or not words:
        raise InputError(f"'{source}' is not of the form --set path=value, for example --set stages.prune.sparsity=0.8")
    if words[0] not in KEYS:
        raise InputError(f"{source}: unknown option '{words[0]}'{did_you_mean(words[0], KEYS)}")
    path = _stage_path(document, words, source) if words[0] == "stages" else words
    config.assign(document, path, text, source)


def _stage_path(document: Document, path: tuple[str, ...], source: str) -> KeyPath:
    """The path of `stages.NAME.option` in the document, where `stages` is a list."""
    entries = document.content.get("stages")
    indexed_entries = [
        (i, e) for i, e in enumerate(entries if isinstance(entries, list) else []) if e and isinstance(e, (str, dict))
    ]
    names = {entry_name(entry): index for index, entry in indexed_entries}
    name = path[1] if len(path) > 1 else ""
    if name and name not in names:
        raise InputError(f"{source}: no stage of the file is named '{name}'{did_you_mean(name, names)}")
    if len(path) < 3:
        raise InputError(f"{source}: names no option; write --set stages.{name or 'NAME'}.OPTION=VALUE")
    index = names[name]
    entry = entries[index]
    if isinstance(entry, str):
        entries[index] = {entry: {}}
    return ("stages", index, next(iter(entries[index])), *path[2:])


def entry_name(entry: Any) -> str:
    """The name of an entry of `stages:`: its `as`, else its default name."""
    if not isinstance(entry, dict) or not entry:
        return str(entry)
    kind, options = next(iter(entry.items()))
    name = options.get("as") if isinstance(options, dict) else None
    return name if isinstance(name, str) else default_name(str(kind))


def default_name(stage_type: str) -> str:
    """The name of a stage without `as`: its type, or the class of `module:Class`."""
    return stage_type.rpartition(":")[2]
