"""The proof on an Android device: what the user's benchmark tool measures there, and which delegate ran the model.

Android has no Python, and the tools print no outputs, so golden vectors are not compared; a note says so.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgepipe.core.artifact import wrap_storage_errors
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Limit, Metric, judge, unavailable_metric
from edgepipe.core.units import Dimension, plural
from edgepipe.deploy.benchmark_output import BenchmarkResult, DelegateUse, parse_delegates, parse_output
from edgepipe.deploy.device import STATE_FOLDER, CommandResult, Device
from edgepipe.deploy.health_check import HealthReport, MeasurementOptions
from edgepipe.deploy.runner_document import DeviceHost, HardwareState, RunnerDocument
from edgepipe.deploy.transport import DeviceError, RunLimits
from edgepipe.deploy.versions import MODEL_FILE, format_now

Delegate = Literal["cpu", "xnnpack", "gpu", "nnapi", "npu"]
RUN_SECONDS = 600.0
FLAG_BY_DELEGATE: dict[Delegate, str] = {
    "cpu": "--use_xnnpack=false",
    "xnnpack": "--use_xnnpack=true",
    "gpu": "--use_gpu=true",
    "nnapi": "--use_nnapi=true",
    "npu": "--use_npu=true",
}
WORD_BY_DELEGATE = {"xnnpack": "xnnpack", "gpu": "gpu", "nnapi": "nnapi"}  # in the name of what took the nodes
TOOL_HINT = (
    "name the benchmark_model of your TensorFlow Lite or LiteRT release for Android with --benchmark-model "
    "(https://ai.google.dev/edge/litert has builds)"
)
_FACTS_SCRIPT = """
getprop ro.product.model; getprop ro.build.version.release; uname -m; uname -sr; nproc
cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null || echo
"""


@dataclass(frozen=True)
class AndroidOptions:
    """`benchmark_model`: the tool on this machine, if the user has one; `delegate`: what must run the whole model."""

    benchmark_model: Path | None = None
    delegate: Delegate = "xnnpack"


def prove(
    device: Device,
    folder: str,
    android: AndroidOptions,
    measurement: MeasurementOptions,
    limits: tuple[Limit, ...],
    device_name: str,
) -> HealthReport:
    """Run the tool on the model in `folder`, and judge what it says.

    Args:
        device: connected, with the lock held.
        folder: of the files, relative to the device's.
        android: the tool, and the delegate that is asked for.
        measurement: threads and runs.
        limits: on `latency` and `ram`.
        device_name: names the device in metrics and findings.

    Raises:
        InputError: there is no such tool on this machine.
        DeviceError: the device does not answer as Android does, or the tool does not run there.
    """
    document = _read_facts(device, measurement.threads)
    notes = ["golden vectors were not compared: Android has no Python, and the benchmark tools print no outputs"]
    if android.benchmark_model is None:
        reason = f"no tool measured it; {TOOL_HINT}"
        return _build_report(document, None, reason, (), limits, device_name, notes)
    tool = _push_tool(device, android.benchmark_model)
    result, findings = _benchmark(device, tool, folder, android.delegate, measurement, device_name)
    uses_text = "; ".join(use.text() for use in result.delegates) or "no delegate is named in its output"
    notes.append(f"{android.delegate} was asked for; what ran the model: {uses_text}")
    return _build_report(document, result, "", findings, limits, device_name, notes)


def _read_facts(device: Device, threads: int) -> RunnerDocument:
    lines = [line.strip() for line in device.check("cannot read its properties", _FACTS_SCRIPT).splitlines()]
    if len(lines) < 6 or not lines[4].isdigit():
        raise DeviceError(f"{device.name}: does not answer as Android does: {' | '.join(lines)[:200]}")
    model, release, machine, kernel, cores, governor = lines[:6]
    host = DeviceHost(
        cpu=f"{model} (Android {release})", cores=int(cores), machine=machine, kernel=kernel,
        bits=64 if "64" in machine else 32, python="",
    )  # fmt: skip
    state = HardwareState(governor=governor or None)
    return RunnerDocument(host=host, before=state, after=state, threads=threads, measured_at=format_now())


def _push_tool(device: Device, path: Path) -> str:
    """Where the tool is on the device; it is sent once."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {TOOL_HINT}")
    with wrap_storage_errors(str(path)):
        content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    target = f"{STATE_FOLDER}/benchmark_model-{digest[:16]}"
    if device.run('[ "$(sha256sum < "$1" | cut -c -64)" = "$2" ] && [ -x "$1" ]', target, digest).status:
        device.put(f"{target}.part", content)
        device.change("cannot make the tool executable", 'chmod 755 "$1.part" && mv -f "$1.part" "$1"', target)
    return target


