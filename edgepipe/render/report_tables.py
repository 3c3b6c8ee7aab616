"""Tables of plain text, and those of a report: the same for the terminal and for Markdown."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from edgepipe.core import units
from edgepipe.core.metric import Finding, Judgement, Metric, Suggestion, Verdict
from edgepipe.core.outcome import Table
from edgepipe.core.units import Dimension
from edgepipe.render.report import Report, StageReport

MAX_SHOWN_EPOCHS = 12
COUNT_METRIC_NAMES = ("parameters", "nonzero_parameters", "sparsity", "size")
COLUMN_TITLE_BY_METRIC = {"nonzero_parameters": "non-zero"}


@dataclass(frozen=True)
class TextTable:
    """A titled table of texts; `right_aligned` has the indices of right-aligned columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right_aligned: frozenset[int] = frozenset()


def tables(report: Report) -> list[TextTable]:
    """Every table of the report, in reading order, without empty ones."""
    all_tables = [
        _stages_table(report),
        *_outcome_tables(report),
        *(_learning_curve_table(stage) for stage in report.stages),
        _quality_table(report),
        _devices_table(report),
        budget_table("Budget", report.verdicts),
        suggestions_table(report.suggestions),
        *findings_tables(report.findings),
    ]
    return [table for table in all_tables if table.rows]


def stage_notes(report: Report) -> list[str]:
    """The notes of all stages, each with the name of its stage."""
    return [f"{stage.name}: {note}" for stage in report.stages for note in stage.outcome.notes]


def verdict_line(report: Report) -> str:
    """The last line: whether the run met its budget and broke no rule, and what could not be decided."""
    missed_count = sum(verdict.judgement is Judgement.NOT_MET for verdict in report.verdicts)
    unknown_count = sum(verdict.judgement is Judgement.UNKNOWN for verdict in report.verdicts)
    forgiven_count = sum(verdict.met and bool(verdict.reason) for verdict in report.verdicts)
    limits_text = units.plural(len(report.verdicts), "limit")
    rules_text = _describe_rules(report)
    if missed_count or unknown_count:
        missed_text = f"{missed_count} of {limits_text} missed" if missed_count else ""
        unknown_text = f"{unknown_count} of {limits_text} unknown" if unknown_count else ""
        return "budget not met: " + ", ".join(filter(None, [missed_text, unknown_text, rules_text]))
    if not report.verdicts:
        return f"no budget was set; {rules_text or 'no rule was broken'}"
    forgiven_text = f"{units.plural(forgiven_count, 'optional limit')} not met" if forgiven_count else ""
    met_text = f"budget met: {len(report.verdicts) - forgiven_count} of {limits_text}"
    return ", ".join(filter(None, [met_text, forgiven_text, rules_text]))


def _describe_rules(report: Report) -> str:
    unknown_count = sum(finding.judgement is Judgement.UNKNOWN for finding in report.findings)
    broken_count = len(report.findings) - unknown_count
    texts = [(broken_count, "broken"), (unknown_count, "unknown")]
    return ", ".join(f"{units.plural(count, 'rule')} {text}" for count, text in texts if count)


def _stages_table(report: Report) -> TextTable:
    quality_names = validation_quality_names(report)
    quality_columns = [f"{name}, validation split" for name in quality_names]
    count_columns = [COLUMN_TITLE_BY_METRIC.get(name, name) for name in COUNT_METRIC_NAMES]
    columns = ("stage", "status", *quality_columns, *count_columns, "wall", "CPU", "peak memory")
    rows = tuple(_stage_row(stage, quality_names) for stage in report.stages)
    return TextTable("Stages", columns, rows, frozenset(range(2, len(columns))))


def validation_quality_names(report: Report) -> list[str]:
    """The quality metrics that stages measured on the validation split."""
    quality_names = [
        m.name for stage in report.stages for m in stage.outcome.metrics if m.details.get("split") == "validation"
    ]
    return list(dict.fromkeys(quality_names))


def _stage_row(stage: StageReport, quality_names: list[str]) -> tuple[str, ...]:
    quality_texts = [
        next((m.text() for m in stage.outcome.metrics if is_validation_metric(m, name)), "") for name in quality_names
    ]
    count_texts = [metric.text() if (metric := stage.metric(name)) else "" for name in COUNT_METRIC_NAMES]
    peak_memory = stage.cost.peak_memory
    memory_text = units.show(peak_memory, Dimension.BYTES) if peak_memory is not None else "unavailable"
    return (
        stage.name,
        stage.status,
        *quality_texts,
        *count_texts,
        f"{stage.cost.wall:.1f} s",
        f"{stage.cost.cpu:.1f} s",
        memory_text,
    )


def is_validation_metric(metric: Metric, name: str) -> bool:
    """Whether `metric` is `name` on the validation split."""
    return metric.name == name and metric.details.get("split") == "validation"


def _outcome_tables(report: Report) -> list[TextTable]:
    text_tables = []
    for stage in report.stages:
        for table in stage.outcome.tables:
            rows = tuple(tuple(_format_cell(cell) for cell in row) for row in table.rows)
            right_aligned = frozenset(index for index in range(len(table.columns)) if _is_numeric(table, index))
            text_tables.append(TextTable(f"{stage.name}: {table.title}", table.columns, rows, right_aligned))
    return text_tables


