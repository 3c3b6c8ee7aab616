"""Options that override those of a pipeline: `--set stages.prune.sparsity=0.8`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from edgepipe.core import config
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.references import is_reference

PIPELINE_KEYS = ("name", "description", "model", "data", "task", "seed", "allow_chance", "stages")
Settings = Mapping[str, object] | Iterable[str]


def list_settings(settings: Settings) -> tuple[str, ...]:
    """Settings as `--set` takes them: `{"stages.prune.sparsity": 0.8}` becomes `stages.prune.sparsity=0.8`."""
    if isinstance(settings, Mapping):
        return tuple(f"{path}={json.dumps(option)}" for path, option in settings.items())  # JSON is YAML
    return tuple(settings)


def apply_settings(document: Document, settings: Iterable[str]) -> None:
    """Override options of `document`, each as `stages.prune.sparsity=0.8`.

    Raises:
        InputError: a setting that is not of this form, or names a stage or an option that does not exist.
    """
    for setting in settings:
        _apply_setting(document, setting)


def _apply_setting(document: Document, setting: str) -> None:
    path_text, equals, value_text = setting.partition("=")
    source = f"--set {setting}"
    path_steps = tuple(path_text.split(".")) if equals else ()
    if not all(path_steps) or not path_steps:
        raise InputError(f"'{source}' is not of the form --set path=value, for example --set stages.prune.sparsity=0.8")
    if path_steps[0] not in PIPELINE_KEYS:
        raise InputError(f"{source}: unknown option '{path_steps[0]}'{did_you_mean(path_steps[0], PIPELINE_KEYS)}")
    if path_steps[0] == "model" and path_steps[1:] not in ((), ("path",), ("function",)):
        _expand_model(document)
    path = _stage_path(document, path_steps, source) if path_steps[0] == "stages" else path_steps
    config.assign(document, path, value_text, source)


def _expand_model(document: Document) -> None:
    """`model: FILE` or `model: module:function` as the mapping that it is short for, so that options can be set."""
    model = document.content.get("model")
    if isinstance(model, str):
        document.content["model"] = {"function" if is_reference(model) else "path": model}


def _stage_path(document: Document, option_path: tuple[str, ...], source: str) -> KeyPath:
    """The path of `stages.NAME.option` in the document, where `stages` is a list."""
    stage_entries = document.content.get("stages")
    indexed_entries = [
        (i, e)
        for i, e in enumerate(stage_entries if isinstance(stage_entries, list) else [])
        if e and isinstance(e, (str, dict))
    ]
    index_by_name = {entry_name(entry): index for index, entry in indexed_entries}
    stage_name = option_path[1] if len(option_path) > 1 else ""
    if stage_name and stage_name not in index_by_name:
        raise InputError(
            f"{source}: no stage of the file is named '{stage_name}'{did_you_mean(stage_name, index_by_name)}"
        )
    if len(option_path) < 3:
        raise InputError(f"{source}: names no option; write --set stages.{stage_name or 'NAME'}.OPTION=VALUE")
    index = index_by_name[stage_name]
    entry = stage_entries[index]
    if isinstance(entry, str):
        stage_entries[index] = {entry: {}}
    return ("stages", index, next(iter(stage_entries[index])), *option_path[2:])


def entry_name(entry: Any) -> str:
    """The name of an entry of `stages:`: its `as`, else its default name."""
    if not isinstance(entry, dict) or not entry:
        return default_name(str(entry))
    stage_type, options = next(iter(entry.items()))
    name = options.get("as") if isinstance(options, dict) else None
    return name if isinstance(name, str) else default_name(str(stage_type))


def default_name(stage_type: str) -> str:
    """The name of a stage without `as`: its type, or the class of `module:Class`."""
    return stage_type.rpartition(":")[2]
