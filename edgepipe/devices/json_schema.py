"""JSON Schema of a device profile, for the completion and the checks of an editor; loading one knows more.

A profile may inherit any field, so none is required here: `edgepipe device show FILE` says what is missing.
"""

from typing import Any

from edgepipe.core.config import JSON_SCHEMA_DIALECT
from edgepipe.devices.citations import SOURCES_KEY
from edgepipe.devices.device_profile import Device
from edgepipe.devices.inheritance import ABSTRACT_KEY, INHERIT_KEY

_WRITTEN_PROPERTIES: dict[str, Any] = {
    INHERIT_KEY: {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
        "description": "names of profiles, whose fields hold where this one says nothing; later ones take precedence",
    },
    ABSTRACT_KEY: {"type": "boolean", "description": "true for a profile that can only be inherited"},
    SOURCES_KEY: {
        "anyOf": [
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
        ],
        "description": "where the numbers come from: citations of the whole profile, or of each field",
    },
}


def device_schema() -> dict[str, Any]:
    """The schema of a device profile."""
    schema = _without_required(Device.model_json_schema())
    properties = {**schema.pop("properties"), **_WRITTEN_PROPERTIES}
    return {"$schema": JSON_SCHEMA_DIALECT, **schema, "title": "edgepipe device profile", "properties": properties}


def _without_required(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_required(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    is_object = schema.get("type") == "object"
    return {key: _without_required(part) for key, part in schema.items() if not (is_object and key == "required")}
