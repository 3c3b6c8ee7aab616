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
    first_text: str
    second_text: str
    change: str = Field(default="", description="of a metric with a value in both runs")


class RunComparison(Record):
    """What differs between two runs."""

    first_report: str = Field(description="the folder of the first run")
    second_report: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = Field(default=(), description="what could not be compared")

    def of(self, aspect: Aspect) -> list[Difference]:
        """The differences in one aspect."""
        return [difference for difference in self.differences if difference.aspect == aspect]


def compare(first_report: Report, second_report: Report) -> RunComparison:
    """Compare two reports."""
    differences = [
        *_text_differences("option", _options(first_report), _options(second_report)),
        *_text_differences("input", _inputs(first_report), _inputs(second_report)),
        *_text_differences("version", first_report.versions, second_report.versions),
        *_metric_differences(_metrics(first_report), _metrics(second_report)),
    ]
    notes = tuple(
        f"{_report_name(report)} stores no options: it was written by edgepipe {report.versions.get('edgepipe', '?')}"
        for report in (first_report, second_report)
        if report.definition is None
    )
    return RunComparison(
        first_report=_report_name(first_report),
        second_report=_report_name(second_report),
        differences=tuple(differences),
        notes=notes,
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


def _text_differences(
    aspect: Aspect, first_texts: Mapping[str, str], second_texts: Mapping[str, str]
) -> list[Difference]:
    names = dict.fromkeys([*first_texts, *second_texts])
    pairs = [(name, first_texts.get(name, ABSENT), second_texts.get(name, ABSENT)) for name in names]
    return [Difference(aspect=aspect, name=name, first_text=a, second_text=b) for name, a, b in pairs if a != b]


def _metric_differences(
    first_metrics: Mapping[str, Metric], second_metrics: Mapping[str, Metric]
) -> Iterator[Difference]:
    for name in dict.fromkeys([*first_metrics, *second_metrics]):
        a, b = first_metrics.get(name), second_metrics.get(name)
        texts = [metric.text() if metric is not None else ABSENT for metric in (a, b)]
        if texts[0] != texts[1]:
            change = _describe_change(a, b)
            yield Difference(aspect="metric", name=name, first_text=texts[0], second_text=texts[1], change=change)


def _describe_change(first_metric: Metric | None, second_metric: Metric | None) -> str:
    """Points of a share, else per cent of the first value; empty where there is nothing to compare."""
    if first_metric is None or second_metric is None or first_metric.value is None or second_metric.value is None:
        return ""
    if first_metric.unit is Dimension.FRACTION:
        return f"{(second_metric.value - first_metric.value) * 100:+.2f} points"
    return f"{(second_metric.value / first_metric.value - 1) * 100:+.1f} %" if first_metric.value else ""
