"""A profiled model as tables and as a JSON document."""

import json

from edgepipe.commands.profile import OnOneDevice, OperatorOnDevice, Profiled
from edgepipe.core import units
from edgepipe.core.metric import Metric
from edgepipe.core.units import Dimension
from edgepipe.render.report_tables import Rows, how

CALM = ("NPU", "CPU")  # where an operator may run without a word, unless it has a reason
MEASURES = ("latency", "ram", "flash")
SCALES = {
    Dimension.SECONDS: ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    Dimension.BYTES: ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


def tables(found: Profiled, every_operator: bool) -> list[Rows]:
    """A line for each device; how its numbers were obtained; the operators that need a word, or all of them."""
    operators = [_operators(device, every_operator) for device in found.devices]
    broken = [_broken(device) for device in found.devices]
    parts = [_overview(found), _evidence(found), *operators, *broken]
    return [rows for rows in parts if rows.rows]


def _overview(found: Profiled) -> Rows:
    rows = tuple(
        (device.device, *(_value(device, name) for name in MEASURES), _placed(device), _fits(device))
        for device in found.devices
    )
    return Rows(found.path, ("device", *MEASURES, "operators", "runs there"), rows, frozenset({1, 2, 3}))


def _value(device: OnOneDevice, name: str) -> str:
    metric = _metric(device, name)
    return f"{_short(metric)} {metric.evidence}" if metric.value is not None else "unavailable"


def _short(metric: Metric) -> str:
    """The value in three digits, with its interval in the same unit: `988 ms (733-1330)`."""
    value = metric.value or 0.0
    factor, unit = next(((f, u) for f, u in SCALES[metric.unit] if value >= f), SCALES[metric.unit][-1])
    span = f" ({'-'.join(_digits(bound / factor) for bound in metric.interval)})" if metric.interval else ""
    return f"{_digits(value / factor)} {unit}{span}"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{float(f'{value:.3g}'):.0f}"


def _metric(device: OnOneDevice, name: str) -> Metric:
    return next(metric for metric in device.metrics if metric.name == name)


def _placed(device: OnOneDevice) -> str:
    return ", ".join(f"{count} {where}" for where, count in device.placed.items())


def _fits(device: OnOneDevice) -> str:
    """`yes`, or the rules that are broken, each once."""
    return ", ".join(dict.fromkeys(finding.rule for finding in device.findings)) or "yes"


def _evidence(found: Profiled) -> Rows:
    rows = tuple(
        (device.device, metric.name, metric.text(), str(metric.evidence), how(metric))
        for device in found.devices
        for metric in device.metrics
    )
    return Rows("How each number was obtained", ("device", "metric", "value", "evidence", "how"), rows, frozenset({2}))


def _operators(device: OnOneDevice, everything: bool) -> Rows:
    told = [one for one in device.operators if everything or one.reason or one.runs_on not in CALM]
    total = sum(one.seconds or 0.0 for one in device.operators)
    rows = tuple(
        (one.operator, one.runs_on, _seconds(one), _share(one, total), one.reason, one.suggestion) for one in told
    )
    columns = ("operator", "runs on", "time", "share", "why", "what to do")
    return Rows(f"Operators on {device.device}", columns, rows, frozenset({2, 3}))


def _seconds(one: OperatorOnDevice) -> str:
    return units.show(one.seconds, Dimension.SECONDS) if one.seconds is not None else ""


def _share(one: OperatorOnDevice, total: float) -> str:
    return units.show(one.seconds / total, Dimension.FRACTION) if one.seconds is not None and total else ""


def _broken(device: OnOneDevice) -> Rows:
    """The findings that no line of the operators' table tells."""
    told = {one.operator for one in device.operators if one.reason}
    rows = tuple(
        (found.rule, found.place, found.observed, found.suggestion)
        for found in device.findings
        if found.place not in told
    )
    return Rows(f"Rules broken on {device.device}", ("rule", "place", "observed", "what to do"), rows)


def took(found: Profiled) -> str:
    """What profiling itself took, Vela's share apart."""
    parts = [f"{name} {units.show(seconds, Dimension.SECONDS)}" for name, seconds in found.seconds.items()]
    return "took: " + ", ".join(parts)


def document(found: Profiled) -> str:
    """What `profile --json` prints."""
    return json.dumps({"schema": "edgepipe.profile/1", **found.model_dump(mode="json")}, indent=2)
