"""What differs between two runs: options, inputs, versions and metrics."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from edgepipe.core.metric import Metric, Record
from edgepipe.core.units import Dimension
from edgepipe.render.report import Report, StageReport

Aspect = Literal["option", "input", "version", "metric"]
ABSENT = ""


class Difference(Record):
    """One thing that differs; a text is empty where that run does not have it."""

    aspect: Aspect
    name: str
    first: str
    second: str
    change: str = Field(default="", description="of a metric with a value in both runs")


class RunComparison(Record):
    """What differs between two runs."""

    first: str = Field(description="the report of the first run")
    second: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = Field(default=(), description="what could not be compared")

    def of(self, aspect: Aspect) -> list[Difference]:
        """The differences in one aspect."""
        return [difference for difference in self.differences if difference.aspect == aspect]


def compare(first: Report, second: Report) -> RunComparison:
    """Compare two reports."""
    differences = [
        *_text_differences("option", _options(first), _options(second)),
        *_text_differences("input", _inputs(first), _inputs(second)),
        *_text_differences("version", first.versions, second.versions),
        *_metric_differences(_metrics(first), _metrics(second)),
    ]
    notes = tuple(
        f"{_report_name(report)} stores no options: it was written by edgepipe {report.versions.get('edgepipe', '?')}"
        for report in (first, second)
        if report.definition is None
    )
    return RunComparison(
        first=_report_name(first), second=_report_name(second), differences=tuple(differences), notes=notes
    )


def _report_name(report: Report) -> str:
    return str(report.folder) if report.folder is not None else report.name


def _options(report: Report) -> dict[str, str]:
    """Every option by its path, as `--set` takes it, and each stage."""
    content = dict(report.definition.pipeline) if report.definition is not None else {}
    texts = dict(_flatten({key: option for key, option in content.items() if key not in ("stages", "name")}, ""))
    texts["seed"] = str(report.seed)
    for stage in report.stages:
        texts[f"stages.{stage.name}"] = stage.type
        if stage.type != "model":  # whose options are those of `model:`
            texts |= dict(_flatten(stage.options, f"stages.{stage.name}."))
    return texts


def _flatten(options: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for key, option in options.items():
        if isinstance(option, Mapping) and option:
            yield from _flatten(option, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _option_text(option)


def _option_text(option: Any) -> str:
    if isinstance(option, bool):
        return "true" if option else "false"
    if isinstance(option, list):
        return f"[{', '.join(map(_option_text, option))}]"
    return "null" if option is None else str(option)


def _inputs(report: Report) -> dict[str, str]:
    inputs = report.definition.inputs if report.definition is not None else ()
    return {str(run_input): run_input.digest[:12] for run_input in inputs}


def _metrics(report: Report) -> dict[str, Metric]:
    return {_metric_name(stage, metric): metric for stage in report.stages for metric in stage.outcome.metrics}


def _metric_name(stage: StageReport, metric: Metric) -> str:
    device_text = f"{metric.device} " if metric.device else ""
    split_text = ", validation split" if metric.details.get("split") == "validation" else ""
    return f"{stage.name}: {device_text}{metric.name}{split_text}"


def _text_differences(aspect: Aspect, first: Mapping[str, str], second: Mapping[str, str]) -> list[Difference]:
    names = dict.fromkeys([*first, *second])
    pairs = [(name, first.get(name, ABSENT), second.get(name, ABSENT)) for name in names]
    return [Difference(aspect=aspect, name=name, first=a, second=b) for name, a, b in pairs if a != b]


def _metric_differences(first: Mapping[str, Metric], second: Mapping[str, Metric]) -> Iterator[Difference]:
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        texts = [metric.text() if metric is not None else ABSENT for metric in (a, b)]
        if texts[0] != texts[1]:
            change = _describe_change(a, b)
            yield Difference(aspect="metric", name=name, first=texts[0], second=texts[1], change=change)


def _describe_change(first: Metric | None, second: Metric | None) -> str:
    """Points of a share, else per cent of the first value; empty where there is nothing to compare."""
    if first is None or second is None or first.value is None or second.value is None:
        return ""
    if first.unit is Dimension.FRACTION:
        return f"{(second.value - first.value) * 100:+.2f} points"
    return f"{(second.value / first.value - 1) * 100:+.1f} %" if first.value else ""
