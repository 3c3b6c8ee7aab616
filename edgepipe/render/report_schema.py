"""The JSON Schema of `report.json`: `python -m edgepipe.render.report_schema > FILE` writes it."""

import json

from edgepipe.core.output import print_document
from edgepipe.render.report import SCHEMA, Report


def schema_text() -> str:
    """The schema of what this version writes, as `report_schema.json` holds it."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        **Report.model_json_schema(by_alias=True, mode="serialization"),
    }
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    print_document(schema_text())
