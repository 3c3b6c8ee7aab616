"""Suggestions for the limits that a run does not meet: on cost from the deployed model, on quality from the stages."""

from collections.abc import Sequence
from itertools import pairwise

from edgepipe.core import units
from edgepipe.core.metric import Judgement, Suggestion, Verdict
from edgepipe.core.units import Dimension
from edgepipe.devices.limit_suggestions import suggest_for_limit
from edgepipe.render.report import StageReport
from edgepipe.tflite.model import Model

REMEDY_BY_STAGE_TYPE = {
    "prune": "a lower sparsity, or more epochs",
    "cluster": "more clusters, or more epochs",
    "distill": "more epochs, or a larger student",
    "quantize": "more epochs, or layers kept in float",
    "convert": "`quantize` before it trains for 8 bits; `scheme: mixed` keeps the most sensitive layers finer",
}


def build_suggestions(stages: Sequence[StageReport], model: Model | None) -> tuple[Suggestion, ...]:
    """A suggestion for each limit that is not met, where the facts give one.

    Args:
        stages: of the run.
        model: the deployed one; None if it is no .tflite that can be read.
    """
    verdicts = [verdict for stage in stages for verdict in stage.outcome.verdicts]
    texts = [(verdict.limit.text(), _suggest(verdict, stages, model)) for verdict in verdicts]
    return tuple(Suggestion(limit=limit, text=text) for limit, text in texts if text)


def _suggest(verdict: Verdict, stages: Sequence[StageReport], model: Model | None) -> str:
    cost_text = suggest_for_limit(verdict, model) if model is not None else ""
    return cost_text or _suggest_for_quality(verdict, stages)


def _suggest_for_quality(verdict: Verdict, stages: Sequence[StageReport]) -> str:
    """Where quality was lost, on the validation split; empty for what is not a share, of which more is better."""
    limit = verdict.limit
    is_drop = limit.metric.endswith("_drop")
    if verdict.judgement is not Judgement.NOT_MET or limit.unit is not Dimension.FRACTION:
        return ""
    quality = _validation_quality(stages, limit.metric.removesuffix("_drop"))
    if not quality or limit.bound != ("max" if is_drop else "min"):
        return ""
    first_stage, first_value = quality[0]
    if not is_drop and first_value < limit.value:
        return (
            f"'{first_stage.name}' itself reaches {_show(first_value)} on the validation split: more epochs, a larger "
            "model or more data; compression is not the cause"
        )
    losses = [(before - after, stage, before, after) for (_, before), (stage, after) in pairwise(quality)]
    if not losses or max(loss for loss, *_ in losses) <= 0:
        return ""
    _, stage, before, after = max(losses, key=lambda loss: loss[0])
    remedy = REMEDY_BY_STAGE_TYPE.get(stage.type, "its options")
    return f"most is lost in '{stage.name}' ({_show(before)} to {_show(after)} on the validation split): {remedy}"


def _validation_quality(stages: Sequence[StageReport], name: str) -> list[tuple[StageReport, float]]:
    return [
        (stage, metric.value)
        for stage in stages
        for metric in stage.outcome.metrics
        if metric.name == name and metric.details.get("split") == "validation" and metric.value is not None
    ]


def _show(share: float) -> str:
    return units.show(share, Dimension.FRACTION)
