"""Builds the report of a run and writes its files: report.json, report.md and a copy of each artifact."""

import functools
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path

from edgepipe.core import references
from edgepipe.core.artifact import (
    Artifact,
    ArtifactKind,
    copy_atomically,
    list_files,
    wrap_storage_errors,
    write_atomically,
    write_text,
)
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Judgement, Suggestion, judge_all
from edgepipe.pipeline.run_folders import REPORT_FILE, RUNS_FOLDER, create_run_folder, run_folder_name
from edgepipe.pipeline.runner import Run, StepResult
from edgepipe.pipeline.schema import Pipeline
from edgepipe.render import markdown
from edgepipe.render.report import Report, StageReport, load

MODEL_FILE = "model.tflite"  # the one to deploy
TOOL_PACKAGES = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "tflite-micro",
         "ethos-u-vela", "numpy")  # fmt: skip


def build_report(run: Run) -> Report:
    """The report of a run that has ended."""
    stage_reports = tuple(_stage_report(run, number) for number in range(len(run.step_results)))
    outcomes = [stage.outcome for stage in stage_reports]
    return Report(
        name=run.pipeline.name,
        description=run.pipeline.description,
        pipeline=str(run.pipeline.file),
        seed=run.pipeline.seed,
        created=_format_iso_time(datetime.now(UTC).timestamp()),
        versions=_versions(run),
        definition=run.definition,
        model=MODEL_FILE if _is_deployable(run) else None,
        stages=stage_reports,
        suggestions=_build_suggestions(run, stage_reports),
        met=judge_all(
            (verdict for outcome in outcomes for verdict in outcome.verdicts),
            (finding for outcome in outcomes for finding in outcome.findings),
        )
        is Judgement.MET,
    )


def _versions(run: Run) -> dict[str, str]:
    """The versions of Python, edgepipe, the tools, the packages that read the data, and those of stages."""
    stage_tools = [package for step in run.pipeline.steps for package in (*step.stage.tools, step.source.package)]
    packages = dict.fromkeys(("edgepipe", *TOOL_PACKAGES, *sorted({*stage_tools} - {""})))
    versions = {name: references.installed_version(name) for name in packages}
    data_packages = run.data_identity["packages"] if run.data_identity is not None else {}
    return {"python": platform.python_version(), **versions, **data_packages}


def _build_suggestions(run: Run, stage_reports: tuple[StageReport, ...]) -> tuple[Suggestion, ...]:
    """From the last .tflite before it was compiled for an NPU, whose layers are known; none where all is met."""
    verdicts = [verdict for stage in stage_reports for verdict in stage.outcome.verdicts]
    if all(verdict.judgement is Judgement.MET for verdict in verdicts):
        return ()
    from edgepipe.render.report_suggestions import build_suggestions
    from edgepipe.tflite.reader import read

    artifacts = [step_result.stored_artifact.artifact for step_result in run.step_results]
    paths = [artifact.path for artifact in artifacts if artifact.kind is ArtifactKind.TFLITE]
    return build_suggestions(stage_reports, read(paths[-1]) if paths else None)


def _is_deployable(run: Run) -> bool:
    return run.step_results[-1].stored_artifact.artifact.kind in (ArtifactKind.TFLITE, ArtifactKind.VELA)


def _artifact_path(run: Run, number: int) -> str:
    """Where the artifact of a step is copied to; that of a step which returns its input has the copy of that."""
    artifacts = [step_result.stored_artifact.artifact for step_result in run.step_results]
    first_number = number
    while first_number and _is_same(artifacts[first_number - 1], artifacts[number]):
        first_number -= 1
    return f"{_path_prefix(run, first_number)}{artifacts[number].path.suffix}"


def _is_same(artifact: Artifact, other_artifact: Artifact) -> bool:
    return (artifact.kind, artifact.digest) == (other_artifact.kind, other_artifact.digest)


def _path_prefix(run: Run, number: int) -> str:
    return f"artifacts/{number}-{run.step_results[number].step.name}"


def _stage_report(run: Run, number: int) -> StageReport:
    step_result = run.step_results[number]
    step, entry = step_result.step, step_result.stored_artifact.entry
    return StageReport(
        name=step.name,
        type=step.type,
        status="cached" if step_result.from_cache else "ran",
        kind=entry.kind,
        artifact=_artifact_path(run, number),
        files=tuple(f"{_path_prefix(run, number)}-{name.replace('/', '-')}" for name in _extra_file_names(step_result)),
        digest=entry.digest,
        made=_format_iso_time(entry.created),
        options=step.stage.model_dump(mode="json"),
        cost=entry.cost,
        outcome=entry.outcome.model_copy(
            update={
                "notes": (*step_result.notes, *entry.outcome.notes),
                "findings": (*entry.outcome.findings, *step_result.findings),
            }
        ),
    )


def _extra_file_names(step_result: StepResult) -> list[str]:
    """The files that a stage wrote besides its artifact, relative to the folder of the artifact."""
    artifact = step_result.stored_artifact.artifact.path
    extra_files = (f for f in list_files(artifact.parent) if f != artifact and not f.is_relative_to(artifact))
    return [file.relative_to(artifact.parent).as_posix() for file in extra_files]


def _format_iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def output_parent(pipeline: Pipeline) -> Path:
    """The folder that keeps the runs of a pipeline side by side."""
    return RUNS_FOLDER / pipeline.name


def write_output(run: Run, report: Report, output_folder: Path | None) -> Report:
    """Write the report and a copy of each artifact; returns the report with its folder.

    Args:
        run: that has ended.
        report: of it.
        output_folder: the exact folder, where each file is replaced whole; None for a new folder below `runs/NAME`.

    Raises:
        StorageError: it cannot be written; nothing half-written is left.
    """
    write = functools.partial(_write_files, run, report)
    if output_folder is None:
        name = run_folder_name(run.started, run.definition)
        return report.in_folder(create_run_folder(output_parent(run.pipeline), name, write))
    _remove_former_files(report, output_folder)
    write(output_folder)
    return report.in_folder(output_folder)


def _write_files(run: Run, report: Report, folder: Path) -> None:
    for stage, step_result in zip(report.stages, run.step_results, strict=True):
        artifact = step_result.stored_artifact.artifact.path
        copy_atomically(artifact, folder / str(stage.artifact))
        for name, target in zip(_extra_file_names(step_result), stage.files, strict=True):
            copy_atomically(artifact.parent / name, folder / target)
    if report.model is not None:
        copy_atomically(artifact, folder / report.model)
    write_text(folder / "report.md", markdown.render(report))
    write_text(folder / REPORT_FILE, report.json())


def _remove_former_files(report: Report, folder: Path) -> None:
    """Remove the files that an earlier run wrote to `folder`, as its report lists them, unless they are replaced."""
    try:
        former_report = load(folder)
    except InputError:
        return
    for name in _written_file_names(former_report) - _written_file_names(report):
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _written_file_names(report: Report) -> set[str]:
    stage_files = {name for stage in report.stages for name in (stage.artifact, *stage.files) if name}
    return stage_files | ({report.model} if report.model is not None else set())


def check_writable(folder: Path) -> None:
    """Raise a `StorageError` now, before hours of training, if `folder` cannot be written."""
    with wrap_storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / ".writable") as temporary_path:
        temporary_path.write_text("")
    (folder / ".writable").unlink(missing_ok=True)
