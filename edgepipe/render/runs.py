"""Earlier runs: what is kept below `runs/`, what differs between two, and removing old ones: `edgepipe runs`."""

from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.escape import json_text
from edgepipe.core.metric import judge_all
from edgepipe.pipeline.run_folders import (
    find_latest,
    list_run_folders,
    pipelines_with_runs,
    remove_run_folder,
)
from edgepipe.render.report import Report, load
from edgepipe.render.report_tables import TextTable
from edgepipe.render.run_comparison import Aspect, RunComparison

_TITLE_BY_ASPECT: dict[Aspect, str] = {"option": "Options", "input": "Inputs", "version": "Versions",
                                       "metric": "Metrics"}  # fmt: skip


@dataclass(frozen=True)
class KeptRun:
    """A run below `runs/`; `report` is None where `problem` says why it cannot be read."""

    name: str  # NAME/FOLDER
    folder: Path
    is_latest: bool
    report: Report | None
    problem: str = ""


def list_runs(runs_folder: Path, pipeline: str | None = None) -> list[KeptRun]:
    """The runs of one pipeline or of all, the newest of each first.

    Raises:
        InputError: there is no run of that pipeline.
    """
    names = _select_pipelines(runs_folder, pipeline)
    return [
        _read_run(folder, is_latest=folder == _latest_folder(runs_folder / name))
        for name in names
        for folder in list_run_folders(runs_folder / name)
    ]


def _select_pipelines(runs_folder: Path, pipeline: str | None) -> list[str]:
    names = pipelines_with_runs(runs_folder)
    if pipeline is None:
        return names
    if pipeline not in names:
        raise InputError(f"{runs_folder}: holds no run of '{pipeline}'{did_you_mean(pipeline, names)}")
    return [pipeline]


def _latest_folder(parent: Path) -> Path | None:
    try:
        return find_latest(parent)
    except InputError:  # the run it pointed to was removed by hand: no run is the latest
        return None


def _read_run(folder: Path, is_latest: bool) -> KeptRun:
    name = f"{folder.parent.name}/{folder.name}"
    try:
        return KeptRun(name, folder, is_latest, load(folder))
    except InputError as error:
        return KeptRun(name, folder, is_latest, None, str(error))


def prune_runs(runs_folder: Path, keep: int, pipeline: str | None = None) -> list[Path]:
    """Remove all but the newest `keep` runs of each pipeline; the one that `latest` points to always stays.

    Returns: the folders that were removed.

    Raises:
        InputError: there is no run of that pipeline.
        StorageError: one cannot be removed.
    """
    old_folders = [
        folder
        for name in _select_pipelines(runs_folder, pipeline)
        for folder in list_run_folders(runs_folder / name)[keep:]
        if folder != _latest_folder(runs_folder / name)
    ]
    for folder in old_folders:
        remove_run_folder(folder)
    return old_folders


def tables(kept_runs: list[KeptRun]) -> list[TextTable]:
    """One line a run."""
    columns = ("run", "", "verdict", "quality", "size", "edgepipe")
    rows = tuple((run.name, "latest" if run.is_latest else "", *_summary(run)) for run in kept_runs)
    return [TextTable("Runs", columns, rows, frozenset({3, 4}))]


def _summary(run: KeptRun) -> tuple[str, str, str, str]:
    if run.report is None:
        return "cannot be read", "", "", ""
    return _verdict(run.report), _quality_text(run.report), _size_text(run.report), run.report.versions["edgepipe"]


def _verdict(report: Report) -> str:
    return judge_all(report.verdicts, report.findings).value


def _quality_text(report: Report) -> str:
    metric = next((m for stage in reversed(report.stages) for m in stage.outcome.metrics if "split" in m.details), None)
    return f"{metric.name} {metric.text()}" if metric is not None else ""


def _size_text(report: Report) -> str:
    sizes = [metric for stage in report.stages if (metric := stage.metric("size")) is not None]
    return sizes[-1].text() if sizes else ""


def document(kept_runs: list[KeptRun]) -> str:
    """The list as one JSON document."""
    entries = [
        {
            "run": run.name,
            "folder": str(run.folder),
            "latest": run.is_latest,
            "created": run.report.created if run.report is not None else None,
            "met": run.report.met if run.report is not None else None,
            "problem": run.problem,
        }
        for run in kept_runs
    ]
    return json_text({"schema": "edgepipe.runs/1", "runs": entries})


def comparison_tables(comparison: RunComparison) -> list[TextTable]:
    """One table for each aspect in which the runs differ."""
    return [
        _comparison_table(comparison, aspect, title)
        for aspect, title in _TITLE_BY_ASPECT.items()
        if comparison.of(aspect)
    ]


def _comparison_table(comparison: RunComparison, aspect: Aspect, title: str) -> TextTable:
    columns = (aspect, "A", "B", *(("change",) if aspect == "metric" else ()))
    rows = tuple(
        (d.name, d.first_text or "-", d.second_text or "-", *((d.change,) if aspect == "metric" else ()))
        for d in comparison.of(aspect)
    )
    right_aligned = frozenset({1, 2, 3}) if aspect == "metric" else frozenset()
    return TextTable(f"{title} that differ", columns, rows, right_aligned)


def comparison_document(comparison: RunComparison) -> str:
    """The comparison as one JSON document."""
    return json_text({"schema": "edgepipe.runs-comparison/1", **comparison.model_dump(mode="json")})
