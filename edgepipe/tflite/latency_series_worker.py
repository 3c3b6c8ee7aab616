"""Child process of `latency_series.measure`."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import EdgepipeError
from edgepipe.tflite import child_process, cpu_cores, reader
from edgepipe.tflite.child_process import Json
from edgepipe.tflite.interpreter import Runtime, run_on_zeros

MIN_RUNS = 5  # in one visit
WARM_UP = 2  # at the start of each visit: other models have evicted it from the caches
QUANTILE = 0.25


def handle_request(request: Json) -> Json:
    """The request of `latency_series.measure` in, its readings out."""
    cpu_cores.pin(request["threads"])
    runtime, threads = Runtime(request["runtime"]), request["threads"]
    reference, _ = run_on_zeros(reader.read(Path(request["reference"])), runtime, threads)
    interpreters: dict[int, Any] = {}
    refusals: dict[int, str] = {}
    for index, path in enumerate(request["models"]):
        try:
            interpreters[index], _ = run_on_zeros(reader.read(Path(path)), runtime, threads)
        except EdgepipeError as error:
            refusals[index] = str(error)
    times = _measure_rounds(interpreters, reference, request)
    readings = [
        _build_reading(times[index]) if index in times else {"seconds": None, "refused": refusals[index]}
        for index in range(len(request["models"]))
    ]
    return {"readings": readings}


def _measure_rounds(interpreters: dict[int, Any], reference: Any, request: Json) -> dict[int, Array]:
    """The medians of each model's visits in seconds, scaled by the slowdown of the reference in that round."""
    random = np.random.default_rng(request["seed"])
    medians: dict[int, list[float]] = {index: [] for index in interpreters}
    paces = []
    for _ in range(request["rounds"]):
        paces.append(_time_visit(reference, request["visit"]))
        for index in random.permutation(list(interpreters)).tolist():
            medians[index].append(_time_visit(interpreters[index], request["visit"]))
    slowdowns = np.asarray(paces) / min(paces)
    return {index: np.asarray(times) / slowdowns for index, times in medians.items()}


def _time_visit(interpreter: Any, min_seconds: float) -> float:
    """The median in seconds of at least `MIN_RUNS` runs and `min_seconds`."""
    for _ in range(WARM_UP):
        interpreter.invoke()
    times: list[float] = []
    begin = now = time.perf_counter()
    while len(times) < MIN_RUNS or now - begin < min_seconds:
        start = time.perf_counter()
        interpreter.invoke()
        now = time.perf_counter()
        times.append(now - start)
    return float(np.median(times))


def _build_reading(rounds: Array) -> Json:
    low, middle, high = np.quantile(rounds, (0.25, 0.5, 0.75)).tolist()
    seconds = float(np.quantile(rounds, QUANTILE))
    return {"seconds": seconds, "spread": (high - low) / middle, "rounds": len(rounds)}


if __name__ == "__main__":
    child_process.serve(handle_request)
