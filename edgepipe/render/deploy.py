"""What was deployed as tables and JSON: `edgepipe deploy`."""

import json
from typing import Any

from edgepipe.commands.deploy import DeviceListing, FleetDeployment
from edgepipe.deploy.fleet import DeviceOutcome
from edgepipe.deploy.health_check import HealthReport
from edgepipe.render.measure import health_record
from edgepipe.render.report_tables import TextTable, findings_tables, metrics_table, verdicts_table

SCHEMA = "edgepipe.deploy/1"


def tables(fleet: FleetDeployment) -> list[TextTable]:
    """How each device came out, what was measured there, limits, and what speaks against the model."""
    health_reports = [o.deployment.health for o in fleet.outcomes if o.deployment and o.deployment.health]
    all_tables = [
        _outcome_table(fleet),
        _golden_table(fleet),
        metrics_table("Measured there", [metric for health in health_reports for metric in health.metrics]),
        verdicts_table("Limits", [verdict for health in health_reports for verdict in health.verdicts]),
        *findings_tables([finding for health in health_reports for finding in health.findings]),
    ]
    return [table for table in all_tables if table.rows]


def notes(fleet: FleetDeployment) -> tuple[str, ...]:
    """What a user should know besides, with the device."""
    device_notes = [
        f"{outcome.url.name}: {note}"
        for outcome in fleet.outcomes
        if outcome.deployment and outcome.deployment.health
        for note in (*outcome.deployment.notes, *outcome.deployment.health.notes)
    ]
    return (*fleet.notes, *device_notes)


def _outcome_table(fleet: FleetDeployment) -> TextTable:
    rows = tuple((str(o.url), o.status, o.version or "", o.previous or "", _detail(o)) for o in fleet.outcomes)
    return TextTable(f"Deployment of {fleet.source}", ("device", "status", "version", "before", "details"), rows)


def _detail(outcome: DeviceOutcome) -> str:
    if outcome.deployment is None:
        return str(outcome.error or outcome.skipped)
    if outcome.deployment.removed:
        return f"removed: {', '.join(outcome.deployment.removed)}"
    if outcome.deployment.version is None:
        return "it failed its proof there, and what ran before still runs"
    return ""


def _golden_table(fleet: FleetDeployment) -> TextTable:
    rows = tuple(
        (o.url.name, _host_text(o.deployment.health), o.deployment.health.parity.text())
        for o in fleet.outcomes
        if o.deployment and o.deployment.health and o.deployment.health.parity
    )
    golden_text = f"{fleet.golden.provenance}; allowed: {fleet.golden.tolerance.text()}" if fleet.golden else ""
    return TextTable(f"Golden vectors: {golden_text}", ("device", "what ran them", "differences"), rows)


def _host_text(health: HealthReport) -> str:
    runtime = health.document.runtime
    runtime_text = f", {runtime.package} {runtime.version}" if runtime else ""
    return f"{health.document.host.text()}{runtime_text}"


def document(fleet: FleetDeployment) -> str:
    """The same as one JSON document."""
    golden = fleet.golden
    body = {
        "schema": SCHEMA,
        "source": fleet.source,
        "golden": golden.record() if golden is not None else None,
        "devices": [_outcome_record(outcome) for outcome in fleet.outcomes],
        "notes": list(notes(fleet)),
    }
    return json.dumps(body, indent=2)


def _outcome_record(outcome: DeviceOutcome) -> dict[str, Any]:
    record: dict[str, Any] = {
        "device": str(outcome.url),
        "status": outcome.status,
        "version": outcome.version,
        "previous": outcome.previous,
        "error": str(outcome.error or outcome.skipped) or None,
    }
    health = outcome.deployment.health if outcome.deployment else None
    return {**record, "health": health_record(health) if health else None}


def listing_tables(listing: DeviceListing) -> list[TextTable]:
    """The versions on one device, newest last."""
    rows = tuple(
        (
            v.version.name,
            "runs" if v.is_current else "has run" if v.version.activated else "staged",
            v.manifest.model,
            v.manifest.created,
            v.manifest.evidence,
        )
        for v in listing.versions
    )
    columns = ("version", "state", "model", "created", "golden vectors")
    return [TextTable(str(listing.url), columns, rows)] if listing.error is None else []


def listing_document(listings: list[DeviceListing]) -> str:
    """The same as one JSON document."""
    devices = [
        {
            "device": str(listing.url),
            "error": str(listing.error) if listing.error is not None else None,
            "versions": [
                {
                    "name": v.version.name,
                    "current": v.is_current,
                    "activated": v.version.activated,
                    **v.manifest.model_dump(),
                }
                for v in listing.versions
            ],
        }
        for listing in listings
    ]
    return json.dumps({"schema": "edgepipe.versions/1", "devices": devices}, indent=2)