def _benchmark(
    device: Device, tool: str, folder: str, delegate: Delegate, measurement: MeasurementOptions, device_name: str
) -> tuple[BenchmarkResult, tuple[Finding, ...]]:
    """First with full delegation demanded, then, if that fails, without, to see what falls back."""
    arguments = [
        f"--graph={folder}/{MODEL_FILE}", FLAG_BY_DELEGATE[delegate], f"--num_threads={measurement.threads}",
        f"--num_runs={measurement.runs}", f"--warmup_runs={measurement.warm_up}",
    ]  # fmt: skip
    full_arguments = [] if delegate == "cpu" else ["--require_full_delegation=true"]
    answer = _run_tool(device, tool, [*arguments, *full_arguments])
    result = parse_output(answer.output) if answer.status == 0 else None
    if result is not None and not full_arguments:
        return result, ()
    if result is not None:
        return result, _delegate_findings(delegate, result.delegates, device_name, is_full=True)
    second_answer = _run_tool(device, tool, arguments) if full_arguments else answer
    result = parse_output(second_answer.output)
    if result is None or second_answer.status:
        raise DeviceError(
            f"{device.name}: the benchmark tool gave no result (status {second_answer.status}): "
            f"{second_answer.last_line}"
        )
    uses = result.delegates or parse_delegates(answer.output)
    return result, _delegate_findings(delegate, uses, device_name, is_full=False)


def _run_tool(device: Device, tool: str, arguments: list[str]) -> CommandResult:
    script = 'tool="$1"; shift; exec "./$tool" "$@"'
    return device.run(script, tool, *arguments, limits=RunLimits(RUN_SECONDS))


def _delegate_findings(
    delegate: Delegate, uses: tuple[DelegateUse, ...], device_name: str, is_full: bool
) -> tuple[Finding, ...]:
    """That the model, or a part of it, is not run by what was asked for."""
    word = WORD_BY_DELEGATE.get(delegate, delegate)
    own_uses = [use for use in uses if word in use.delegate.lower()]
    other_uses = [use for use in uses if word not in use.delegate.lower()]
    if is_full and (own_uses or not other_uses):
        return ()
    uses_text = "; ".join(use.text() for use in uses) or "the tool names no delegate that took a node"
    return (
        Finding(
            rule="delegate",
            place="the whole model",
            observed=f"{delegate} was asked for and does not run all of it: {uses_text}",
            suggestion="convert for what the delegate supports, or ask for what runs it with --delegate",
            device=device_name,
        ),
    )


def _build_report(
    document: RunnerDocument,
    result: BenchmarkResult | None,
    reason: str,
    findings: tuple[Finding, ...],
    limits: tuple[Limit, ...],
    device_name: str,
    notes: list[str],
) -> HealthReport:
    metrics = (_latency_metric(document, result, reason, device_name), _memory_metric(result, reason, device_name))
    own_limits = [limit.model_copy(update={"device": device_name}) for limit in limits]
    verdicts = tuple(judge(limit, list(metrics)) for limit in own_limits)
    return HealthReport(document, None, metrics, findings, verdicts, tuple(notes))


def _latency_metric(document: RunnerDocument, result: BenchmarkResult | None, reason: str, device_name: str) -> Metric:
    if result is None:
        return unavailable_metric("latency", Dimension.SECONDS, reason, device_name)
    kind, value = ("median", result.median) if result.median is not None else ("average", result.average)
    runs_text = plural(result.runs, "run") if result.runs is not None else "its runs"
    percentiles = {"p5": result.p5, "p50": result.median, "p95": result.p95}
    details: dict[str, float | int | str | None] = {
        **(percentiles if all(percentiles.values()) else {}),
        "runs": result.runs,
        "first": result.first,
        "load": result.initialization,
        "threads": document.threads,
        "host": document.host.text(),
        "host_digest": document.host.digest,
        "governor": document.before.governor,
        "measured_at": document.measured_at,
    }
    return Metric(
        name="latency",
        value=value,
        unit=Dimension.SECONDS,
        evidence=Evidence.MEASURED,
        device=device_name,
        how=f"{kind} of {runs_text} there by the benchmark tool, {plural(document.threads, 'thread')}",
        details={name: detail for name, detail in details.items() if detail is not None},
    )


def _memory_metric(result: BenchmarkResult | None, reason: str, device_name: str) -> Metric:
    if result is None or result.memory is None:
        explanation = reason or "this benchmark tool does not tell the memory"
        return unavailable_metric("ram", Dimension.BYTES, explanation, device_name)
    return Metric(
        name="ram",
        value=result.memory,
        unit=Dimension.BYTES,
        evidence=Evidence.MEASURED,
        device=device_name,
        how="memory footprint that the benchmark tool states, which is approximate: the tool itself is in it",
    )
