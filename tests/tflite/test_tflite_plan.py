"""The memory plan against TensorFlow Lite Micro's own allocator, and against what every plan must keep to."""

import importlib.util
import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_handmade import Graph, Op, T, write, write_graphs
from tflite_operators import CASES, Case
from tflite_published import FILES, MISSING
from tflite_seeds import SEEDS, options

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric
from edgepipe.tflite import reader, tflm_memory, tflm_runtime
from edgepipe.tflite.arena_plan import ALIGNMENT, MAX_BUFFERS, place_buffers, plan_arena
from edgepipe.tflite.arena_tail import UNKNOWN_KERNEL_BYTES, compute_tail

present = pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed")


def _agrees(path: Path, found: Metric | None = None) -> None:
    """Head and tail are those that TensorFlow Lite Micro reports, to the byte."""
    model, found = reader.read(path), found or tflm_runtime.measure_arena(path)
    assert found.value is not None, found.how
    assert plan_arena(model).peak_bytes == found.details["head"]
    assert compute_tail(model).total_bytes == found.details["tail"]
    assert compute_tail(model).unknown_operators == ()


@pytest.mark.slow
@present
@pytest.mark.skipif(not FILES, reason=MISSING)
def test_published_models() -> None:
    """Must-show: the head exactly, the tail within 10 % (here exactly too), each refusal with its reason."""
    refused = {}
    for path in FILES:
        found = tflm_runtime.measure_arena(path)
        if found.value is None:
            refused[path.name] = found.how
            assert plan_arena(reader.read(path)).peak_bytes > 0
        else:
            _agrees(path, found)
    assert len(FILES) - len(refused) == 46
    reasons = ("opcode 'TILE'", "Hybrid models are not supported", "Input type UINT8 (3) not supported")
    assert all(any(reason in how for reason in reasons) for how in refused.values()), refused


@present
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_operator_alone(case: Case, tmp_path: Path) -> None:
    _agrees(case.write(tmp_path / "m.tflite"))


@present
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.__name__)
def test_networks_state_and_control_flow(seed: object, tmp_path: Path) -> None:
    _agrees(seed(tmp_path / "m.tflite"))  # type: ignore[operator]


@present
def test_converted_networks(int8_net: Path, float_net: Path, float_io_net: Path, flat_net: Path) -> None:
    for path in (int8_net, float_net, float_io_net, flat_net):
        _agrees(path)


def _random_graph(path: Path, rng: random.Random) -> Path:
    """Sums of earlier tensors in random order and sizes: long lives, ties, tensors that nobody reads."""
    width, count = rng.choice((3, 16, 50)), rng.randrange(3, 30)
    tensors = [T("t0", (1, width), "float32")]
    ops = []
    for index in range(1, count):
        left, right = (rng.choice(tensors) for _ in range(2))
        tensors.append(T(f"t{index}", (rng.choice((1, 1, 2, 7)), width), "float32"))
        if left.shape == right.shape == tensors[-1].shape:
            ops.append(Op("ADD", (left.name, right.name), (tensors[-1].name,), options("AddOptions")))
        else:
            shape = T(f"s{index}", (2,), "int32", np.array(tensors[-1].shape, np.int32))
            same = [t for t in tensors if t.data is None and t.shape == (1, width)]
            ops.append(Op("BROADCAST_TO", (rng.choice(same).name, shape.name), (tensors[-1].name,)))
            tensors.append(shape)
    made = [op.outputs[0] for op in ops]
    return write(path, tensors, ops, ["t0"], sorted(set(rng.sample(made, min(2, len(made))))))


@present
@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int, tmp_path: Path) -> None:
    path = _random_graph(tmp_path / "m.tflite", random.Random(seed))
    model = reader.read(path)
    found = tflm_runtime.measure_arena(path)
    assert plan_arena(model).peak_bytes == found.details["head"]


