"""What a stage reports of a deployment: metrics, findings and tables."""

from collections.abc import Sequence

from edgepipe.core.metric import Finding
from edgepipe.core.outcome import Outcome, Table
from edgepipe.deploy.fleet import DeviceOutcome
from edgepipe.deploy.golden_vectors import GoldenVectors, mean_lsb
from edgepipe.deploy.health_check import HealthReport


def build_outcome(outcomes: Sequence[DeviceOutcome], golden: GoldenVectors) -> Outcome:
    """The outcome of all devices; one that could not be used is a finding, unless there is no other.

    Raises:
        EdgepipeError: the error of the only device.
    """
    if len(outcomes) == 1 and outcomes[0].error is not None:
        raise outcomes[0].error
    health_reports = [o.deployment.health for o in outcomes if o.deployment and o.deployment.health]
    return Outcome(
        metrics=tuple(metric for health in health_reports for metric in health.metrics),
        verdicts=tuple(verdict for health in health_reports for verdict in health.verdicts),
        findings=(
            *(finding for health in health_reports for finding in health.findings),
            *(_finding(outcome) for outcome in outcomes if outcome.error or outcome.skipped),
        ),
        notes=(*golden.notes, *(note for health in health_reports for note in health.notes)),
        tables=(_devices_table(outcomes), _golden_table(outcomes, golden)),
    )


def _finding(outcome: DeviceOutcome) -> Finding:
    return Finding(
        rule="deployed", place=str(outcome.url), observed=str(outcome.error or f"skipped: {outcome.skipped}")
    )


def _devices_table(outcomes: Sequence[DeviceOutcome]) -> Table:
    rows = tuple((str(o.url), o.status, o.version or "", o.previous or "") for o in outcomes)
    return Table(title="Devices", columns=("device", "status", "version", "before"), rows=rows)


_GOLDEN_COLUMNS = (
    "device", "processor", "runtime", "same label", "mean difference (LSB)", "outputs per difference (LSB)"
)  # fmt: skip


def _golden_table(outcomes: Sequence[DeviceOutcome], golden: GoldenVectors) -> Table:
    return Table(
        title=f"Golden vectors: {golden.provenance}, compared with the reference kernels here; "
        f"allowed: {golden.tolerance.text()}",
        columns=(
            "device",
            "processor",
            "runtime",
            "same label",
            "mean difference (LSB)",
            "outputs per difference (LSB)",
        ),
        rows=tuple(
            (str(o.url), *_golden_cells(o.deployment.health))
            for o in outcomes
            if o.deployment is not None and o.deployment.health is not None
        ),
    )


def _golden_cells(health: HealthReport) -> tuple[str, ...]:
    host, runtime, parity = health.document.host, health.document.runtime, health.parity
    processor_text = f"{host.cpu}, {host.machine}{', emulated' if host.emulator else ''}"
    runtime_text = f"{runtime.package} {runtime.version}" if runtime else ""
    if parity is None:
        return (processor_text, runtime_text, "", "", "not run")
    label_text = "" if parity.labels_equal is None else f"{parity.labels_equal:.2%}"
    histogram_text = ", ".join(f"{step}: {count}" for step, count in sorted(parity.histogram.items()))
    difference_text = histogram_text or f"floats, largest {parity.max_difference:.3g}"
    mean_text = f"{mean_lsb(parity):.3g}" if parity.histogram else ""
    return (processor_text, runtime_text, label_text, mean_text, difference_text)
