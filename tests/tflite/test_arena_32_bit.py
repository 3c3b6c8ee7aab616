"""The arena of a 32-bit device against a 32-bit build of TensorFlow Lite Micro, and the least arena against trials."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tflm_32_bit
from tflite_handmade import Graph, Op, T, write_graphs
from tflite_operators import CASES, Case
from tflite_seeds import SEEDS, constant, indices, options, quantized
from tflm_32_bit import FIXED_BYTES, RECORDED_SIZES

from edgepipe.core.metric import Evidence
from edgepipe.devices import device_profile
from edgepipe.devices.device_metrics import gather
from edgepipe.tflite import reader, tflm_memory, tflm_runtime
from edgepipe.tflite.arena_minimum import least_arena_bytes
from edgepipe.tflite.arena_plan import ALIGNMENT, plan_arena
from edgepipe.tflite.arena_tail import compute_tail, replay_tail
from edgepipe.tflite.structure_sizes import SIZES_32_BIT, SIZES_64_BIT

SHARED_MODELS = Path(os.environ.get("EDGEPIPE_SHARED", Path(__file__).parents[3] / "shared")) / "latency/models"
reference = pytest.mark.skipif(bool(tflm_32_bit.missing()), reason=tflm_32_bit.missing() or "present")
package = pytest.mark.skipif(bool(tflm_runtime.missing_reason()), reason=tflm_runtime.missing_reason() or "present")


def _tiny_convolutions() -> list[Case]:
    """So small that temporary tensors, not activations, decide the least arena; one scale for each filter."""
    strides = {"strideW": 1, "strideH": 1}
    dilations = {"dilationWFactor": 1, "dilationHFactor": 1}
    x, y = quantized("x", (1, 2, 2, 2)), quantized("y", (1, 2, 2, 2))
    weights = constant("w", (2, 1, 1, 2), scales=(0.5,) * 2)
    depthwise = quantized("w", (1, 1, 1, 2), data=bytes(2), scales=(0.5,) * 2, axis=3)
    bias = constant("b", (2,), "int32", scales=(0.25,) * 2)
    return [
        Case("CONV_2D", (x, weights, bias, y), options("Conv2DOptions", **strides, **dilations)),
        Case(
            "DEPTHWISE_CONV_2D", (x, depthwise, bias, y),
            options("DepthwiseConv2DOptions", depthMultiplier=1, **strides, **dilations),
        ),
        Case("TRANSPOSE_CONV", (indices("s", 1, 2, 2, 2), weights, x, bias, y),
             options("TransposeConvOptions", **strides)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def generated_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One model for each operator, and small networks with branches, state and subgraphs."""
    folder = tmp_path_factory.mktemp("generated")
    cases = [case.write(folder / f"{index:03}.tflite") for index, case in enumerate([*CASES, *_tiny_convolutions()])]
    return cases + [seed(folder / f"{seed.__name__}.tflite") for seed in SEEDS]


def _agreeing(paths: list[Path]) -> int:
    """How many models the 32-bit build runs; all of them agree with edgepipe to the byte."""
    agreeing_count = 0
    for path, arena in zip(paths, tflm_32_bit.record(paths), strict=True):
        if arena.refusal:
            continue
        model = reader.read(path)
        memory = tflm_memory.plan_memory(model)
        assert (memory.head_bytes_32_bit, replay_tail(model, RECORDED_SIZES).used_bytes) == arena[:2], path.name
        assert arena.head + arena.tail - memory.total_bytes_32_bit in FIXED_BYTES, path.name
        agreeing_count += 1
    return agreeing_count


@reference
def test_generated_models(generated_models: list[Path], int8_net: Path, float_net: Path, float_io_net: Path) -> None:
    paths = [*generated_models, int8_net, float_net, float_io_net]
    assert _agreeing(paths) == len(paths) - 1  # the benchmark's random numbers are no indices for EMBEDDING_LOOKUP