LIVES = st.tuples(st.integers(1, 60), st.integers(0, 12), st.integers(0, 12)).map(
    lambda life: (life[0] * ALIGNMENT, min(life[1:]), max(life[1:]))
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LIVES, max_size=25))
def test_no_two_buffers_alive_at_once_overlap(wanted: list[tuple[int, int, int]]) -> None:
    offsets = place_buffers(wanted)
    placed = list(zip(offsets, wanted, strict=True))
    for index, (offset, (size, first, last)) in enumerate(placed):
        assert offset >= 0
        assert offset % ALIGNMENT == 0
        for other, (room, start, end) in placed[:index]:
            assert last < start or end < first or offset + size <= other or other + room <= offset
    needed = max((sum(s for s, a, b in wanted if a <= step <= b) for step in range(13)), default=0)
    peak = max((offset + size for offset, (size, _, _) in placed), default=0)
    assert needed <= peak <= sum(size for size, _, _ in wanted)


@settings(max_examples=100, deadline=None)
@given(st.lists(LIVES, min_size=1, max_size=12), st.data())
def test_fixed_offsets_stay(wanted: list[tuple[int, int, int]], data: st.DataObject) -> None:
    fixed: list[int | None] = [None] * len(wanted)
    fixed[data.draw(st.integers(0, len(wanted) - 1))] = 1600
    offsets = place_buffers(wanted, fixed)
    assert [offset for offset, given_ in zip(offsets, fixed, strict=True) if given_ is not None] == [1600]


def _chain(path: Path, sizes: tuple[int, ...]) -> Path:
    tensors = [T(f"t{i}", (1, size)) for i, size in enumerate(sizes)]
    ops = [Op("EXP", (f"t{i}",), (f"t{i + 1}",)) for i in range(len(sizes) - 1)]
    return write(path, tensors, ops, ["t0"], [f"t{len(sizes) - 1}"])


def test_lives_and_the_peak_counted_by_hand(tmp_path: Path) -> None:
    found = plan_arena(reader.read(_chain(tmp_path / "m.tflite", (100, 30, 200, 50, 10))))
    assert [(b.name, b.kind, b.first_step, b.last_step) for b in found.buffers] == [
        ("t0", "input", 0, 1),
        ("t1", "activation", 1, 2),
        ("t2", "activation", 2, 3),
        ("t3", "activation", 3, 4),
        ("t4", "output", 4, 4),
    ]
    assert found.live_bytes_by_step == (100, 130, 230, 250, 60)
    assert (found.naive_peak_bytes, found.peak_step) == (250, 3)
    assert found.peak_operator is not None
    assert found.peak_operator.location == "EXP #2"
    assert [buffer.name for buffer in found.buffers_at_peak] == ["t2", "t3"]
    assert found.peak_bytes == 208 + 64
    assert [(b.name, b.offset) for b in found.buffers if b.name in ("t2", "t3", "t0")] == [
        ("t0", 0), ("t2", 0), ("t3", 208),
    ]  # fmt: skip


@present
def test_an_offline_plan_is_kept(tmp_path: Path) -> None:
    tensors = [T(name, (1, 8), "float32") for name in ("x", "a", "y")]
    net = Graph(tensors, [Op("EXP", ("x",), ("a",)), Op("NEG", ("a",), ("y",))], ["x"], ["y"])
    offsets = struct.pack("<6i", 1, 0, 3, 0, 256, -1)
    path = write_graphs(tmp_path / "m.tflite", [net], {"OfflineMemoryAllocation": offsets})
    found = plan_arena(reader.read(path))
    assert [buffer.offset for buffer in found.buffers] == [0, 256, 0]
    assert found.peak_bytes == tflm_runtime.measure_arena(path).details["head"] == 288
    wrong = write_graphs(tmp_path / "w.tflite", [net], {"OfflineMemoryAllocation": offsets[:16]})
    with pytest.raises(InputError, match=r"its offline plan has 3 offsets for 3 tensors"):
        plan_arena(reader.read(wrong))
    below = write_graphs(
        tmp_path / "b.tflite", [net], {"OfflineMemoryAllocation": struct.pack("<6i", 1, 0, 3, 0, -64, -1)}
    )
    with pytest.raises(InputError, match=r"its offline plan has an offset of -64; it must be -1 or more"):
        plan_arena(reader.read(below))


