"""Child process of `host_latency.measure`: loads a model, warms up, times `invoke`, and watches its own memory."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ai_edge_litert.interpreter  # noqa: F401  (loaded before the memory is counted)
import numpy as np

from edgepipe.core.references import installed_version
from edgepipe.tflite import child_process, cpu_cores, reader
from edgepipe.tflite.child_process import Json
from edgepipe.tflite.host_fingerprint import fingerprint
from edgepipe.tflite.host_latency import MAX_TIMED_SECONDS, MIN_TIMED_RUNS, MIN_TIMED_SECONDS, LatencyMeasurement
from edgepipe.tflite.interpreter import Runtime, run_on_zeros

STATUS_FILE = Path("/proc/self/status")
CLEAR_REFS_FILE = Path("/proc/self/clear_refs")  # writing 5 sets the peak back to the present (Linux, man 5 proc)


def handle_request(request: Json) -> Json:
    """The request of `host_latency.measure` in, the fields of a `LatencyMeasurement` out."""
    runtime, model = Runtime(request["runtime"]), reader.read(Path(request["path"]))
    host = fingerprint()  # before pinning, which leaves fewer cores
    cores = cpu_cores.pin(request["threads"])
    baseline_bytes, memory_reason = _reset_peak_memory()
    interpreter, _ = run_on_zeros(model, runtime, request["threads"])
    for _ in range(request["warm_up"] - 1):  # `run_on_zeros` ran it once
        interpreter.invoke()
    run_seconds = _measure_times(interpreter, request["runs"])
    p5, p50, p95 = np.percentile(run_seconds, (5, 50, 95)).tolist()
    measurement = LatencyMeasurement(
        p5=p5,
        p50=p50,
        p95=p95,
        runs=len(run_seconds),
        warm_up=request["warm_up"],
        threads=request["threads"],
        runtime=runtime,
        version=f"ai-edge-litert {installed_version('ai-edge-litert')}",
        host=host,
        cores=cores,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        memory=_read_status_bytes("VmHWM") - baseline_bytes if baseline_bytes else None,
        memory_reason=memory_reason,
    )
    return {"measurement": measurement.model_dump(mode="json")}


def _measure_times(interpreter: Any, requested_runs: int) -> list[float]:
    """Seconds of each call, until `runs` and `MIN_SECONDS` are reached or `MAX_SECONDS` are over."""
    run_seconds: list[float] = []
    begin = now = time.perf_counter()
    while len(run_seconds) < MIN_TIMED_RUNS or _needs_more_runs(len(run_seconds), now - begin, requested_runs):
        start = time.perf_counter()
        interpreter.invoke()
        now = time.perf_counter()
        run_seconds.append(now - start)
    return run_seconds


def _needs_more_runs(run_count: int, elapsed_seconds: float, requested_runs: int) -> bool:
    return elapsed_seconds < MAX_TIMED_SECONDS and (run_count < requested_runs or elapsed_seconds < MIN_TIMED_SECONDS)


def _reset_peak_memory() -> tuple[int, str]:
    """Resident bytes now, with the peak set back to it; 0 and the reason where the system cannot."""
    try:
        CLEAR_REFS_FILE.write_text("5", encoding="ascii")
        return _read_status_bytes("VmRSS"), ""
    except OSError as error:
        return 0, f"the system does not report the peak memory of a process ({error}); Linux does, through /proc/self"


def _read_status_bytes(field_name: str) -> int:
    match = re.search(rf"^{field_name}:\s+(\d+) kB", STATUS_FILE.read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise OSError(f"no {field_name} in {STATUS_FILE}")
    return int(match[1]) * 1024


if __name__ == "__main__":
    child_process.serve(handle_request)
