"""One line a device: its latency, RAM and flash, each with its evidence, and whether the model runs there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgepipe.core.metric import Evidence, Finding, Judgement, Metric
from edgepipe.core.units import Dimension
from edgepipe.render.report_tables import TextTable

METRIC_NAMES = ("latency", "ram", "flash")
_UNIT_SCALES_BY_DIMENSION = {
    Dimension.SECONDS: ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    Dimension.BYTES: ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


@dataclass(frozen=True)
class DeviceOverview:
    """What is known of a model on one device."""

    device: str
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    operator_counts: Mapping[str, int] | None = None  # by where they run; None where that is not known


def overview_table(title: str, overviews: Iterable[DeviceOverview]) -> TextTable:
    """The table of these devices; without the column of operators if none has them."""
    overviews = tuple(overviews)
    has_operators = any(overview.operator_counts is not None for overview in overviews)
    rows = tuple(
        (
            overview.device,
            *(_metric_text(overview, name) for name in METRIC_NAMES),
            *((_placement_text(overview),) if has_operators else ()),
            _broken_rules_text(overview),
        )
        for overview in overviews
    )
    columns = ("device", *METRIC_NAMES, *(("operators",) if has_operators else ()), "runs there")
    return TextTable(title, columns, rows, frozenset({1, 2, 3}))


COMPACT_LEGEND = "a range is an estimate; s: simulated; m: measured; else exact"
_COMPACT_MARKS = {Evidence.SIMULATED: " s", Evidence.MEASURED: " m"}


def compact_table(title: str, overviews: Iterable[DeviceOverview]) -> TextTable:
    """The same for many devices, so that each takes one line: of an estimate only its range."""
    rows = tuple(
        (overview.device, *(_compact_text(overview, name) for name in METRIC_NAMES), _broken_rules_text(overview))
        for overview in overviews
    )
    return TextTable(f"{title} ({COMPACT_LEGEND})", ("device", *METRIC_NAMES, "runs there"), rows, frozenset({1, 2, 3}))


def _compact_text(overview: DeviceOverview, name: str) -> str:
    metric = next((metric for metric in overview.metrics if metric.name == name), None)
    if metric is None or metric.value is None:
        return "-"
    if metric.interval is None:
        return f"{_format_metric(metric)}{_COMPACT_MARKS.get(metric.evidence, '')}"
    low, high = metric.interval
    unit_factor, unit_name = _choose_unit(metric)
    return f"{_format_digits(low / unit_factor)}-{_format_digits(high / unit_factor)} {unit_name}"


def _choose_unit(metric: Metric) -> tuple[float, str]:
    """The largest unit that the value has at least one of."""
    unit_scales = _UNIT_SCALES_BY_DIMENSION[metric.unit]
    return next((scale for scale in unit_scales if (metric.value or 0.0) >= scale[0]), unit_scales[-1])


def _metric_text(overview: DeviceOverview, name: str) -> str:
    metric = next((metric for metric in overview.metrics if metric.name == name), None)
    if metric is None:
        return ""
    return f"{_format_metric(metric)} {metric.evidence}" if metric.value is not None else "unavailable"


def _format_metric(metric: Metric) -> str:
    """The value with three digits, and its interval in the same unit: `988 ms (733-1330)`."""
    value = metric.value or 0.0
    unit_factor, unit_name = _choose_unit(metric)
    interval_text = (
        f" ({'-'.join(_format_digits(bound / unit_factor) for bound in metric.interval)})" if metric.interval else ""
    )
    return f"{_format_digits(value / unit_factor)} {unit_name}{interval_text}"


def _format_digits(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{float(f'{number:.3g}'):.0f}"


def _placement_text(overview: DeviceOverview) -> str:
    return ", ".join(f"{count} {processor}" for processor, count in (overview.operator_counts or {}).items())


def _broken_rules_text(overview: DeviceOverview) -> str:
    """`yes`, or the broken rules, each once; `unknown` before those that nothing here can check."""
    rule_texts = [
        f"unknown: {finding.rule}" if finding.judgement is Judgement.UNKNOWN else finding.rule
        for finding in overview.findings
    ]
    return ", ".join(dict.fromkeys(rule_texts)) or "yes"
