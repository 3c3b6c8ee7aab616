"""What a stage reports besides its artifact, as the cache and the report store it."""

from pydantic import Field

from edgepipe.core.metric import Finding, Metric, Record, Verdict


class Table(Record):
    """A table for the report, such as the sparsity of each layer."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


class EpochRecord(Record):
    """What an epoch of training ended with."""

    epoch: int = Field(description="from 1; a stage that trains in rounds begins again")
    values: dict[str, float] = Field(description="by name with its split, such as `train loss`, `validation accuracy`")


class Outcome(Record):
    """What a stage reports besides its artifact."""

    metrics: tuple[Metric, ...] = ()
    findings: tuple[Finding, ...] = Field(default=(), description="rules that were broken; the run exits with 3")
    notes: tuple[str, ...] = Field(default=(), description="what was skipped, left alone or fell back, and why")
    verdicts: tuple[Verdict, ...] = ()
    tables: tuple[Table, ...] = ()
    learning_curve: tuple[EpochRecord, ...] = Field(default=(), description="every epoch that the stage trained")
