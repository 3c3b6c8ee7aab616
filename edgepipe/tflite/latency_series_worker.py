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

MIN_VISIT_RUNS = 5  # in one visit
WARM_UP_RUNS = 2  # at the start of each visit: other models have evicted it from the caches
QUANTILE = 0.25


def handle_request(request: Json) -> Json:
    """The request of `latency_series.measure` in, its readings out."""
    cpu_cores.pin(request["threads"])
    runtime, threads = Runtime(request["runtime"]), request["threads"]
    reference_interpreter, _ = run_on_zeros(reader.read(Path(request["reference"])), runtime, threads)
    interpreter_by_model: dict[int, Any] = {}
    refusal_by_model: dict[int, str] = {}
    for index, path in enumerate(request["models"]):
        try:
            interpreter_by_model[index], _ = run_on_zeros(reader.read(Path(path)), runtime, threads)
        except EdgepipeError as error:
            refusal_by_model[index] = str(error)
    seconds_by_model = _measure_rounds(interpreter_by_model, reference_interpreter, request)
    readings = [
        _build_reading(seconds_by_model[index])
        if index in seconds_by_model
        else {"seconds": None, "refused": refusal_by_model[index]}
        for index in range(len(request["models"]))
    ]
    return {"readings": readings}


def _measure_rounds(
    interpreter_by_model: dict[int, Any], reference_interpreter: Any, request: Json
) -> dict[int, Array]:
    """The medians of each model's visits in seconds, scaled by the slowdown of the reference in that round."""
    random = np.random.default_rng(request["seed"])
    medians_by_model: dict[int, list[float]] = {index: [] for index in interpreter_by_model}
    reference_medians = []
    for _ in range(request["rounds"]):
        reference_medians.append(_time_visit(reference_interpreter, request["visit"]))
        for index in random.permutation(list(interpreter_by_model)).tolist():
            medians_by_model[index].append(_time_visit(interpreter_by_model[index], request["visit"]))
    slowdowns = np.asarray(reference_medians) / min(reference_medians)
    return {index: np.asarray(model_medians) / slowdowns for index, model_medians in medians_by_model.items()}


def _time_visit(interpreter: Any, min_seconds: float) -> float:
    """The median in seconds of at least `MIN_RUNS` runs and `min_seconds`."""
    for _ in range(WARM_UP_RUNS):
        interpreter.invoke()
    run_seconds: list[float] = []
    begin = now = time.perf_counter()
    while len(run_seconds) < MIN_VISIT_RUNS or now - begin < min_seconds:
        start = time.perf_counter()
        interpreter.invoke()
        now = time.perf_counter()
        run_seconds.append(now - start)
    return float(np.median(run_seconds))


def _build_reading(round_seconds: Array) -> Json:
    low, middle, high = np.quantile(round_seconds, (0.25, 0.5, 0.75)).tolist()
    seconds = float(np.quantile(round_seconds, QUANTILE))
    return {"seconds": seconds, "spread": (high - low) / middle, "rounds": len(round_seconds)}


if __name__ == "__main__":
    child_process.serve(handle_request)
