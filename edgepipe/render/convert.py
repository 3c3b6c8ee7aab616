"""The result of `edgepipe convert` as tables and JSON."""

import json

from edgepipe.commands.convert import Conversion
from edgepipe.render.report_tables import TextTable, findings_tables, metrics_table

SCHEMA = "edgepipe.convert/1"


def tables(conversion: Conversion) -> list[TextTable]:
    """The metrics of the converted model and the rules it breaks."""
    all_tables = [metrics_table(conversion.path, conversion.metrics), *findings_tables(conversion.findings)]
    return [table for table in all_tables if table.rows]


def document(conversion: Conversion) -> str:
    """The same as one JSON document."""
    return json.dumps({"schema": SCHEMA, **conversion.model_dump(mode="json")}, indent=2)
