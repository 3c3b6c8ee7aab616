"""Quality that no budget has to ask for: above chance, and not far below what the model had before compression.

Judged from the metrics of a run's stages, cached or not, so that `allow_chance` changes no cached result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgepipe.core.metric import Finding, Judgement, Metric
from edgepipe.core.outcome import Outcome
from edgepipe.core.units import Dimension
from edgepipe.pipeline.schema import Step
from edgepipe.stages.model_source import Source
from edgepipe.tasks.chance_level import ALPHA, is_above_chance, skill_of

CHANCE_RULE = "above-chance"
DROP_RULE = "quality-kept"
MAX_DROP = 0.10  # of a share, or of the part of the error that a model without inputs has
_Z_ALPHA = 2.326  # standard deviations that a normal variable exceeds with the probability ALPHA
_REMEDY = (
    "compare what `data:` gives with what the model was trained on (`edgepipe data`; `rescale`, `standardize`, the "
    "order of the classes); `allow_chance: true` at the top of the pipeline accepts it for trials"
)
Result = tuple[Step, Outcome]


@dataclass(frozen=True)
class _Quality:
    """The primary metric of a stage."""

    step: Step
    metric: Metric

    @property
    def place(self) -> str:
        return f"{self.step.name}, {self.metric.name}"

    @property
    def sample_text(self) -> str:
        return f"{self.metric.details['samples']} samples of the {self.metric.details['split']} split"


def find_quality_problems(results: Sequence[Result]) -> list[Finding]:
    """The rules on quality that the deployed model, or the file it was made from, breaks; at most one for each."""
    qualities = [
        _Quality(step, metric) for step, outcome in results if (metric := _primary_metric(outcome)) is not None
    ]
    if not qualities:
        return []
    start, deployed = _start_quality(qualities), qualities[-1]
    judged_qualities = [deployed]
    if start is not None and start.step is not deployed.step and _is_trained_file(start.step):
        judged_qualities.insert(0, start)
    findings = [finding for quality in judged_qualities if (finding := _judge_chance(quality)) is not None]
    drop_finding = None if start is None else _judge_drop(start, _last_on_same_split(qualities, start))
    return findings if drop_finding is None else [*findings, drop_finding]


def unjudged_notes(results: Sequence[Result]) -> tuple[str, ...]:
    """A note if quality was measured by functions of the user's only, whose chance is unknown."""
    measured_names = [m.name for _, outcome in results for m in outcome.metrics if "split" in m.details]
    if not measured_names or any(_primary_metric(outcome) is not None for _, outcome in results):
        return ()
    return (
        f"quality is not compared with chance: '{measured_names[0]}' is a metric of your own, its chance is unknown",
    )


def _primary_metric(outcome: Outcome) -> Metric | None:
    return next((m for m in outcome.metrics if m.value is not None and "chance_probability" in m.details), None)


def _start_quality(qualities: Sequence[_Quality]) -> _Quality | None:
    """That of the last stage before compression begins."""
    compressing = [index for index, quality in enumerate(qualities) if quality.step.stage.compresses]
    uncompressed = qualities[: compressing[0]] if compressing else qualities
    return uncompressed[-1] if uncompressed else None


def _is_trained_file(step: Step) -> bool:
    # a function may build an untrained model, which the stages that compress it train
    return isinstance(step.stage, Source) and step.stage.path is not None


def _last_on_same_split(qualities: Sequence[_Quality], start: _Quality) -> _Quality:
    split = start.metric.details["split"]
    return [quality for quality in qualities if quality.metric.details["split"] == split][-1]


def _judge_chance(quality: _Quality) -> Finding | None:
    details = quality.metric.details
    if is_above_chance(quality.metric):
        return None
    probability = float(details["chance_probability"])
    is_undecided = float(details["chance_probability_if_perfect"]) > ALPHA
    observed = (
        f"{quality.metric.text()} on {quality.sample_text} is not above chance ({details['chance_reference']}): "
        f"chance is as good with a probability of {probability:.2g}"
    )
    if is_undecided:
        observed += "; so few samples cannot tell a perfect model from chance"
    return Finding(
        rule=CHANCE_RULE,
        place=quality.place,
        observed=observed,
        suggestion="give more samples to this split" if is_undecided else _REMEDY,
        judgement=Judgement.UNKNOWN if is_undecided else Judgement.NOT_MET,
    )


def _judge_drop(start: _Quality, deployed: _Quality) -> Finding | None:
    if start.step is deployed.step or start.metric.name != deployed.metric.name:
        return None
    (start_skill, start_error), (skill, error) = skill_of(start.metric), skill_of(deployed.metric)
    drop = start_skill - skill
    if drop <= MAX_DROP or drop <= _Z_ALPHA * math.hypot(start_error, error):
        return None
    unit_text = "points" if start.metric.unit is Dimension.FRACTION else "points of what chance leaves to gain"
    return Finding(
        rule=DROP_RULE,
        place=deployed.place,
        observed=f"{deployed.metric.text()}, {drop * 100:.1f} {unit_text} below '{start.step.name}' "
        f"({start.metric.text()}) on {deployed.sample_text}; more than {MAX_DROP * 100:g}, and not by chance",
        suggestion="the stages in between show where it is lost: compress less, or train longer; `allow_chance: true` "
        "at the top of the pipeline accepts it for trials",
    )
