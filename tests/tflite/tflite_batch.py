"""Puts mutants through edgepipe: `python tflite_batch.py FOLDER FIRST LAST STEP` prints what became of them, as JSON.

A process of its own, so that a crash of edgepipe is seen as one, and its memory is its own.
"""

import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from tflite_mutants import mutant

from edgepipe.core.errors import InputError
from edgepipe.devices import device_metrics
from edgepipe.render import inspect as inspection
from edgepipe.tflite import interpreter, reader, sandbox, tflm_runtime
from edgepipe.tflite.arena_plan import plan_arena

SECONDS = 4.0  # for each runtime, of the ten that a file may take


def outcomes(path: Path) -> list[str]:
    """What became of the file at each step."""
    try:
        model = reader.read(path)
    except InputError as error:
        return ["refused", "refused: " + str(error).split(": ", 1)[1][:24]]
    device_metrics.file_metrics(model)
    inspection.build_record(model).model_dump_json()
    inspection.tables(model)
    return ["read", _planned(model), _litert(path), _micro(path)]


def _planned(model: reader.Model) -> str:
    try:
        plan_arena(model)
    except InputError:
        return "not planned"
    return "planned"


def _litert(path: Path) -> str:
    try:
        interpreter.check_runs(path, timeout=SECONDS)
    except InputError as error:
        return "LiteRT: " + _kind(str(error))
    return "LiteRT: runs"


def _micro(path: Path) -> str:
    arena = tflm_runtime.measure_arena(path, timeout=SECONDS)
    return "TFLM: " + (_kind(arena.how) if arena.value is None else "runs")


def _kind(reason: str) -> str:
    words = {"crashed with": "crashed", "timed out": "too slow", "the memory limit": "too much memory"}
    return next((kind for word, kind in words.items() if word in reason), "refused")


def _own_peak() -> int:
    """Bytes resident at the peak of this process; what getrusage says begins with the process that started it."""
    words = next(line.split() for line in Path("/proc/self/status").read_text().splitlines() if line[:5] == "VmHWM")
    return 1024 * int(words[1])


def main(folder: Path, first: int, last: int, step: int) -> None:
    """Mutants of the files in `folder`."""
    seeds = [path.read_bytes() for path in sorted(folder.glob("*.tflite"))]
    found, slowest, path = Counter[str](), 0.0, folder / f"mutant-{first}"
    for seed in range(first, last, step):
        path.write_bytes(mutant(seeds[seed % len(seeds)], seed))
        start = time.perf_counter()
        found.update(outcomes(path))
        slowest = max(slowest, time.perf_counter() - start)
    sandbox.get_shared().close()
    memory = [_own_peak(), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]
    print(json.dumps({"outcomes": found, "slowest": slowest, "memory": memory}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
