"""The result of `edgepipe convert` as tables and JSON."""

from edgepipe.commands.convert import Conversion
from edgepipe.core.escape import json_text
from edgepipe.render.report_tables import TextTable, findings_tables, metrics_table

SCHEMA = "edgepipe.convert/1"


def tables(conversion: Conversion) -> list[TextTable]:
    """The metrics of the converted model and the rules it breaks."""
    all_tables = [metrics_table(conversion.path, conversion.metrics), *findings_tables(conversion.findings)]
    return [table for table in all_tables if table.rows]


def document(conversion: Conversion) -> str:
    """The same as one JSON document."""
    return json_text({"schema": SCHEMA, **conversion.model_dump(mode="json")})
