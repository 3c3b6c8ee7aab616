"""Damaged and hostile files: each is accepted or refused with one clear error, fast and in little memory.

`EDGEPIPE_MUTANTS=2000` makes more of them.
"""

import os
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
from tflite_mutants import mutant, published
from tflite_published import MODELS
from tflite_seeds import SEEDS

from edgepipe.devices import evidence
from edgepipe.errors import InputError
from edgepipe.tflite import graph, interpreter, micro, sandbox
from edgepipe.tflite.dead import dead_channels
from edgepipe.tflite.model import Model
from edgepipe.tflite.plan import plan
from edgepipe.tflite.tail import tail

MUTANTS = int(os.environ.get("EDGEPIPE_MUTANTS", "200"))
SECONDS = 10.0
MEMORY = 2 << 30
BATCHES = 10


def _facts(path: Path) -> Model:
    model = graph.read(path)
    evidence.counts(model)
    dead_channels(model)
    tail(model)
    return model


def _outcomes(path: Path) -> list[str]:
    """What became of the file at each step."""
    try:
        model = _facts(path)
    except InputError as error:
        return [f"refused: {str(error).split(': ', 1)[1][:24]}"]
    found = ["read"]
    try:
        plan(model)
        found.append("planned")
    except InputError:
        found.append("not planned")
    try:
        interpreter.check_runs(path, timeout=SECONDS / 3)
        found.append("LiteRT runs it")
    except InputError as error:
        found.append("LiteRT: " + ("crash" if "crashed" in str(error) else "slow" if "no end" in str(error) else "no"))
    arena = micro.arena(path, timeout=SECONDS / 3)
    crash = "crashed" in arena.how
    found.append("TFLM runs it" if arena.value is not None else "TFLM: crash" if crash else "TFLM: no")
    return found


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    made = [seed(folder / "seed.tflite").read_bytes() for seed in SEEDS]
    return made + [path.read_bytes() for path in published(MODELS)]


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutants_are_accepted_or_refused(batch: int, seeds: list[bytes], tmp_path: Path) -> None:
    outcomes, slowest = Counter[str](), 0.0
    for seed in range(batch, MUTANTS, BATCHES):
        path = tmp_path / f"{seed}.tflite"
        path.write_bytes(mutant(seeds[seed % len(seeds)], seed))
        start = time.perf_counter()
        outcomes.update(_outcomes(path))
        slowest = max(slowest, time.perf_counter() - start)
        path.unlink()
    sandbox.shared().close()
    peak = 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"slowest {slowest:.1f} s, most memory {peak >> 20} MiB", *sorted(outcomes.items()), sep="\n  ")
    assert slowest <= 2 * SECONDS  # each runtime has a third of it, twice where a used process may be to blame
    assert peak <= MEMORY
    assert outcomes["read"] + sum(n for name, n in outcomes.items() if name.startswith("refused")) == len(
        range(batch, MUTANTS, BATCHES)
    )
