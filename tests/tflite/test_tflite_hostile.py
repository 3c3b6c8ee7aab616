"""Damaged and hostile files: each is accepted or refused with one clear error, fast and in little memory.

`EDGEPIPE_MUTANTS=2000` makes more of them.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Graph, Op, T, write_graphs
from tflite_mutants import published
from tflite_published import MODELS
from tflite_seeds import SEEDS

from edgepipe.core.errors import InputError
from edgepipe.core.module_sources import PACKAGE_ROOT
from edgepipe.devices import device_metrics
from edgepipe.tflite import reader
from edgepipe.tflite.arena_plan import plan_arena
from edgepipe.tflite.arena_tail import compute_tail
from edgepipe.tflite.dead_channels import find_dead_channels

MUTANTS = int(os.environ.get("EDGEPIPE_MUTANTS", "200"))
SECONDS = 10.0
MEMORY = 2 << 30
BATCHES = 4


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that mutants are made of."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in SEEDS:
        seed(folder / f"{seed.__name__}.tflite")
    for path in published(MODELS):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _batch(folder: Path, first: int) -> Any:
    words = [sys.executable, str(Path(__file__).parent / "tflite_batch.py"), str(folder), str(first), str(MUTANTS)]
    path = os.pathsep.join([str(PACKAGE_ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [*words, str(BATCHES)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(BATCHES))
def test_mutants_are_accepted_or_refused(first: int, seeds: Path) -> None:
    """Must-show: bit flips, truncations, hostile offsets and sizes; through facts, plan, counts and both runtimes."""
    found = _batch(seeds, first)
    print(json.dumps(found, indent=1))
    outcomes = found["outcomes"]
    assert outcomes["read"] + outcomes["refused"] == len(range(first, MUTANTS, BATCHES))
    assert min(outcomes["read"], outcomes["refused"]) > MUTANTS // 40  # mutants that are all of one kind show nothing
    assert found["slowest"] <= SECONDS
    assert max(found["memory"]) <= MEMORY


def _crowded(path: Path, count: int) -> Path:
    """A file whose list of tensors names one and the same tensor `count` times: four bytes each."""
    builder = flatbuffers.Builder(1024)
    name = builder.CreateString("x")
    schema.TensorStartShapeVector(builder, 1)
    builder.PrependInt32(1)
    shape = builder.EndVector()
    schema.TensorStart(builder)
    schema.TensorAddName(builder, name)
    schema.TensorAddShape(builder, shape)
    tensor = schema.TensorEnd(builder)
    schema.SubGraphStartTensorsVector(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    subgraph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, 1)
    builder.PrependUOffsetTRelative(subgraph)
    subgraphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, subgraphs)
    builder.Finish(schema.ModelEnd(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.slow
def test_a_crowd_of_tensors_is_read_in_time(tmp_path: Path) -> None:
    path, start = _crowded(tmp_path / "m.tflite", reader.MAX_TENSORS), time.process_time()
    model = reader.read(path)
    device_metrics.file_metrics(model)
    find_dead_channels(model)
    compute_tail(model)
    with pytest.raises(InputError, match=f"{reader.MAX_TENSORS} tensors to plan"):
        plan_arena(model)
    assert time.process_time() - start < SECONDS  # of CPU: the machine may be busy


def test_a_larger_crowd_is_refused(tmp_path: Path) -> None:
    path = _crowded(tmp_path / "m.tflite", reader.MAX_TENSORS + 1)
    with pytest.raises(InputError, match=f"does not read a .tflite with more than {reader.MAX_TENSORS:,} tensors"):
        reader.read(path)


def _named(name: str = "x", shape: tuple[int, ...] = (1, 4), count: int = 1) -> list[T]:
    return [T(f"{name}{index}" if index else name, shape) for index in range(count)]


def _adds(count: int, inputs: int = 2) -> list[Op]:
    return [Op("ADD", ("x",) * inputs, ("x",)) for _ in range(count)]


LIMITS: dict[str, tuple[list[Graph], str]] = {
    "dimensions": (
        [Graph(_named(shape=(1,) * (reader.MAX_DIMENSIONS + 1)), [], ["x"], ["x"])],
        "33 dimensions of tensor 'x'; 32 at most",
    ),
    "inputs": ([Graph(_named(), _adds(1, 4097), ["x"], ["x"])], "4,097 inputs or outputs of operator 0; 4,096 at most"),
    "outputs": (
        [Graph(_named(), [Op("SPLIT", ("x",), ("x",) * 4097)], ["x"], ["x"])],
        "4,097 inputs or outputs of operator 0; 4,096 at most",
    ),
    "all inputs": (
        [Graph(_named(), _adds(50, 6), ["x"], ["x"])],
        "more than 300 inputs and outputs of operators",
    ),
    "operators": ([Graph(_named(), _adds(61), ["x"], ["x"])], "more than 60 operators"),
    "operators of all subgraphs": ([Graph(_named(), _adds(21), ["x"], ["x"])] * 3, "more than 60 operators"),
    "tensors of all subgraphs": ([Graph(_named(count=34), [], ["x"], ["x"])] * 3, "more than 100 tensors"),
    "subgraphs": ([Graph(_named(), [], ["x"], ["x"])] * 1001, "more than 1,000 subgraphs"),
    "a name": ([Graph(_named("x" * 65_537), [], ["x" * 65_537], ["x" * 65_537])], "a name of 65,537 bytes"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_more_than_is_read(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"MAX_TABLES": 1050, "MAX_TENSORS": 100, "MAX_OPERATORS": 60, "MAX_ALL_ARGUMENTS": 300}.items():
        monkeypatch.setattr(reader, name, number)  # files of the true numbers take seconds to write
    graphs, message = LIMITS[limit]
    path = write_graphs(tmp_path / "m.tflite", graphs)
    with pytest.raises(InputError, match=re.escape(f"m.tflite: edgepipe does not read a .tflite with {message}")):
        reader.read(path)
