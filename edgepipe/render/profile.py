"""The profile of a model as tables and as JSON: `edgepipe profile`."""

from edgepipe.commands.profile import DeviceProfileResult, ModelProfile, OperatorProfile
from edgepipe.core import units
from edgepipe.core.escape import json_text
from edgepipe.core.metric import Judgement, Metric
from edgepipe.core.units import Dimension
from edgepipe.render.report_tables import TextTable, findings_tables, provenance_text

EXPECTED_PROCESSORS = ("NPU", "CPU")  # operators here are listed only if they have a reason
METRIC_NAMES = ("latency", "ram", "flash")
UNIT_SCALES_BY_DIMENSION = {
    Dimension.SECONDS: ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    Dimension.BYTES: ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


def tables(model_profile: ModelProfile, every_operator: bool) -> list[TextTable]:
    """An overview of the devices, the evidence of their numbers, and their operators: all, or those with a problem."""
    operator_tables = [_operators_table(device, every_operator) for device in model_profile.devices]
    finding_tables = [table for device in model_profile.devices for table in _findings_tables(device)]
    all_tables = [_overview_table(model_profile), _evidence_table(model_profile), *operator_tables, *finding_tables]
    return [table for table in all_tables if table.rows]


def _overview_table(model_profile: ModelProfile) -> TextTable:
    rows = tuple(
        (
            device_result.device,
            *(_metric_text(device_result, name) for name in METRIC_NAMES),
            _placement_text(device_result),
            _broken_rules_text(device_result),
        )
        for device_result in model_profile.devices
    )
    return TextTable(
        model_profile.path, ("device", *METRIC_NAMES, "operators", "runs there"), rows, frozenset({1, 2, 3})
    )


def _metric_text(device_result: DeviceProfileResult, name: str) -> str:
    metric = _find_metric(device_result, name)
    return f"{_format_metric(metric)} {metric.evidence}" if metric.value is not None else "unavailable"


def _format_metric(metric: Metric) -> str:
    """The value with three digits, and its interval in the same unit: `988 ms (733-1330)`."""
    value = metric.value or 0.0
    unit_factor, unit_name = next(
        ((f, u) for f, u in UNIT_SCALES_BY_DIMENSION[metric.unit] if value >= f),
        UNIT_SCALES_BY_DIMENSION[metric.unit][-1],
    )
    interval_text = (
        f" ({'-'.join(_format_digits(bound / unit_factor) for bound in metric.interval)})" if metric.interval else ""
    )
    return f"{_format_digits(value / unit_factor)} {unit_name}{interval_text}"


def _format_digits(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{float(f'{number:.3g}'):.0f}"


def _find_metric(device_result: DeviceProfileResult, name: str) -> Metric:
    return next(metric for metric in device_result.metrics if metric.name == name)


def _placement_text(device_result: DeviceProfileResult) -> str:
    return ", ".join(f"{count} {processor}" for processor, count in device_result.operator_counts.items())


def _broken_rules_text(device_result: DeviceProfileResult) -> str:
    """`yes`, or the broken rules, each once; `unknown` before those that nothing here can check."""
    rule_texts = [
        f"unknown: {finding.rule}" if finding.judgement is Judgement.UNKNOWN else finding.rule
        for finding in device_result.findings
    ]
    return ", ".join(dict.fromkeys(rule_texts)) or "yes"


def _evidence_table(model_profile: ModelProfile) -> TextTable:
    rows = tuple(
        (device_result.device, metric.name, metric.text(), str(metric.evidence), provenance_text(metric))
        for device_result in model_profile.devices
        for metric in device_result.metrics
    )
    return TextTable(
        "How each number was obtained", ("device", "metric", "value", "evidence", "how"), rows, frozenset({2})
    )


def _operators_table(device_result: DeviceProfileResult, every_operator: bool) -> TextTable:
    listed_operators = [
        operator
        for operator in device_result.operators
        if every_operator or operator.reason or operator.is_open or operator.runs_on not in EXPECTED_PROCESSORS
    ]
    total_seconds = sum(operator.seconds or 0.0 for operator in device_result.operators)
    rows = tuple(
        (
            operator.operator,
            operator.runs_on,
            f"{operator.evidence}, open" if operator.is_open else operator.evidence,
            _format_seconds(operator),
            _format_share(operator, total_seconds),
            operator.reason or operator.basis,
            operator.suggestion,
        )
        for operator in listed_operators
    )
    columns = ("operator", "runs on", "evidence", "time", "share", "reason", "fix")
    return TextTable(f"Operators on {device_result.device}", columns, rows, frozenset({3, 4}))


def _format_seconds(operator: OperatorProfile) -> str:
    return units.show(operator.seconds, Dimension.SECONDS) if operator.seconds is not None else ""


def _format_share(operator: OperatorProfile, total_seconds: float) -> str:
    return (
        units.show(operator.seconds / total_seconds, Dimension.FRACTION)
        if operator.seconds is not None and total_seconds
        else ""
    )


def _findings_tables(device_result: DeviceProfileResult) -> list[TextTable]:
    """The findings that are not in the table of operators."""
    explained_operators = {operator.operator for operator in device_result.operators if operator.reason}
    findings = [
        finding.model_copy(update={"device": None})
        for finding in device_result.findings
        if finding.place not in explained_operators
    ]
    return findings_tables(findings, f" on {device_result.device}")


def describe_durations(model_profile: ModelProfile) -> str:
    """The time that profiling itself took, by method."""
    durations = [f"{name} {units.show(seconds, Dimension.SECONDS)}" for name, seconds in model_profile.seconds.items()]
    return "took: " + ", ".join(durations)


def document(model_profile: ModelProfile) -> str:
    """The same as one JSON document."""
    return json_text({"schema": "edgepipe.profile/1", **model_profile.model_dump(mode="json")})