@pytest.mark.parametrize(
    ("then", "message"),
    [(0, "subgraph 0 calls itself"), (7, r"IF #0 leads to subgraph 7 of 1"), (-1, "leads to subgraph -1 of 1")],
)
def test_control_flow_that_never_ends_has_no_plan(then: int, message: str, tmp_path: Path) -> None:
    tensors = [T("c", (1,), "bool"), T("y", (1,), "float32")]
    branches = options("IfOptions", thenSubgraphIndex=then, elseSubgraphIndex=then)
    path = write(tmp_path / "m.tflite", tensors, [Op("IF", ("c", "c"), ("y",), branches)], ["c"], ["y"])
    with pytest.raises(InputError, match=message):
        plan_arena(reader.read(path))
    found = tflm_memory.plan_memory(reader.read(path))
    assert found.arena_plan is None
    assert found.missing_plan_reason
    assert tflm_memory.estimate_arena_32_bit(reader.read(path)).evidence is Evidence.UNAVAILABLE


def test_subgraphs_that_multiply_are_stopped(tmp_path: Path) -> None:
    """Each calls the next one twice: 2^40 steps."""
    flag, y = T("c", (1,), "bool"), T("y", (1,), "bool")
    graphs = [
        Graph([flag, y], [Op("IF", ("c",), ("y",), options("IfOptions", thenSubgraphIndex=index + 1,
              elseSubgraphIndex=index + 1))], ["c"], ["y"])
        for index in range(40)
    ]  # fmt: skip
    graphs.append(Graph([flag, y], [Op("LOGICAL_NOT", ("c",), ("y",))], ["c"], ["y"]))
    path, start = write_graphs(tmp_path / "m.tflite", graphs), time.perf_counter()
    with pytest.raises(InputError, match="call each other more often than there are operators"):
        plan_arena(reader.read(path))
    assert time.perf_counter() - start < 5


def test_what_is_too_much_to_plan(tmp_path: Path) -> None:
    huge = [T("x", (2**30, 2)), T("y", (2**30, 2))]
    path = write(tmp_path / "huge.tflite", huge, [Op("NEG", ("x",), ("y",))], ["x"], ["y"])
    with pytest.raises(InputError, match=r"its tensors take 4294967296 bytes together; the planner counts to"):
        plan_arena(reader.read(path))
    many = [T(f"t{index}", (1,)) for index in range(MAX_BUFFERS + 1)]
    path = write(tmp_path / "many.tflite", many, [Op("NEG", ("t0",), ("t1",))], ["t0"], ["t1"])
    with pytest.raises(InputError, match=r"10001 tensors to plan; at most 10000 are planned"):
        plan_arena(reader.read(path))


def test_the_largest_plan_is_no_hang() -> None:
    rng = random.Random(1)
    starts = [rng.randrange(3000) for _ in range(MAX_BUFFERS)]
    start = time.perf_counter()
    place_buffers([(16 * rng.randrange(1, 5000), first, first + rng.randrange(300)) for first in starts])
    assert time.perf_counter() - start < 8


def test_the_arena_of_a_32_bit_device_is_an_estimate(int8_net: Path) -> None:
    model = reader.read(int8_net)
    found, behind = tflm_memory.estimate_arena_32_bit(model, "nucleo-l4r5zi"), compute_tail(model)
    assert (found.name, found.evidence, found.device) == ("ram", Evidence.ESTIMATED, "nucleo-l4r5zi")
    assert found.value == plan_arena(model).peak_bytes + behind.total_bytes_32_bit
    assert found.interval == (found.value, found.value)
    assert sum(behind.bytes_by_use.values()) == behind.total_bytes


def test_kernels_that_nobody_looked_at_are_named(tmp_path: Path) -> None:
    tensors = [T("x", (1, 4)), T("y", (1, 4))]
    path = write(tmp_path / "m.tflite", tensors, [Op("CUSTOM", ("x",), ("y",), custom="MyFft")], ["x"], ["y"])
    model = reader.read(path)
    assert compute_tail(model).unknown_operators == ("MyFft",)
    estimate = tflm_memory.estimate_arena_32_bit(model)
    assert "kernels' data of MyFft is left out" in estimate.how
    assert estimate.interval == (estimate.value, estimate.value + UNKNOWN_KERNEL_BYTES)  # type: ignore[operator]
