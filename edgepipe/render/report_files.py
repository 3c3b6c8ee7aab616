"""Builds the report of a run and writes its files: report.json, report.md and a copy of each artifact."""

import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path

from edgepipe.core import references
from edgepipe.core.artifact import copy_atomically, list_files, wrap_storage_errors, write_atomically, write_text
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Judgement, judge_all
from edgepipe.pipeline.runner import Run, StepResult
from edgepipe.render import markdown
from edgepipe.render.report import REPORT_FILE, Report, StageReport, load

TOOL_PACKAGES = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "tflite-micro",
         "ethos-u-vela", "numpy")  # fmt: skip


def build_report(run: Run) -> Report:
    """The report of a run."""
    stage_reports = tuple(_stage_report(number, step_result) for number, step_result in enumerate(run.step_results))
    outcomes = [stage.outcome for stage in stage_reports]
    return Report(
        name=run.pipeline.name,
        description=run.pipeline.description,
        pipeline=str(run.pipeline.file),
        seed=run.pipeline.seed,
        created=_format_iso_time(datetime.now(UTC).timestamp()),
        versions={
            "python": platform.python_version(),
            **{name: references.installed_version(name) for name in ("edgepipe", *TOOL_PACKAGES)},
        },
        stages=stage_reports,
        met=judge_all(
            (verdict for outcome in outcomes for verdict in outcome.verdicts),
            (finding for outcome in outcomes for finding in outcome.findings),
        )
        is Judgement.MET,
    )


def _stage_report(number: int, step_result: StepResult) -> StageReport:
    step, entry = step_result.step, step_result.stored_artifact.entry
    return StageReport(
        name=step.name,
        type=step.type,
        status="cached" if step_result.from_cache else "ran",
        kind=entry.kind,
        artifact=_artifact_path(number, step_result),
        files=_extra_target_names(number, step_result),
        digest=entry.digest,
        made=_format_iso_time(entry.created),
        cost=entry.cost,
        outcome=entry.outcome.model_copy(
            update={
                "notes": (*step_result.notes, *entry.outcome.notes),
                "findings": (*entry.outcome.findings, *step_result.findings),
            }
        ),
    )


def _artifact_path(number: int, step_result: StepResult) -> str:
    return f"artifacts/{number}-{step_result.step.name}{step_result.stored_artifact.artifact.path.suffix}"


def _extra_file_names(step_result: StepResult) -> list[str]:
    """The files that a stage wrote besides its artifact, relative to the folder of the artifact."""
    artifact = step_result.stored_artifact.artifact.path
    extra_files = (f for f in list_files(artifact.parent) if f != artifact and not f.is_relative_to(artifact))
    return [file.relative_to(artifact.parent).as_posix() for file in extra_files]


def _extra_target_names(number: int, step_result: StepResult) -> tuple[str, ...]:
    prefix = f"artifacts/{number}-{step_result.step.name}"
    return tuple(f"{prefix}-{name.replace('/', '-')}" for name in _extra_file_names(step_result))


def _format_iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def write(run: Run, report: Report, folder: Path) -> None:
    """Write the report and a copy of each stage's artifact below `folder`; each file appears whole or not at all.

    Raises:
        StorageError: `folder` cannot be written.
    """
    _remove_former_files(report, folder)
    for stage, step_result in zip(report.stages, run.step_results, strict=True):
        artifact = step_result.stored_artifact.artifact.path
        copy_atomically(artifact, folder / str(stage.artifact))
        for name, target in zip(_extra_file_names(step_result), stage.files, strict=True):
            copy_atomically(artifact.parent / name, folder / target)
    write_text(folder / "report.md", markdown.render(report))
    write_text(folder / REPORT_FILE, report.json())


def _remove_former_files(report: Report, folder: Path) -> None:
    """Remove the files that an earlier run wrote to `folder`, as its report lists them, unless they are replaced."""
    try:
        former_report = load(folder)
    except InputError:
        return
    current_file_names = {name for stage in report.stages for name in _written_file_names(stage)}
    for name in {name for stage in former_report.stages for name in _written_file_names(stage)} - current_file_names:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _written_file_names(stage: StageReport) -> list[str]:
    return [name for name in (stage.artifact, *stage.files) if name]


def check_writable(folder: Path) -> None:
    """Raise a `StorageError` now, before hours of training, if `folder` cannot be written."""
    with wrap_storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / ".writable") as temporary_path:
        temporary_path.write_text("")
    (folder / ".writable").unlink(missing_ok=True)
