"""`Report`: everything a run found, as one typed value that is also `report.json`."""

import json
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from edgepipe.core import references
from edgepipe.core.artifact import ArtifactKind, copy_atomically, list_files, wrap_storage_errors, write_text
from edgepipe.core.config import describe_value, read_text
from edgepipe.core.cost import Cost
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric, Record, Verdict
from edgepipe.core.outcome import Outcome
from edgepipe.pipeline.runner import Run, StepResult

SCHEMA: Literal["edgepipe.report/1"] = "edgepipe.report/1"
FILE = "report.json"
TOOLS = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "tflite-micro",
         "ethos-u-vela", "litert-quantizer", "numpy")  # fmt: skip


class StageReport(Record):
    """One step of the run."""

    name: str
    type: str = Field(description="which stage it is: train, prune, ...; `model` for where the model came from")
    status: Literal["ran", "cached"]
    kind: ArtifactKind = Field(description="of the artifact it gave")
    artifact: str | None = Field(default=None, description="the artifact's copy, relative to the report")
    files: tuple[str, ...] = Field(default=(), description="what it wrote besides, relative to the report: a recipe")
    digest: str = Field(description="SHA-256 of the artifact's content")
    made: str = Field(description="when the result was made, ISO 8601; earlier than the report if cached")
    cost: Cost
    outcome: Outcome

    def metric(self, name: str, device: str | None = None) -> Metric | None:
        """The metric `name` of this stage, if it was taken."""
        return next((m for m in self.outcome.metrics if m.name == name and m.device == device), None)


class Report(Record):
    """A run, told once."""

    format: Literal["edgepipe.report/1"] = Field(default=SCHEMA, alias="schema")
    name: str
    description: str = ""
    pipeline: str = Field(description="the pipeline file")
    seed: int
    created: str = Field(description="ISO 8601")
    versions: dict[str, str] = Field(description="of edgepipe, Python and the packages that matter")
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
        return self.model_dump_json(indent=2, by_alias=True) + "\n"


def of(run: Run) -> Report:
    """The report of a run."""
    stages = tuple(_stage(number, result) for number, result in enumerate(run.results))
    outcomes = [stage.outcome for stage in stages]
    return Report(
        name=run.pipeline.name,
        description=run.pipeline.description,
        pipeline=str(run.pipeline.file),
        seed=run.pipeline.seed,
        created=_iso(datetime.now(UTC).timestamp()),
        versions={
            "python": platform.python_version(),
            **{name: references.installed_version(name) for name in ("edgepipe", *TOOLS)},
        },
        stages=stages,
        met=all(v.met for o in outcomes for v in o.verdicts) and not any(o.findings for o in outcomes),
    )


def _stage(number: int, result: StepResult) -> StageReport:
    entry, outcome = result.stored.entry, result.stored.entry.outcome
    if result.notes:
        outcome = outcome.model_copy(update={"notes": (*result.notes, *outcome.notes)})
    return StageReport(
        name=result.step.name, type=result.step.type, status="cached" if result.cached else "ran", kind=entry.kind,
        artifact=_target(number, result), files=_files(number, result), digest=entry.digest, made=_iso(entry.created),
        cost=entry.cost, outcome=outcome,
    )  # fmt: skip


def _target(number: int, result: StepResult) -> str:
    return f"artifacts/{number}-{result.step.name}{result.stored.artifact.path.suffix}"


def _beside(result: StepResult) -> list[str]:
    """The files that a stage wrote besides its artifact, relative to that one's folder."""
    artifact, root = result.stored.artifact.path, result.stored.artifact.path.parent
    found = (file for file in list_files(root) if file != artifact and not file.is_relative_to(artifact))
    return [file.relative_to(root).as_posix() for file in found]


def _files(number: int, result: StepResult) -> tuple[str, ...]:
    return tuple(f"artifacts/{number}-{result.step.name}-{name.replace('/', '-')}" for name in _beside(result))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def write(run: Run, report: Report, folder: Path) -> None:
    """Write the report and a copy of each stage's artifact below `folder`; each file appears whole or not at all.

    Raises:
        StorageError: `folder` cannot be written.
    """
    from edgepipe.render.markdown import render

    _remove_former(report, folder)
    for stage, result in zip(report.stages, run.results, strict=True):
        copy_atomically(result.stored.artifact.path, folder / str(stage.artifact))
        for name, place in zip(_beside(result), stage.files, strict=True):
            copy_atomically(result.stored.artifact.path.parent / name, folder / place)
    write_text(folder / "report.md", render(report))
    write_text(folder / FILE, report.json())


def _remove_former(report: Report, folder: Path) -> None:
    """Remove the artifacts of the run that was in `folder` before, as its own report lists them, unless replaced."""
    try:
        former = load(folder)
    except InputError:
        return
    now = {name for stage in report.stages for name in _written(stage)}
    for name in {name for stage in former.stages for name in _written(stage)} - now:
        place = folder / name
        if place.resolve().is_relative_to(folder.resolve()):
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _written(stage: StageReport) -> list[str]:
    return [name for name in (stage.artifact, *stage.files) if name]


def check_writable(folder: Path) -> None:
    """Raise a `StorageError` now, before hours of training, if `folder` cannot be written."""
    from edgepipe.core.artifact import write_atomically

    with wrap_storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / ".writable") as aside:
        aside.write_text("")
    (folder / ".writable").unlink(missing_ok=True)


def load(path: Path) -> Report:
    """The report at `path`: a `report.json`, or the folder of a run.

    Raises:
        InputError: there is none, or it is not one, or of a version this edgepipe does not read.
    """
    file = path / FILE if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise InputError(f"{path}: holds no {FILE}; give the folder of a run that has ended, or its {FILE}")
    try:
        text = read_text(file)
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise InputError(f"{file}: expected a report of schema '{SCHEMA}', found {describe_value(found)}")
    try:
        return Report.model_validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InputError(f"{file}: not what schema {SCHEMA} says: {place}: {problem['msg']}") from None
