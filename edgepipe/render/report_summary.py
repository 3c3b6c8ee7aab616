"""The short report: quality, size, the devices, what was not met and what needs attention; `--full` shows all of it."""

from edgepipe.core.metric import Evidence, Judgement, Metric
from edgepipe.render import report_tables
from edgepipe.render.device_overview import DeviceOverview, overview_table
from edgepipe.render.report import Report, StageReport
from edgepipe.render.report_tables import TextTable, findings_tables

MAX_NOTES = 8


def summary_tables(report: Report) -> list[TextTable]:
    """The tables of the short report, without empty ones."""
    all_tables = [
        _stages_table(report),
        _model_table(report),
        overview_table("Devices", _device_overviews(report)),
        report_tables.budget_table("Not met", [v for v in report.verdicts if v.judgement is not Judgement.MET]),
        report_tables.suggestions_table(report.suggestions),
        *findings_tables(report.findings),
    ]
    return [table for table in all_tables if table.rows]


def summary_notes(report: Report) -> list[str]:
    """The first notes of the stages, and how many more there are."""
    notes = report_tables.stage_notes(report)
    hidden_count = len(notes) - MAX_NOTES
    if hidden_count <= 1:
        return notes
    return [*notes[:MAX_NOTES], f"and {hidden_count} more notes: {full_command(report)}"]


def full_command(report: Report) -> str:
    """The command that shows everything."""
    return f"edgepipe report {report.folder or 'RUN'} --full"


def _stages_table(report: Report) -> TextTable:
    names = report_tables.validation_quality_names(report)
    rows = tuple(
        (stage.name, stage.status, *(_quality_text(stage, name) for name in names), f"{stage.cost.wall:.1f} s")
        for stage in report.stages
    )
    columns = ("stage", "status", *(f"{name}, validation split" for name in names), "time")
    return TextTable("Stages", columns, rows, frozenset(range(2, len(columns))))


def _quality_text(stage: StageReport, name: str) -> str:
    return next((m.text() for m in stage.outcome.metrics if report_tables.is_validation_metric(m, name)), "")


def _model_table(report: Report) -> TextTable:
    """What was measured on the deployed model, and its size."""
    metrics = [m for stage in report.stages if stage.type == "validate" for m in stage.outcome.metrics]
    rows = tuple((m.name, m.text(), str(m.evidence)) for m in metrics if m.device is None and _is_essential(m))
    return TextTable("Deployed model, quality on the test split", ("metric", "value", "evidence"), rows, frozenset({1}))


def _is_essential(metric: Metric) -> bool:
    return metric.evidence is Evidence.MEASURED or metric.name == "size"


def _device_overviews(report: Report) -> list[DeviceOverview]:
    metrics = [m for stage in report.stages for m in stage.outcome.metrics if m.device is not None]
    devices = dict.fromkeys(str(metric.device) for metric in metrics)
    return [
        DeviceOverview(
            device,
            tuple(metric for metric in metrics if metric.device == device),
            tuple(finding for finding in report.findings if finding.device == device),
        )
        for device in devices
    ]