def _model_with_states(path: Path) -> Path:
    """A streaming model: two resource variables of different sizes, one written twice, both set by a subgraph."""
    handles = [T(name, (), "resource") for name in ("a", "b")]
    name_handles = [
        Op("VAR_HANDLE", (), (name,), options("VarHandleOptions", container="", sharedName=name)) for name in ("a", "b")
    ]
    values = [T("x", (1, 16)), T("z", (1, 40)), T("y", (1, 16))]
    zeros = [T("x", (1, 16), data=np.zeros((1, 16), np.int8)), T("z", (1, 40), data=np.zeros((1, 40), np.int8))]
    write_a, write_b = (
        Op("ASSIGN_VARIABLE", pair, (), options("AssignVariableOptions")) for pair in (("a", "x"), ("b", "z"))
    )
    read_a = Op("READ_VARIABLE", ("a",), ("y",), options("ReadVariableOptions"))
    once = Op("CALL_ONCE", (), (), options("CallOnceOptions", initSubgraphIndex=1))
    main = Graph(
        [*handles, *values], [once, *name_handles, write_a, write_b, write_a, read_a], ["x", "z"], ["y"]
    )  # fmt: skip
    return write_graphs(path, [main, Graph([*handles, *zeros], [*name_handles, write_a, write_b], [], [])])


@package
def test_states_are_counted_on_64_bits(tmp_path: Path) -> None:
    path = _model_with_states(tmp_path / "m.tflite")
    assert compute_tail(reader.read(path)).total_bytes == tflm_runtime.measure_arena(path).details["tail"]


@reference
def test_states_are_counted_on_32_bits(tmp_path: Path) -> None:
    """The benchmark has its own table, of 100; a device has one that is as long as the model needs."""
    path = _model_with_states(tmp_path / "m.tflite")
    (arena,) = tflm_32_bit.record([path])
    model = reader.read(path)
    tail = replay_tail(model, RECORDED_SIZES)
    assert (tail.used_bytes, arena.refusal) == (arena.tail, "")
    table, padding, buffers = 12 + 2 * 20, 8, 16 + 48
    assert replay_tail(model, SIZES_32_BIT).bytes_by_use["resource variables"] == table + padding + buffers


@pytest.mark.slow
@reference
@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="the published models are not on this machine")
def test_published_models() -> None:
    """Must-show: at least 40. Refused are operators that the build lacks, and files over its 2 MB."""
    assert _agreeing(sorted(SHARED_MODELS.glob("*.tflite"))) >= 40


# What an ESP32 takes, by mcufit's authors: 2128 bytes less than their 32-bit build. Three of their four networks.
ON_ESP32 = (
    "anomaly_detection__ad01_int8",
    "keyword_spotting__kws_ref_model",
    "image_classification__pretrainedResnet_quant",
)


@reference
@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="the published models are not on this machine")
@pytest.mark.parametrize("name", ON_ESP32)
def test_networks_on_an_esp32(name: str) -> None:
    (path,) = SHARED_MODELS.glob(f"{name}.*")
    (arena,) = tflm_32_bit.record([path])
    assert tflm_memory.plan_memory(reader.read(path)).total_bytes_32_bit == arena.head + arena.tail - 2128


_TRIALS = """
import json, os, sys
from pathlib import Path
import numpy as np
from edgepipe.tflite import reader
from tflite_micro.python.tflite_micro import runtime

def run(path, size):
    model = reader.read(Path(path))
    interpreter = runtime.Interpreter.from_bytes(model.content, arena_size=size)
    for index, tensor in enumerate(model.inputs):
        interpreter.set_input(np.zeros(tensor.shape, tensor.dtype), index)
    interpreter.invoke()

for path, size in json.load(sys.stdin):
    child = os.fork()  # an arena that is too small may crash
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            run(path, size)
        except BaseException:
            os._exit(1)
        os._exit(0)
    print(json.dumps(os.waitpid(child, 0)[1] == 0))
"""


