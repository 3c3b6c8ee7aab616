"""The shipped pipelines as a table and as JSON: `edgepipe pipelines list`."""

from dataclasses import asdict

from edgepipe.core.escape import json_text
from edgepipe.pipeline.shipped_pipelines import list_pipelines
from edgepipe.render.report_tables import TextTable


def tables() -> list[TextTable]:
    """One row a pipeline."""
    rows = tuple((pipeline.name, pipeline.description, " -> ".join(pipeline.stages)) for pipeline in list_pipelines())
    return [TextTable("shipped pipelines: edgepipe run NAME", ("name", "description", "stages"), rows)]


def document() -> str:
    """The same as one JSON document."""
    pipelines = [asdict(pipeline) for pipeline in list_pipelines()]
    return json_text({"schema": "edgepipe.pipelines/1", "pipelines": pipelines})
