"""The profile of a model as tables and as JSON: `edgepipe profile`."""

from edgepipe.commands.profile import DeviceProfileResult, ModelProfile, OperatorProfile
from edgepipe.core import units
from edgepipe.core.escape import json_text
from edgepipe.core.units import Dimension
from edgepipe.render.device_overview import DeviceOverview, compact_table, overview_table
from edgepipe.render.report_tables import TextTable, findings_tables, provenance_text

EXPECTED_PROCESSORS = ("NPU", "CPU")  # operators here are listed only if they have a reason


def tables(model_profile: ModelProfile, every_operator: bool, full: bool = True) -> list[TextTable]:
    """An overview of the devices, the evidence of their numbers, their operators and the rules that are broken.

    Args:
        model_profile: to show.
        every_operator: list all operators, not only those with a problem.
        full: more than the overview, which has one line a device.
    """
    if not full:
        return [compact_table(model_profile.path, _device_overviews(model_profile))]
    operator_tables = [_operators_table(device, every_operator) for device in model_profile.devices]
    finding_tables = [table for device in model_profile.devices for table in _findings_tables(device)]
    all_tables = [_overview_table(model_profile), _evidence_table(model_profile), *operator_tables, *finding_tables]
    return [table for table in all_tables if table.rows]


def _overview_table(model_profile: ModelProfile) -> TextTable:
    return overview_table(model_profile.path, _device_overviews(model_profile))


def _device_overviews(model_profile: ModelProfile) -> list[DeviceOverview]:
    return [DeviceOverview(d.device, d.metrics, d.findings, d.operator_counts) for d in model_profile.devices]


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
