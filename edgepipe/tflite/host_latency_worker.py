"""Child process of `latency.measure`: loads a model, warms up, times `invoke`, and watches its own memory."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ai_edge_litert.interpreter  # noqa: F401  (loaded before the memory is counted)
import numpy as np

from edgepipe.core.references import version
from edgepipe.tflite import child_process, cpu_cores, reader
from edgepipe.tflite.child_process import Json
from edgepipe.tflite.host_fingerprint import fingerprint
from edgepipe.tflite.host_latency import LEAST_RUNS, LEAST_SECONDS, MOST_SECONDS, Measurement
from edgepipe.tflite.interpreter import Runtime, open_once

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")  # writing 5 sets the peak back to the present (Linux, man 5 proc)


def work(request: Json) -> Json:
    """The request of `latency.measure` in, the fields of a `Measurement` out."""
    runtime, model = Runtime(request["runtime"]), reader.read(Path(request["path"]))
    host = fingerprint()  # before pinning, which leaves fewer cores
    pinned = cpu_cores.pin(request["threads"])
    before, reason = _baseline()
    interpreter, _ = open_once(model, runtime, request["threads"])
    for _ in range(request["warm_up"] - 1):  # opening ran it once
        interpreter.invoke()
    times = _times(interpreter, request["runs"])
    p5, p50, p95 = np.percentile(times, (5, 50, 95)).tolist()
    measurement = Measurement(
        p5=p5,
        p50=p50,
        p95=p95,
        runs=len(times),
        warm_up=request["warm_up"],
        threads=request["threads"],
        runtime=runtime,
        version=f"ai-edge-litert {version('ai-edge-litert')}",
        host=host,
        cores=pinned,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        memory=_status("VmHWM") - before if before else None,
        memory_reason=reason,
    )
    return {"measurement": measurement.model_dump(mode="json")}


def _times(interpreter: Any, runs: int) -> list[float]:
    """Seconds of each call, until `runs` and `LEAST_SECONDS` are reached or `MOST_SECONDS` are over."""
    times: list[float] = []
    begin = now = time.perf_counter()
    while len(times) < LEAST_RUNS or _wanting(len(times), now - begin, runs):
        start = time.perf_counter()
        interpreter.invoke()
        now = time.perf_counter()
        times.append(now - start)
    return times


def _wanting(done: int, elapsed: float, runs: int) -> bool:
    return elapsed < MOST_SECONDS and (done < runs or elapsed < LEAST_SECONDS)


def _baseline() -> tuple[int, str]:
    """Resident bytes now, with the peak set back to it; 0 and the reason where the system does not tell."""
    try:
        RESET_PEAK.write_text("5", encoding="ascii")
        return _status("VmRSS"), ""
    except OSError as error:
        return 0, f"the system does not tell a process its peak memory ({error}); Linux does, through /proc/self"


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise OSError(f"no {field} in {STATUS}")
    return int(match[1]) * 1024


if __name__ == "__main__":
    child_process.serve(work)
