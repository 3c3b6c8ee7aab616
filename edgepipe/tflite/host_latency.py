"""Measures how long one inference takes on this host, and the memory it needs, in a child process of its own."""

from pathlib import Path

from pydantic import Field

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric, Record, unavailable_metric
from edgepipe.core.units import Dimension, plural
from edgepipe.tflite import child_process, cpu_cores, reader
from edgepipe.tflite.host_fingerprint import Host
from edgepipe.tflite.interpreter import Runtime

DEFAULT_RUNS = 50
DEFAULT_WARM_UP_RUNS = 5
MIN_TIMED_SECONDS = 0.3
MAX_TIMED_SECONDS = 3.0
MIN_TIMED_RUNS = 3  # even if they take longer than `MAX_SECONDS`
TIMEOUT_SECONDS = 120.0


class LatencyMeasurement(Record):
    """One measurement; times in seconds, memory in bytes."""

    p5: float
    p50: float
    p95: float
    runs: int
    warm_up: int
    threads: int
    runtime: Runtime
    version: str = Field(description="package and version, for example ai-edge-litert 2.3.0")
    host: Host
    measured_at: str = Field(description="ISO 8601, UTC")
    cores: tuple[int, ...] = Field(default=(), description="that the process was pinned to; empty: it was not")
    memory: int | None = Field(description="growth of the peak resident memory by loading and running; null: unknown")
    memory_reason: str = Field(default="", description="why `memory` is unknown")


def measure(
    path: Path,
    threads: int = 1,
    runs: int = DEFAULT_RUNS,
    warm_up: int = DEFAULT_WARM_UP_RUNS,
    runtime: Runtime = Runtime.XNNPACK,
) -> LatencyMeasurement:
    """Time `invoke` on zeros, in a process pinned to as many cores as threads.

    It runs for at least 0.3 s and stops after 3 s: a slow model gets fewer than `runs`, as the measurement says.

    Args:
        path: a .tflite.
        threads: of the interpreter.
        runs: timed calls.
        warm_up: calls before them that are not timed.
        runtime: which kernels run the model.

    Raises:
        InputError: the file is damaged, the numbers are not positive, or the runtime refuses or crashes on the model.
    """
    if min(threads, runs, warm_up) < 1:
        raise InputError(f"threads, runs and warm-up are at least 1; found {threads}, {runs}, {warm_up}")
    reader.read(path)
    request = {"path": str(path), "threads": threads, "runs": runs, "warm_up": warm_up, "runtime": runtime}
    answer = child_process.run(
        "edgepipe.tflite.host_latency_worker", request, TIMEOUT_SECONDS, f"{path}: measuring on LiteRT {runtime}"
    )
    return LatencyMeasurement.model_validate(answer["measurement"])


def build_metrics(measurement: LatencyMeasurement, device: str) -> list[Metric]:
    """The metrics `latency` (the median) and `ram` of `device`, which must be the host that was measured."""
    details: dict[str, float | int | str] = {
        "p5": measurement.p5,
        "p50": measurement.p50,
        "p95": measurement.p95,
        "runs": measurement.runs,
        "warm_up": measurement.warm_up,
        "threads": measurement.threads,
        "cores": cpu_cores.describe_pinning(measurement.cores),
        "runtime": measurement.runtime.value,
        "version": measurement.version,
        "host": measurement.host.text(),
        "host_digest": measurement.host.digest,
        "measured_at": measurement.measured_at,
    }
    threads_text = plural(measurement.threads, "thread")
    latency_metric = Metric(
        name="latency",
        value=measurement.p50,
        unit=Dimension.SECONDS,
        evidence=Evidence.MEASURED,
        device=device,
        how=f"median of {measurement.runs} runs on {measurement.version} ({measurement.runtime}, {threads_text})",
        details=details,
    )
    return [latency_metric, _ram_metric(measurement, device, details)]


def _ram_metric(measurement: LatencyMeasurement, device: str, details: dict[str, float | int | str]) -> Metric:
    if measurement.memory is None:
        return unavailable_metric("ram", Dimension.BYTES, measurement.memory_reason, device)
    detail_names = ("runs", "threads", "runtime", "version", "host", "host_digest", "measured_at")
    return Metric(
        name="ram",
        value=measurement.memory,
        unit=Dimension.BYTES,
        evidence=Evidence.MEASURED,
        device=device,
        how=(
            f"growth of the process's peak resident memory by loading and running the model on {measurement.version}: "
            "weights, activations, packed copies, and pages of the runtime itself that are touched for the first time"
        ),
        details={name: details[name] for name in detail_names},
    )
