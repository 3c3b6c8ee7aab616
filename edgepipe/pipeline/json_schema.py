"""JSON Schema of a pipeline, for the completion and the checks of an editor; `check` knows more.

Every option comes from the class that reads it. What only code can judge is left open here: the order of stages, names
that refer to each other, the limits of a budget.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from edgepipe.core.config import JSON_SCHEMA_DIALECT
from edgepipe.data.data_spec import SOURCES_WITHOUT_VALUE, SPEC_BY_SOURCE
from edgepipe.pipeline.schema import REQUIRED_KEYS
from edgepipe.stages import registry
from edgepipe.stages.base import Stage
from edgepipe.stages.model_source import Source
from edgepipe.tasks.task_spec import TaskSpec

Schema = dict[str, Any]
REFERENCE_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
NAME_PATTERN = r"^[^\W_.-][\w.-]*$|^_[\w.-]*$"
PERCENTAGE_PATTERN = r"^\s*\d+(\.\d*)?\s*%\s*$"
_STAGE_NAME: Schema = {
    "type": "string",
    "pattern": NAME_PATTERN,
    "description": "name of the stage in reports and in --set; default: its type",
}


def pipeline_schema() -> Schema:
    """The schema of a pipeline with the built-in stages and those of installed packages."""
    stage_classes = _stage_classes()
    model_classes: list[type[BaseModel]] = [Source, TaskSpec, *SPEC_BY_SOURCE.values(), *stage_classes.values()]
    schema_by_class, definitions = models_json_schema([(cls, "validation") for cls in model_classes])
    references = {cls: schema_by_class[cls, "validation"] for cls in model_classes}
    for cls in stage_classes.values():
        _definition_of(cls, references, definitions)["properties"]["as"] = _STAGE_NAME
    for source in SOURCES_WITHOUT_VALUE:
        source_definition = _definition_of(SPEC_BY_SOURCE[source], references, definitions)
        _allow_null(source_definition["properties"][source])
    _allow_percentages(definitions)
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "title": "edgepipe pipeline",
        "type": "object",
        "properties": _top_properties(references, stage_classes),
        "required": list(REQUIRED_KEYS),
        "additionalProperties": False,
        **definitions,
    }


def _stage_classes() -> dict[str, type[Stage]]:
    """The stages that can be loaded, by their names in a pipeline."""
    built_in_sources = [registry.built_in_stage(name) for name in registry.STAGE_REFERENCES]
    usable_sources = [source for source in registry.installed_stages() if not registry.describe_problem(source)]
    return {source.name: registry.load_stage_class(source) for source in (*built_in_sources, *usable_sources)}


def _definition_of(cls: type[BaseModel], references: dict[type[BaseModel], Schema], definitions: Schema) -> Any:
    return definitions["$defs"][references[cls]["$ref"].rpartition("/")[2]]


def _allow_null(schema: Schema) -> None:
    schema["anyOf"] = [*schema.pop("anyOf", [{"type": schema.pop("type", "string")}]), {"type": "null"}]


def _allow_percentages(node: Any) -> None:
    """Accept texts such as `30 %` wherever a number is at most, or below, one; changes `node` in place."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _allow_percentages(child)
    if isinstance(node, dict) and 1 in (node.get("maximum"), node.get("exclusiveMaximum")) and node["type"] == "number":
        bounds = {key: node.pop(key) for key in list(node) if key == "type" or "imum" in key}
        node["anyOf"] = [bounds, {"type": "string", "pattern": PERCENTAGE_PATTERN}]


def _top_properties(references: dict[type[BaseModel], Schema], stage_classes: dict[str, type[Stage]]) -> Schema:
    return {
        "name": {"type": "string", "pattern": NAME_PATTERN, "description": "of the report and its folder, runs/NAME"},
        "description": {"type": "string", "description": "a sentence for the report"},
        "model": {
            "anyOf": [{"type": "string"}, references[Source]],
            "description": "a model file, module:function, or a mapping of options",
        },
        "data": {
            "anyOf": [{"type": "string", "pattern": REFERENCE_PATTERN}, *_data_sources(references)],
            "description": "module:function, or a mapping with one source",
        },
        "task": {
            "anyOf": [_task_kind(), {"type": "string", "pattern": REFERENCE_PATTERN}, references[TaskSpec]],
            "description": "what the outputs mean: a kind, module:function, or a mapping of options",
        },
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0},
        "allow_chance": {
            "type": "boolean",
            "default": False,
            "description": "quality at chance, or far below that before compression, is only noted",
        },
        "stages": {
            "type": "array",
            "minItems": 1,
            "items": _stage_entry(references, stage_classes),
            "description": "each a name, or one name with its options",
        },
    }


def _data_sources(references: dict[type[BaseModel], Schema]) -> list[Schema]:
    return [
        {"allOf": [references[cls], {"required": [source]}], "title": source} for source, cls in SPEC_BY_SOURCE.items()
    ]


def _task_kind() -> Schema:
    return {"enum": TaskSpec.model_json_schema()["properties"]["kind"]["enum"]}


def _stage_entry(references: dict[type[BaseModel], Schema], stage_classes: dict[str, type[Stage]]) -> Schema:
    """A name without options, or a mapping of one name; a stage of one's own is `module:Class` with any options."""
    properties = {name: _stage_options(cls, references[cls]) for name, cls in stage_classes.items()}
    plain_names = [name for name, cls in stage_classes.items() if not _has_required_option(cls)]
    own_options = {"type": ["object", "null"]}
    mapping = {
        "type": "object",
        "properties": properties,
        "patternProperties": {REFERENCE_PATTERN: own_options},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [{"enum": plain_names}, {"type": "string", "pattern": REFERENCE_PATTERN}, mapping]}


def _stage_options(cls: type[Stage], reference: Schema) -> Schema:
    options = reference if _has_required_option(cls) else {"anyOf": [reference, {"type": "null"}]}
    return {**options, "description": str(cls.__doc__ or "").strip().partition("\n")[0]}


def _has_required_option(cls: type[Stage]) -> bool:
    return any(field.is_required() for field in cls.model_fields.values())
