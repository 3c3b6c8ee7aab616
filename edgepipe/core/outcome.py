"""What a stage reports besides its artifact, as the cache and the report store it."""

from pydantic import Field

from edgepipe.core.metric import Finding, Metric, Record, Verdict


class Table(Record):
    """A table for the report, such as the sparsity of each layer."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


class Outcome(Record):
    """What a stage reports besides its artifact."""

    metrics: tuple[Metric, ...] = ()
    findings: tuple[Finding, ...] = Field(default=(), description="rules that were broken; the run exits with 3")
    notes: tuple[str, ...] = Field(default=(), description="what was skipped, left alone or fell back, and why")
    verdicts: tuple[Verdict, ...] = ()
    tables: tuple[Table, ...] = ()
