"""`Report`: all results of a run, as one typed value that is also `report.json`."""

import json
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.config import describe_value, read_text
from edgepipe.core.cost import Cost
from edgepipe.core.errors import InputError
from edgepipe.core.escape import json_text
from edgepipe.core.metric import Finding, Metric, Record, Verdict
from edgepipe.core.outcome import Outcome

SCHEMA: Literal["edgepipe.report/1"] = "edgepipe.report/1"
REPORT_FILE = "report.json"


class StageReport(Record):
    """One step of the run."""

    name: str
    type: str = Field(description="the stage's type: train, prune, ...; `model` for the model source")
    status: Literal["ran", "cached"]
    kind: ArtifactKind = Field(description="of its artifact")
    artifact: str | None = Field(default=None, description="the artifact's copy, relative to the report")
    files: tuple[str, ...] = Field(
        default=(), description="its further files, such as a recipe, relative to the report"
    )
    digest: str = Field(description="SHA-256 of the artifact's content")
    made: str = Field(description="when the artifact was created, ISO 8601; earlier than the report if cached")
    cost: Cost
    outcome: Outcome

    def metric(self, name: str, device: str | None = None) -> Metric | None:
        """The metric `name` of this stage, if there is one."""
        return next((m for m in self.outcome.metrics if m.name == name and m.device == device), None)


class Report(Record):
    """All results of a run."""

    format: Literal["edgepipe.report/1"] = Field(default=SCHEMA, alias="schema")
    name: str
    description: str = ""
    pipeline: str = Field(description="the pipeline file")
    seed: int
    created: str = Field(description="ISO 8601")
    versions: dict[str, str] = Field(description="of edgepipe, Python and the packages used")
    stages: tuple[StageReport, ...]
    met: bool = Field(description="whether every limit was met and no rule was broken")

    model_config = ConfigDict(**{**Record.model_config, "populate_by_name": True})

    @property
    def verdicts(self) -> list[Verdict]:
        """Every line of every budget."""
        return [verdict for stage in self.stages for verdict in stage.outcome.verdicts]

    @property
    def findings(self) -> list[Finding]:
        """Every rule that was broken."""
        return [finding for stage in self.stages for finding in stage.outcome.findings]

    def stage(self, name: str) -> StageReport:
        """The stage `name`; KeyError if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def json(self) -> str:  # type: ignore[override]  # pydantic's deprecated method of this name
        """The text of `report.json`."""
        return json_text(self.model_dump(mode="json", by_alias=True)) + "\n"


def load(path: Path) -> Report:
    """The report at `path`: a `report.json`, or the folder of a run.

    Raises:
        InputError: no report, or of a version that this edgepipe does not read.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise InputError(
            f"{path}: holds no {REPORT_FILE}; give the folder of a run that has ended, or its {REPORT_FILE}"
        )
    try:
        text = read_text(file)
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{file}: expected a report of schema '{SCHEMA}', found {describe_value(schema)}")
    try:
        return Report.model_validate_json(text, strict=True)
    except ValidationError as error:
        validation_error = error.errors()[0]
        location = ".".join(map(str, validation_error["loc"]))
        raise InputError(f"{file}: not what schema {SCHEMA} says: {location}: {validation_error['msg']}") from None