def _runs_in(trials: Iterable[tuple[Path, int]]) -> list[bool]:
    """Whether TensorFlow Lite Micro runs each model in an arena of so many bytes, on 64 bits."""
    request = json.dumps([(str(path), size) for path, size in trials])
    found = subprocess.run(
        [sys.executable, "-c", _TRIALS], input=request, capture_output=True, text=True, check=True, timeout=300
    )
    return [json.loads(line) for line in found.stdout.splitlines()]


def _least_bytes(path: Path) -> int:
    """In 64 bits, rounded up to the alignment of the arena's two ends."""
    model = reader.read(path)
    return -(-least_arena_bytes(model, plan_arena(model), SIZES_64_BIT) // ALIGNMENT) * ALIGNMENT


FREED_EARLY_BYTES = 96  # a temporary tensor with its quantization that some kernels free before they open the next


@pytest.mark.slow
@package
def test_the_least_arena_is_enough_and_hardly_more(generated_models: list[Path]) -> None:
    sizes = [_least_bytes(path) for path in generated_models]
    assert all(_runs_in(zip(generated_models, sizes, strict=True)))
    smaller_sizes = [size - FREED_EARLY_BYTES - ALIGNMENT for size in sizes]
    assert not any(_runs_in(zip(generated_models, smaller_sizes, strict=True)))


@package
def test_the_least_arena_of_networks_is_exact(int8_net: Path, float_net: Path, flat_net: Path) -> None:
    paths = (int8_net, float_net, flat_net)
    assert all(_runs_in((path, _least_bytes(path)) for path in paths))
    assert not any(_runs_in((path, _least_bytes(path) - ALIGNMENT) for path in paths))


@package
@pytest.mark.parametrize("device", ["nucleo-l4r5zi", "esp32-s3", "rp2040-pico", "nrf5340-dk"])
def test_a_32_bit_device_gets_the_least_arena_in_32_bits(device: str, int8_net: Path) -> None:
    model = reader.read(int8_net)
    ram = next(
        metric for metric in gather(model, [device_profile.load(device, Path())]).metrics if metric.name == "ram"
    )
    memory = tflm_memory.plan_memory(model)
    assert (ram.value, ram.evidence) == (memory.least_bytes_32_bit, Evidence.SIMULATED)
    assert ram.details["allocated"] == memory.total_bytes_32_bit
    assert ram.details["host_64_bit"] == tflm_runtime.measure_arena(int8_net).value
    assert "its structures counted in their 32-bit sizes" in ram.how


@package
def test_what_the_copy_does_not_explain_is_an_estimate(int8_net: Path) -> None:
    model = reader.read(int8_net)
    memory = tflm_memory.plan_memory(model)
    head, tail = plan_arena(model).peak_bytes, compute_tail(model).total_bytes
    record = tflm_runtime.ArenaRecord(head + tail + 100, head, tail + 100)
    ram = tflm_memory.arena_32_bit(model, record)
    assert ram.evidence is Evidence.ESTIMATED
    assert "differs by +100 bytes from the copy's" in ram.how
    assert ram.interval == (memory.least_bytes_32_bit + 50, memory.least_bytes_32_bit + 100)


ARCHITECTURES = [
    ("Armv6-M", True), ("Armv7E-M", True), ("Armv8-M", True), ("Armv8.1-M Mainline", True), ("Armv7-A", True),
    ("Xtensa LX7", True), ("RV32IMAC", True), ("Armv8-A", False), ("Armv8.2-A", False), ("host", False),
    ("RV64GC", False),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "is_32_bit"), ARCHITECTURES)
def test_architectures_with_32_bits(architecture: str, is_32_bit: bool) -> None:
    assert device_profile.System(core="c", architecture=architecture).is_32_bit is is_32_bit
