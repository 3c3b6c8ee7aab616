"""A single result, of `convert` or `verify`, as tables and as a JSON document."""

from edgepipe.commands.convert import Conversion
from edgepipe.commands.verify import Verification
from edgepipe.render.report_tables import Rows, how


def single_tables(path: str, result: Conversion | Verification) -> list[Rows]:
    """What `convert` and `verify` print."""
    metrics = tuple((m.device or "", m.name, m.text(), str(m.evidence), how(m)) for m in result.metrics)
    broken = tuple((f.rule, f.place, f.observed, f.suggestion) for f in result.findings)
    found = [Rows(path, ("device", "metric", "value", "evidence", "how"), metrics, frozenset({2}))]
    if isinstance(result, Verification) and result.verdicts:
        rows = tuple(
            (v.limit.text(), v.metric.text() if v.metric else "", "met" if v.met else "NOT MET", v.reason)
            for v in result.verdicts
        )
        found.append(Rows("Budget", ("limit", "value", "verdict", "why"), rows, frozenset({1})))
    if broken:
        found.append(Rows("Rules broken", ("rule", "place", "observed", "what to do"), broken))
    return found


def document(result: Conversion | Verification) -> str:
    """What `convert --json` and `verify --json` print."""
    import json

    kind = "convert" if isinstance(result, Conversion) else "verify"
    body = {"schema": f"edgepipe.{kind}/1", **result.model_dump(mode="json")}
    if isinstance(result, Verification):
        body["met"] = result.met
    return json.dumps(body, indent=2)
