"""The tables of a report as plain rows of text, the same for the terminal and for Markdown."""

from dataclasses import dataclass
from datetime import UTC, datetime

from edgepipe.core import units
from edgepipe.core.metric import Metric
from edgepipe.core.units import Dimension
from edgepipe.render.report import Report, StageReport

COUNTED = ("parameters", "nonzero_parameters", "sparsity", "size")
HEADS = {"nonzero_parameters": "non-zero"}
PER_DEVICE = ("latency", "ram", "flash")


@dataclass(frozen=True)
class Rows:
    """A titled table of texts; `right` holds the numbers of the columns that align right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()


def tables(report: Report) -> list[Rows]:
    """Every table of the report, in the order it is read; empty ones are left out."""
    found = [
        _stages(report),
        *_outcome_tables(report),
        _quality(report),
        _devices(report),
        _budget(report),
        _broken(report),
    ]
    return [table for table in found if table.rows]


def notes(report: Report) -> list[str]:
    """What was skipped, left alone or fell back, by stage."""
    return [f"{stage.name}: {note}" for stage in report.stages for note in stage.outcome.notes]


def verdict(report: Report) -> str:
    """The last line: whether the run met what was asked."""
    missed = [v for v in report.verdicts if not v.met]
    if report.met:
        return f"met: all {len(report.verdicts)} limits" if report.verdicts else "no budget was set; no rule was broken"
    parts = [f"{len(missed)} of {len(report.verdicts)} limits"] if missed else []
    broken = len(report.findings)
    parts += [f"{broken} {'rule' if broken == 1 else 'rules'} broken"] if broken else []
    return f"not met: {', '.join(parts)}"


def _stages(report: Report) -> Rows:
    qualities = _quality_names(report)
    columns = ("stage", "status", *(f"{name} (val.)" for name in qualities), *(HEADS.get(n, n) for n in COUNTED),
               "wall", "CPU", "peak memory")  # fmt: skip
    rows = tuple(_stage(stage, qualities) for stage in report.stages)
    return Rows("Stages", columns, rows, frozenset(range(2, len(columns))))


def _quality_names(report: Report) -> list[str]:
    named = [m.name for stage in report.stages for m in stage.outcome.metrics if m.details.get("split") == "validation"]
    return list(dict.fromkeys(named))


def _stage(stage: StageReport, qualities: list[str]) -> tuple[str, ...]:
    values = [next((m.text() for m in stage.outcome.metrics if _is_validation(m, name)), "") for name in qualities]
    counted = [metric.text() if (metric := stage.metric(name)) else "" for name in COUNTED]
    peak = stage.cost.peak_memory
    memory = units.show(peak, Dimension.BYTES) if peak is not None else "unavailable"
    return (stage.name, stage.status, *values, *counted, f"{stage.cost.wall:.1f} s", f"{stage.cost.cpu:.1f} s", memory)


def _is_validation(metric: Metric, name: str) -> bool:
    return metric.name == name and metric.details.get("split") == "validation"


def _outcome_tables(report: Report) -> list[Rows]:
    found = []
    for stage in report.stages:
        for table in stage.outcome.tables:
            rows = tuple(tuple(_cell(value) for value in row) for row in table.rows)
            numbers = [all(isinstance(row[i], (int, float)) for row in table.rows) for i in range(len(table.columns))]
            right = frozenset(i for i, number in enumerate(numbers) if number)
            found.append(Rows(f"{stage.name}: {table.title}", table.columns, rows, right))
    return found


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _quality(report: Report) -> Rows:
    rows = [_metric_row(m) for stage in report.stages if stage.type == "validate" for m in _of_model(stage)]
    return Rows(
        "Quality and facts of the deployed model", ("metric", "value", "evidence", "how"), tuple(rows), frozenset({1})
    )


def _of_model(stage: StageReport) -> list[Metric]:
    return [metric for metric in stage.outcome.metrics if metric.device is None]


def _metric_row(metric: Metric) -> tuple[str, ...]:
    return (metric.name, metric.text(), str(metric.evidence), how(metric))


def _devices(report: Report) -> Rows:
    metrics = [m for stage in report.stages for m in stage.outcome.metrics if m.device is not None]
    rows = tuple((str(m.device), *_metric_row(m)) for m in metrics)
    return Rows("Devices", ("device", "metric", "value", "evidence", "how"), rows, frozenset({2}))


def how(metric: Metric) -> str:
    """How a metric was obtained, with the percentiles and the age of a measurement."""
    parts = [metric.how]
    if "p5" in metric.details:
        parts += [", ".join(f"{p} {units.show(float(metric.details[p]), metric.unit)}" for p in ("p5", "p50", "p95"))]
    if "measured_at" in metric.details:
        parts += [f"measured {_age(str(metric.details['measured_at']))}"]
    return "; ".join(parts)


def _age(moment: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return "just now"


def _budget(report: Report) -> Rows:
    rows = []
    for verdict in report.verdicts:
        metric = verdict.metric
        value = metric.text() if metric else "not taken"
        status = "met" if verdict.met and not verdict.reason else "optional, not met" if verdict.met else "NOT MET"
        rows.append((verdict.limit.text(), value, str(metric.evidence) if metric else "", status, verdict.reason))
    return Rows("Budget", ("limit", "value", "evidence", "verdict", "why"), tuple(rows), frozenset({1}))


def _broken(report: Report) -> Rows:
    rows = tuple((f.rule, f.place, f.observed, f.suggestion) for f in report.findings)
    return Rows("Rules broken", ("rule", "place", "observed", "what to do"), rows)
