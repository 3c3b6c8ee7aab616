"""What was measured on a device as tables and JSON: `edgepipe measure`."""

import json
from typing import Any

from edgepipe.commands.measure import DeviceMeasurement
from edgepipe.core import units
from edgepipe.core.units import Dimension
from edgepipe.deploy.golden_vectors import mean_lsb
from edgepipe.deploy.health_check import HealthReport
from edgepipe.deploy.runner_document import HardwareState
from edgepipe.render.report_tables import TextTable, findings_tables, metrics_table, verdicts_table

SCHEMA = "edgepipe.measure/1"


def tables(measured: DeviceMeasurement) -> list[TextTable]:
    """The metrics, the device, how far its outputs differ, limits, and what speaks against the model."""
    health = measured.health
    all_tables = [
        metrics_table(f"{measured.path} on {measured.url.name}", health.metrics),
        TextTable("Device", ("property", "value"), tuple(_properties(health))),
        TextTable("Golden vectors", ("property", "value"), tuple(_golden_properties(measured))),
        verdicts_table("Limits", health.verdicts),
        *findings_tables(health.findings),
    ]
    return [table for table in all_tables if table.rows]


def _properties(health: HealthReport) -> list[tuple[str, str]]:
    document = health.document
    runtime = document.runtime
    runtime_text = f"{runtime.package} {runtime.version}, numpy {runtime.numpy}" if runtime else "none"
    properties = [
        ("processor", document.host.text()),
        ("emulated", document.host.emulator),
        ("runtime", f"{runtime_text}, Python {document.host.python}"),
        ("load", units.show(document.load_seconds, Dimension.SECONDS)),
        ("first inference", units.show(document.first_seconds, Dimension.SECONDS)),
        ("before", _describe_state(document.before)),
        ("after", _describe_state(document.after)),
        ("fingerprint", document.host.digest[:16]),
    ]
    return [(name, text) for name, text in properties if text]


def _describe_state(state: HardwareState) -> str:
    texts = [f"governor {state.governor}"] if state.governor else []
    texts += [units.show(max(state.frequency_hz), Dimension.FREQUENCY)] if state.frequency_hz else []
    texts += [f"{max(state.temperature_c):.1f} degrees Celsius"] if state.temperature_c else []
    texts += [f"throttling: {', '.join(state.throttling) or 'none'}"] if state.throttling is not None else []
    return ", ".join(texts) or "the system tells neither governor nor frequency nor temperature"


def _golden_properties(measured: DeviceMeasurement) -> list[tuple[str, str]]:
    parity = measured.health.parity
    return [
        ("inputs", measured.golden.provenance),
        ("differences", "not compared" if parity is None else parity.text()),
        ("on average", f"{mean_lsb(parity):.3g} LSB" if parity is not None and parity.histogram else ""),
        ("allowed", measured.golden.tolerance.text()),
    ]


def health_record(health: HealthReport) -> dict[str, Any]:
    """A health report as JSON, without the outputs themselves."""
    document = health.document.model_dump(mode="json", exclude={"outputs"})
    return {
        "host_digest": health.document.host.digest,
        "document": document,
        "parity": health.parity.model_dump(mode="json") if health.parity else None,
        "metrics": [metric.model_dump(mode="json") for metric in health.metrics],
        "findings": [finding.model_dump(mode="json") for finding in health.findings],
        "verdicts": [verdict.model_dump(mode="json") for verdict in health.verdicts],
        "notes": list(health.notes),
        "healthy": health.healthy,
    }


def document(measured: DeviceMeasurement) -> str:
    """The same as one JSON document."""
    golden = measured.golden
    body = {
        "schema": SCHEMA,
        "model": str(measured.path),
        "device": str(measured.url),
        "golden": golden.record(),
        **health_record(measured.health),
    }
    return json.dumps(body, indent=2)
