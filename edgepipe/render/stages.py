"""The stages as tables and JSON, generated from the stage classes: `edgepipe stages`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from edgepipe.core import references
from edgepipe.core.config import Options, Quantity
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.escape import json_text
from edgepipe.render.report_tables import TextTable
from edgepipe.stages import registry
from edgepipe.stages.base import Stage
from edgepipe.stages.registry import StageSource

SCHEMA = "edgepipe.stages/1"


def tables(name: str | None) -> list[TextTable]:
    """All stages, or the options of the stage `name`.

    Raises:
        InputError: there is no such stage, or it cannot be imported.
    """
    if name is not None:
        cls = _find_stage_class(name)
        rows = tuple((o["option"], o["type"], o["default"], o["meaning"]) for o in describe_options(cls))
        return [TextTable(f"{name}: {_stage_summary(cls)}", ("option", "type", "default", "meaning"), rows)]
    stage_sources = available_stages()
    built_in_sources = [source for source in stage_sources if source.package == "edgepipe"]
    other_sources = [source for source in stage_sources if source.package != "edgepipe"]
    columns = ("stage", "takes", "gives", "description")
    stage_tables = [TextTable("Stages", columns, tuple(_stage_row(source) for source in built_in_sources))]
    if other_sources:
        other_rows = tuple((*_stage_row(source), _origin_text(source)) for source in other_sources)
        stage_tables.append(TextTable("Stages of your own", (*columns, "from"), other_rows))
    return stage_tables


def document(name: str | None) -> str:
    """The same as one JSON document."""
    if name is not None:
        stage_documents = {name: _describe_stage(_find_stage_class(name))}
    else:
        stage_documents = {source.name: _describe_source(source) for source in available_stages()}
    return json_text({"schema": SCHEMA, "stages": stage_documents})


def available_stages() -> list[StageSource]:
    """Built-in stages, those of installed packages, and classes in the .py files of the current folder."""
    built_in_sources = [registry.built_in_stage(name) for name in registry.STAGE_REFERENCES]
    return [*built_in_sources, *registry.installed_stages(), *registry.stages_in_folder(Path.cwd())]


def _find_stage_class(name: str) -> type[Stage]:
    stage_names = [source.name for source in available_stages()]
    if name not in stage_names and not references.is_reference(name):
        raise InputError(f"no stage '{name}'{did_you_mean(name, stage_names)}")
    return registry.load_stage_class(registry.find_stage(name, Path.cwd()))


def _stage_row(source: StageSource) -> tuple[str, ...]:
    if problem := registry.describe_problem(source):
        return (source.name, "", "", f"cannot be used: {problem}")
    cls = registry.load_stage_class(source)
    return (source.name, ", ".join(cls.accepts), _output_kinds(cls), _stage_summary(cls))


def _origin_text(source: StageSource) -> str:
    return f"{source.package} {source.version}" if source.package else f"{source.module}.py, in this folder"


def _describe_source(source: StageSource) -> Mapping[str, Any]:
    origin = {"package": source.package, "version": source.version, "reference": source.reference}
    if problem := registry.describe_problem(source):
        return {**origin, "problem": problem}
    return {**_describe_stage(registry.load_stage_class(source)), **origin}


def _describe_stage(cls: type[Stage]) -> Mapping[str, Any]:
    return {
        "summary": _stage_summary(cls),
        "takes": list(cls.accepts),
        "gives": sorted(set(cls.accepts.values())),
        "options": describe_options(cls),
    }


def _stage_summary(cls: type[Stage]) -> str:
    return str(cls.__doc__ or "").strip().partition("\n")[0]


def _output_kinds(cls: type[Stage]) -> str:
    kinds = sorted(set(cls.accepts.values()))
    return ", ".join(kinds) if kinds != sorted(cls.accepts) else "the same"


def describe_options(cls: Any, prefix: str = "") -> list[dict[str, str]]:
    """Name, type, default and meaning of every option of a class, those of nested classes with a dot."""
    descriptions = []
    for name, field in cls.model_fields.items():
        option_record = {"option": prefix + name, "type": _type_text(field.annotation, field.metadata)}
        descriptions.append({**option_record, "default": _default_text(field), "meaning": field.description or ""})
        for nested_cls in filter(_is_options_class, (field.annotation, *get_args(field.annotation))):
            descriptions += describe_options(nested_cls, f"{prefix}{name}.")
    return descriptions


def _is_options_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Options)


def _type_text(annotation: Any, metadata_marks: Iterable[Any] = ()) -> str:
    """`annotation` as text with the bounds that pydantic's `marks` set; a quantity is named by its dimension."""
    flat_marks = [nested_mark for mark in metadata_marks for nested_mark in getattr(mark, "metadata", [mark])]
    dimension = next((str(mark.dimension) for mark in flat_marks if isinstance(mark, Quantity)), None)
    bounds = [f"{sign} {getattr(mark, key)}" for mark in flat_marks for key, sign in _BOUND_SIGNS if hasattr(mark, key)]
    return " ".join([dimension or _type_name(annotation), *bounds])


_BOUND_SIGNS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def _type_name(annotation: Any) -> str:
    arguments = get_args(annotation)
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    name_by_type = {
        bool: "true | false",
        int: "integer",
        float: "number",
        str: "text",
        type(None): "null",
        dict: "mapping",
    }
    origin_type = getattr(annotation, "__origin__", None)
    if hasattr(annotation, "__metadata__"):
        return _type_text(annotation.__origin__, annotation.__metadata__)
    if origin_type is tuple:
        return f"list of {_type_name(arguments[0])}"
    if _is_options_class(annotation):
        return "mapping"
    if arguments and origin_type is not dict:
        return " | ".join(_type_name(argument) for argument in arguments)
    return name_by_type.get(origin_type or annotation, str(getattr(annotation, "__name__", annotation)))


def _default_text(field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    return "required" if default is PydanticUndefined else json.dumps(default)
