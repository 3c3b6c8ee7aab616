"""The JSON Schema of a kind of YAML file: `edgepipe schema`."""

from typing import Literal

from edgepipe.core.escape import json_text

DocumentKind = Literal["pipeline", "device"]


def document(kind: DocumentKind) -> str:
    """The schema as a JSON document."""
    if kind == "pipeline":
        from edgepipe.pipeline.json_schema import pipeline_schema

        return json_text(pipeline_schema())
    from edgepipe.devices.json_schema import device_schema

    return json_text(device_schema())
