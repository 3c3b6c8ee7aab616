"""The stages as tables and JSON, told from the stage classes themselves: `edgepipe stages`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from edgepipe.core.config import Options, Quantity
from edgepipe.core.errors import EdgepipeError
from edgepipe.render.report_tables import Rows
from edgepipe.stages import registry
from edgepipe.stages.base import Stage
from edgepipe.stages.registry import StageSource

SCHEMA = "edgepipe.stages/1"


def tables(name: str | None) -> list[Rows]:
    """All stages, or the options of the stage `name`.

    Raises:
        InputError: there is no such stage, or it cannot be imported.
    """
    if name is not None:
        cls = _find_class(name)
        rows = tuple((o["option"], o["type"], o["default"], o["meaning"]) for o in _options(cls))
        return [Rows(f"{name}: {_summary(cls)}", ("option", "type", "default", "meaning"), rows)]
    sources = available_stages()
    built_in = [source for source in sources if source.package == "edgepipe"]
    others = [source for source in sources if source.package != "edgepipe"]
    found = [Rows("Stages", ("stage", "takes", "gives", "what it does"), tuple(map(_row, built_in)))]
    if others:
        columns = ("stage", "takes", "gives", "what it does", "from")
        found.append(Rows("Stages of your own", columns, tuple((*_row(source), _origin(source)) for source in others)))
    return found


def document(name: str | None) -> str:
    """The same as one JSON document."""
    if name is not None:
        body = {name: _describe(_find_class(name))}
    else:
        body = {source.name: _describe_source(source) for source in available_stages()}
    return json.dumps({"schema": SCHEMA, "stages": body}, indent=2)


def available_stages() -> list[StageSource]:
    """Built-in stages, those of installed packages, and classes in the .py files of the current folder."""
    built_in = [registry.built_in_stage(name) for name in registry.STAGES]
    return [*built_in, *registry.installed_stages(), *registry.stages_in_folder(Path.cwd())]


def _find_class(name: str) -> type[Stage]:
    return registry.load_stage_class(registry.find_stage(name, Path.cwd()))


def _row(source: StageSource) -> tuple[str, ...]:
    if problem := _problem(source):
        return (source.name, "", "", f"cannot be used: {problem}")
    cls = registry.load_stage_class(source)
    return (source.name, ", ".join(cls.accepts), _gives(cls), _summary(cls))


def _problem(source: StageSource) -> str:
    """Why a stage cannot be used; a package that is broken is listed, and breaks nothing else."""
    if source.folder is None and (clash := registry.collision(source.name)):
        return clash if source.package != "edgepipe" else ""
    try:
        registry.load_stage_class(source)
    except EdgepipeError as error:
        return str(error)
    return ""


def _origin(source: StageSource) -> str:
    return f"{source.package} {source.version}" if source.package else f"{source.module}.py, in this folder"


def _describe_source(source: StageSource) -> Mapping[str, Any]:
    origin = {"package": source.package, "version": source.version, "reference": source.reference}
    if problem := _problem(source):
        return {**origin, "problem": problem}
    return {**_describe(registry.load_stage_class(source)), **origin}


def _describe(cls: type[Stage]) -> Mapping[str, Any]:
    return {
        "summary": _summary(cls),
        "takes": list(cls.accepts),
        "gives": sorted(set(cls.accepts.values())),
        "options": _options(cls),
    }


def _summary(cls: type[Stage]) -> str:
    return str(cls.__doc__ or "").strip().partition("\n")[0]


def _gives(cls: type[Stage]) -> str:
    kinds = sorted(set(cls.accepts.values()))
    return ", ".join(kinds) if kinds != sorted(cls.accepts) else "the same"


def _options(cls: Any, prefix: str = "") -> list[dict[str, str]]:
    described = []
    for name, field in cls.model_fields.items():
        option = {"option": prefix + name, "type": _type(field.annotation, field.metadata)}
        described.append({**option, "default": _default(field), "meaning": field.description or ""})
        for nested in filter(_is_options, (field.annotation, *get_args(field.annotation))):
            described += _options(nested, f"{prefix}{name}.")
    return described


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Options)


def _type(annotation: Any, marks: Iterable[Any] = ()) -> str:
    """`annotation` with the bounds that pydantic's `marks` set; a quantity by what it counts."""
    flat_marks = [nested for mark in marks for nested in getattr(mark, "metadata", [mark])]
    dimension = next((str(mark.dimension) for mark in flat_marks if isinstance(mark, Quantity)), None)
    bounds = [f"{sign} {getattr(mark, key)}" for mark in flat_marks for key, sign in _BOUNDS if hasattr(mark, key)]
    return " ".join([dimension or _type_name(annotation), *bounds])


_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def _type_name(annotation: Any) -> str:
    arguments = get_args(annotation)
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    names = {bool: "true | false", int: "integer", float: "number", str: "text", type(None): "null", dict: "mapping"}
    origin = getattr(annotation, "__origin__", None)
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__, annotation.__metadata__)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if _is_options(annotation):
        return "mapping"
    if arguments and origin is not dict:
        return " | ".join(_type_name(argument) for argument in arguments)
    return names.get(origin or annotation, str(getattr(annotation, "__name__", annotation)))


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else json.dumps(value)
