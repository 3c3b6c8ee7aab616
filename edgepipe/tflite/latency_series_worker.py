"""Child process of `latency_series.measure`."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import EdgepipeError
from edgepipe.tflite import child_process, cpu_cores, reader
from edgepipe.tflite.child_process import Json
from edgepipe.tflite.interpreter import Runtime, open_once

LEAST_RUNS = 5  # in one visit
WARM_UP = 2  # at the start of each visit: the models before it have emptied the caches
QUANTILE = 0.25


def work(request: Json) -> Json:
    """The request of `latency_series.measure` in, its readings out."""
    cpu_cores.pin(request["threads"])
    runtime, threads = Runtime(request["runtime"]), request["threads"]
    reference, _ = open_once(reader.read(Path(request["reference"])), runtime, threads)
    opened: dict[int, Any] = {}
    refused: dict[int, str] = {}
    for place, path in enumerate(request["models"]):
        try:
            opened[place], _ = open_once(reader.read(Path(path)), runtime, threads)
        except EdgepipeError as error:
            refused[place] = str(error)
    times = _rounds(opened, reference, request)
    readings = [
        _reading(times[place]) if place in times else {"seconds": None, "refused": refused[place]}
        for place in range(len(request["models"]))
    ]
    return {"readings": readings}


def _rounds(opened: dict[int, Any], reference: Any, request: Json) -> dict[int, Array]:
    """Of each model the medians of its visits in seconds, each round scaled by how slow the reference was in it."""
    random = np.random.default_rng(request["seed"])
    medians: dict[int, list[float]] = {place: [] for place in opened}
    paces = []
    for _ in range(request["rounds"]):
        paces.append(_visit(reference, request["visit"]))
        for place in random.permutation(list(opened)).tolist():
            medians[place].append(_visit(opened[place], request["visit"]))
    slower = np.asarray(paces) / min(paces)
    return {place: np.asarray(found) / slower for place, found in medians.items()}


def _visit(interpreter: Any, least: float) -> float:
    """The median of at least `LEAST_RUNS` runs and `least` seconds."""
    for _ in range(WARM_UP):
        interpreter.invoke()
    times: list[float] = []
    begin = now = time.perf_counter()
    while len(times) < LEAST_RUNS or now - begin < least:
        start = time.perf_counter()
        interpreter.invoke()
        now = time.perf_counter()
        times.append(now - start)
    return float(np.median(times))


def _reading(rounds: Array) -> Json:
    low, middle, high = np.quantile(rounds, (0.25, 0.5, 0.75)).tolist()
    seconds = float(np.quantile(rounds, QUANTILE))
    return {"seconds": seconds, "spread": (high - low) / middle, "rounds": len(rounds)}


if __name__ == "__main__":
    child_process.serve(work)
