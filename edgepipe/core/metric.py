"""Metrics with their evidence, the limits a budget sets on them, and findings: rules that were broken."""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgepipe.core import units
from edgepipe.core.units import Dimension


class Evidence(StrEnum):
    """How a number was obtained."""

    EXACT = "exact"  # counted from the artifact itself
    MEASURED = "measured"  # the artifact ran on the named device
    SIMULATED = "simulated"  # a model of the device executed or compiled the artifact
    ESTIMATED = "estimated"  # a fitted model predicted it; carries an interval
    UNAVAILABLE = "unavailable"  # no number, and why


class Record(BaseModel):
    """Base of everything that a report stores: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(Record):
    """One number, its unit, and how it was obtained."""

    name: str = Field(description="for example accuracy, latency, ram, flash, parameters")
    value: float | None = Field(description="in the base unit: bytes, seconds, a fraction; null when unavailable")
    unit: Dimension
    evidence: Evidence
    device: str | None = Field(
        default=None, description="the device profile it holds for; null for the artifact itself"
    )
    how: str = Field(
        description="what was run or counted, with versions; for `unavailable`, the reason and how to get the number"
    )
    interval: tuple[float, float] | None = Field(default=None, description="of an estimate, in the unit of `value`")
    details: dict[str, float | int | str] = Field(default_factory=dict, description="percentiles, runs, threads, time")

    @model_validator(mode="after")
    def _check_evidence(self) -> "Metric":
        if (self.value is None) != (self.evidence is Evidence.UNAVAILABLE):
            raise ValueError("a metric has a value unless its evidence is `unavailable`")
        if self.evidence is Evidence.ESTIMATED and self.interval is None:
            raise ValueError("an estimate carries its interval")
        return self

    def text(self) -> str:
        """The value as a person reads it, or `unavailable`; an estimate always with its interval."""
        if self.value is None:
            return "unavailable"
        value_text = _show_quantity(self.name, self.value, self.unit)
        if self.interval is None:
            return value_text
        low, high = (_show_quantity(self.name, interval_end, self.unit) for interval_end in self.interval)
        return f"{value_text} ({low} .. {high})"


def exact_metric(name: str, value: float, unit: Dimension, provenance: str, device: str | None = None) -> Metric:
    """A metric counted from the artifact.

    Args:
        name: for example `parameters`.
        value: in the base unit of `unit`.
        unit: what the value counts.
        provenance: what was counted, and how.
        device: the device profile it holds for; None for the artifact itself.
    """
    return Metric(name=name, value=value, unit=unit, evidence=Evidence.EXACT, device=device, how=provenance)


def measured_metric(name: str, value: float, unit: Dimension, provenance: str) -> Metric:
    """A metric measured on the artifact, on no device in particular; arguments as of `exact_metric`."""
    return Metric(name=name, value=value, unit=unit, evidence=Evidence.MEASURED, how=provenance)


def unavailable_metric(name: str, unit: Dimension, reason: str, device: str | None = None) -> Metric:
    """A metric without a value.

    Args:
        name: for example `latency`.
        unit: what its value would count.
        reason: why there is none, and what would make it available.
        device: the device profile it holds for; None for the artifact itself.
    """
    return Metric(name=name, value=None, unit=unit, evidence=Evidence.UNAVAILABLE, device=device, how=reason)


class Judgement(StrEnum):
    """What is known of a limit or a rule."""

    MET = "met"
    NOT_MET = "not met"
    UNKNOWN = "unknown"  # nothing here can tell; never counts as met


class Finding(Record):
    """A rule that was broken, or that nothing here can check: where, which rule, what was seen, what to do about it."""

    rule: str = Field(description="the rule's short name, for example integer-only")
    place: str = Field(description="the operator, tensor, layer or file")
    observed: str
    suggestion: str = ""
    device: str | None = Field(default=None, description="the device that has the rule; null: the model itself")
    judgement: Judgement = Field(
        default=Judgement.NOT_MET, description="`not met`: the rule is broken; `unknown`: nothing here can tell"
    )

    def __str__(self) -> str:
        device_text = f"{self.device}: " if self.device else ""
        suggestion_text = f"; {self.suggestion}" if self.suggestion else ""
        return f"{device_text}{self.rule}: {self.place}: {self.observed}{suggestion_text}"


class Limit(Record):
    """One line of a budget: a bound on one metric."""

    metric: str
    unit: Dimension
    bound: Literal["max", "min"]
    value: float = Field(description="in the base unit of `unit`")
    device: str | None = None
    evidence: Evidence | None = Field(default=None, description="required evidence; null accepts any")
    against: str | None = Field(default=None, description="for a drop: the stage it is counted from")
    optional: bool = Field(default=False, description="an unavailable metric does not fail this limit")

    def text(self) -> str:
        """For example `nucleo-l4r5zi ram <= 64.0 KiB`."""
        sign = "<=" if self.bound == "max" else ">="
        device_prefix = f"{self.device} " if self.device else ""
        evidence_suffix = f", {self.evidence}" if self.evidence else ""
        value_text = _show_quantity(self.metric, self.value, self.unit)
        return f"{device_prefix}{self.metric} {sign} {value_text}{evidence_suffix}"


class Verdict(Record):
    """A limit, the metric it was checked with, and whether it was met."""

    limit: Limit
    metric: Metric | None
    met: bool
    unknown: bool = Field(default=False, description="there is no value to judge by; then it is not met either")
    reason: str = Field(default="", description="why it was not met, or is unknown")

    @property
    def judgement(self) -> Judgement:
        """`met`, `not met` or `unknown`."""
        return Judgement.MET if self.met else Judgement.UNKNOWN if self.unknown else Judgement.NOT_MET


class Suggestion(Record):
    """What may meet a limit that is not met: computed from facts, tried by nobody."""

    limit: str = Field(description="the limit, as the budget shows it")
    text: str


def judge(limit: Limit, metrics: list[Metric]) -> Verdict:
    """Check `limit` with the metric of its name and device; without a value it is unknown, and met only if optional."""
    metric = next((m for m in metrics if m.name == limit.metric and m.device == limit.device), None)
    reason = _explain_failure(limit, metric)
    has_value = metric is not None and metric.value is not None
    is_met = not reason or (limit.optional and not has_value)
    return Verdict(limit=limit, metric=metric, met=is_met, unknown=not is_met and not has_value, reason=reason)


def judge_all(verdicts: Iterable[Verdict], findings: Iterable[Finding]) -> Judgement:
    """The judgement on a model: `not met` if anything is, else `unknown` if anything is, else `met`."""
    judgements = {verdict.judgement for verdict in verdicts} | {finding.judgement for finding in findings}
    return next((found for found in (Judgement.NOT_MET, Judgement.UNKNOWN) if found in judgements), Judgement.MET)


def _explain_failure(limit: Limit, metric: Metric | None) -> str:
    if metric is None:
        return "this metric was not computed"
    if metric.value is None:
        return metric.how
    if limit.evidence is not None and metric.evidence is not limit.evidence:
        return f"the evidence is '{metric.evidence}', the budget demands '{limit.evidence}'"
    # The worse end of an interval counts: an estimate that may exceed the budget does not meet it.
    low, high = metric.interval or (metric.value, metric.value)
    worst_value = high if limit.bound == "max" else low
    is_violated = worst_value > limit.value if limit.bound == "max" else worst_value < limit.value
    if math.isclose(
        worst_value, limit.value, rel_tol=1e-9, abs_tol=1e-12
    ):  # 0.98 - 0.97 is a point and a rounding error
        return ""
    worst_text = _show_quantity(metric.name, worst_value, metric.unit)
    subject = f"the worse end of the interval, {worst_text}," if metric.interval else worst_text
    return f"{subject} is {'over' if limit.bound == 'max' else 'under'} the limit" if is_violated else ""


def _show_quantity(metric_name: str, value: float, unit: Dimension) -> str:
    """`value` as a person reads it; the drop of a share in percentage points."""
    if unit is Dimension.FRACTION and metric_name.endswith("_drop"):
        return f"{value * 100:.2f} points"
    return units.show(value, unit)
