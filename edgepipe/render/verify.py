"""The result of `edgepipe verify` as tables and JSON."""

from edgepipe.commands.verify import Verification
from edgepipe.core.escape import json_text
from edgepipe.core.metric import Verdict
from edgepipe.render.report_tables import TextTable, findings_tables, judgement_text, metrics_table, suggestions_table

SCHEMA = "edgepipe.verify/1"


def tables(verification: Verification) -> list[TextTable]:
    """The metrics, the verdict on each limit, the rules that are broken, and what could not be decided."""
    budget_rows = tuple(_verdict_row(verdict) for verdict in verification.verdicts)
    all_tables = [
        metrics_table(verification.path, verification.metrics),
        TextTable("Budget", ("limit", "value", "verdict", "reason"), budget_rows, frozenset({1})),
        suggestions_table(verification.suggestions),
        *findings_tables(verification.findings),
    ]
    return [table for table in all_tables if table.rows]


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    value_text = verdict.metric.text() if verdict.metric else ""
    return (verdict.limit.text(), value_text, judgement_text(verdict), verdict.reason)


def document(verification: Verification) -> str:
    """The same as one JSON document, with `met` and `judgement`."""
    body = {
        "schema": SCHEMA,
        **verification.model_dump(mode="json"),
        "met": verification.met,
        "judgement": verification.judgement,
    }
    return json_text(body)