def _learning_curve_table(stage: StageReport) -> TextTable:
    """Loss and quality by epoch: all epochs of a short training, else some of them and always the last."""
    records = stage.outcome.learning_curve
    stride = math.ceil(len(records) / MAX_SHOWN_EPOCHS) or 1
    shown_records = [record for index, record in enumerate(reversed(records)) if index % stride == 0][::-1]
    names = list(dict.fromkeys(name for record in records for name in record.values))
    rows = tuple(
        (str(record.epoch), *(f"{record.values[name]:.4f}" if name in record.values else "" for name in names))
        for record in shown_records
    )
    count_text = "" if stride == 1 else f", {len(rows)} of {len(records)} epochs"
    columns = ("epoch", *names)
    return TextTable(f"{stage.name}: learning curve{count_text}", columns, rows, frozenset(range(len(columns))))


def _is_numeric(table: Table, column: int) -> bool:
    return all(isinstance(row[column], (int, float)) for row in table.rows)


def _format_cell(cell: str | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


def _quality_table(report: Report) -> TextTable:
    rows = [_metric_row(m) for stage in report.stages if stage.type == "validate" for m in _model_metrics(stage)]
    return TextTable(
        "Metrics of the deployed model", ("metric", "value", "evidence", "how"), tuple(rows), frozenset({1})
    )


def _model_metrics(stage: StageReport) -> list[Metric]:
    return [metric for metric in stage.outcome.metrics if metric.device is None]


def _metric_row(metric: Metric) -> tuple[str, ...]:
    return (metric.name, metric.text(), str(metric.evidence), provenance_text(metric))


def _devices_table(report: Report) -> TextTable:
    metrics = [m for stage in report.stages for m in stage.outcome.metrics if m.device is not None]
    return metrics_table("Devices", metrics)


def provenance_text(metric: Metric) -> str:
    """How a metric was obtained, with the percentiles and the age of a measurement."""
    texts = [metric.how]
    if "p5" in metric.details:
        texts += [", ".join(f"{p} {units.show(float(metric.details[p]), metric.unit)}" for p in ("p5", "p50", "p95"))]
    if "measured_at" in metric.details:
        texts += [f"measured {_age_text(str(metric.details['measured_at']))}"]
    return "; ".join(texts)


def _age_text(iso_time: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(iso_time)).total_seconds()
    for unit_name, unit_seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit_name} ago"
    return "just now"


def budget_table(title: str, verdicts: Iterable[Verdict]) -> TextTable:
    """Limits, the values they were checked with, and the verdicts."""
    rows = []
    for verdict in verdicts:
        metric = verdict.metric
        value_text = metric.text() if metric else "not measured"
        evidence_text = str(metric.evidence) if metric else ""
        rows.append((verdict.limit.text(), value_text, evidence_text, judgement_text(verdict), verdict.reason))
    return TextTable(title, ("limit", "value", "evidence", "verdict", "reason"), tuple(rows), frozenset({1}))


def suggestions_table(suggestions: Iterable[Suggestion]) -> TextTable:
    """What may meet limits that are not met."""
    rows = tuple((suggestion.limit, suggestion.text) for suggestion in suggestions)
    return TextTable("Suggestions, computed and not tried", ("limit", "what may meet it"), rows)


def metrics_table(title: str, metrics: Iterable[Metric]) -> TextTable:
    """Metrics of a model and of devices, each with its evidence."""
    rows = tuple((metric.device or "", *_metric_row(metric)) for metric in metrics)
    return TextTable(title, ("device", "metric", "value", "evidence", "how"), rows, frozenset({2}))


def verdicts_table(title: str, verdicts: Iterable[Verdict]) -> TextTable:
    """Limits, each with the value it was checked with."""
    rows = tuple((v.limit.text(), v.metric.text() if v.metric else "", judgement_text(v), v.reason) for v in verdicts)
    return TextTable(title, ("limit", "value", "verdict", "reason"), rows, frozenset({1}))


def findings_tables(findings: Iterable[Finding], suffix: str = "") -> list[TextTable]:
    """The broken rules and the undecided ones, each with its device and a fix; without empty tables."""
    findings_by_title: dict[str, list[Finding]] = {"Broken rules": [], "Not known": []}
    for finding in findings:
        findings_by_title["Not known" if finding.judgement is Judgement.UNKNOWN else "Broken rules"].append(finding)
    return [_findings_table(f"{title}{suffix}", group) for title, group in findings_by_title.items() if group]


def _findings_table(title: str, findings: list[Finding]) -> TextTable:
    rows = tuple((f.device or "", f.rule, f.place, f.observed, f.suggestion) for f in findings)
    columns = ("device", "rule", "where", "found", "fix")
    if any(finding.device for finding in findings):
        return TextTable(title, columns, rows)
    return TextTable(title, columns[1:], tuple(row[1:] for row in rows))


def judgement_text(verdict: Verdict) -> str:
    """`met`, `NOT MET`, `UNKNOWN`, or that a limit without a value is optional."""
    if verdict.judgement is Judgement.MET:
        return "optional, not met" if verdict.reason else "met"
    return verdict.judgement.value.upper()
