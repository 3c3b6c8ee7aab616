"""`Report`: all results of a run, as one typed value that is also `report.json`."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.config import describe_value, read_text
from edgepipe.core.cost import Cost
from edgepipe.core.errors import InputError
from edgepipe.core.escape import json_text
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.metric import Finding, Metric, Record, Suggestion, Verdict
from edgepipe.core.outcome import Outcome
from edgepipe.pipeline.run_folders import find_report
from edgepipe.pipeline.run_record import Reproduction, RunDefinition

SCHEMA: Literal["edgepipe.report/1"] = "edgepipe.report/1"
MAX_BYTES = 64 * 2**20  # of a report; those of long pipelines with many tables have some hundred KiB


class StageReport(Record):
    """One step of the run."""

    name: str
    type: str = Field(description="the stage's type: train, prune, ...; `model` for the model source")
    status: Literal["ran", "cached"]
    kind: ArtifactKind = Field(description="of its artifact")
    artifact: str | None = Field(
        default=None,
        description="the artifact's copy, relative to the report; that of an earlier stage if this one changed nothing",
    )
    files: tuple[str, ...] = Field(
        default=(), description="its further files, such as a recipe, relative to the report"
    )
    digest: str = Field(description="SHA-256 of the artifact's content")
    made: str = Field(description="when the artifact was created, ISO 8601; earlier than the report if cached")
    options: dict[str, Any] = Field(
        default_factory=dict, description="every option of the stage, with defaults; empty in reports of edgepipe 0.1.0"
    )
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
    definition: RunDefinition | None = Field(
        default=None, description="what the run was started from; null in reports of edgepipe 0.1.0"
    )
    reproduction: Reproduction | None = Field(
        default=None, description="of `run --from REPORT`: how the results compare with those of that report"
    )
    model: str | None = Field(
        default=None,
        description="the one file to deploy, relative to the report: a copy of the last stage's artifact; null if that "
        "is not a .tflite",
    )
    stages: tuple[StageReport, ...]
    suggestions: tuple[Suggestion, ...] = Field(
        default=(), description="what may meet the limits that are not met; computed, not tried"
    )
    met: bool = Field(description="whether every limit was met and no rule was broken")

    model_config = ConfigDict(**{**Record.model_config, "populate_by_name": True})
    _folder: Path | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Two reports are equal if they say the same, wherever they are stored."""
        return isinstance(other, Report) and self.json() == other.json()

    __hash__ = None  # type: ignore[assignment]  # its dictionaries have none

    @property
    def folder(self) -> Path | None:
        """The folder that the report was written to or read from, which its paths are relative to."""
        return self._folder

    @property
    def model_path(self) -> Path | None:
        """The file to deploy; None without one, or for a report that is in no folder."""
        return self.folder / self.model if self.folder is not None and self.model is not None else None

    def with_reproduction(self, reproduction: Reproduction) -> "Report":
        """This report of a repeated run, compared with the report of the first."""
        return self.model_copy(update={"reproduction": reproduction})

    def in_folder(self, folder: Path) -> "Report":
        """This report as that of `folder`."""
        report = self.model_copy()
        report._folder = folder
        return report

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
    """The report at `path`: a `report.json`, the folder of a run, or a folder of runs, of which it is the latest.

    Raises:
        InputError: no report, or of a version that this edgepipe does not read.
    """
    check_ordinary(path)
    file = find_report(path)
    try:
        text = read_text(file, MAX_BYTES)
        content = json.loads(text)
    except RecursionError:
        raise InputError(f"{file}: not a report: it nests too deep") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{file}: expected a report of schema '{SCHEMA}', found {describe_value(schema)}")
    try:
        return Report.model_validate_json(text, strict=True).in_folder(file.parent)
    except ValidationError as error:
        validation_error = error.errors()[0]
        location = ".".join(map(str, validation_error["loc"]))
        raise InputError(f"{file}: not what schema {SCHEMA} says: {location}: {validation_error['msg']}") from None
