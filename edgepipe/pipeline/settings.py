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
        settings = [f"{path}={json.dumps(value)}" for path, value in settings.items()]  # JSON is YAML
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
    """`stages.NAME.option` as the path into the list of stages."""
    entries = document.content.get("stages")
    named = [
        (i, e) for i, e in enumerate(entries if isinstance(entries, list) else []) if e and isinstance(e, (str, dict))
    ]
    names = {entry_name(entry): index for index, entry in named}
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
    """The name of an entry of `stages:`: its `as`, else the kind of stage."""
    if not isinstance(entry, dict) or not entry:
        return str(entry)
    kind, options = next(iter(entry.items()))
    name = options.get("as") if isinstance(options, dict) else None
    return name if isinstance(name, str) else default_name(str(kind))


def default_name(stage_type: str) -> str:
    """What a stage is called without `as`: its type; of `module:Class` the class."""
    return stage_type.rpartition(":")[2]
