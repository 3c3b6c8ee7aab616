"""Per-operator times through the runtime's profiler, and pinning."""

import os
from pathlib import Path

import pytest

from edgepipe.core.errors import InputError
from edgepipe.tflite import cpu_cores, host_latency, operator_latency


def test_the_operators_of_a_network(int8_net: Path) -> None:
    found = operator_latency.measure(int8_net, runs=30)
    assert found.reason == ""
    assert found.runs >= 15
    names = " ".join(operator.name for operator in found.operators).lower()
    assert "convolution" in names
    assert any(operator.delegated for operator in found.operators)
    assert found.total is not None
    assert 0 < sum(operator.seconds for operator in found.operators) <= 1.2 * found.total + 2e-6


def test_an_unknown_version_is_unavailable(int8_net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_latency, "installed_version", lambda _: "9.0.0")
    found = operator_latency.measure(int8_net)
    assert (found.operators, found.total) == ((), None)
    assert "known for ai-edge-litert 2.3.x, found 9.0.0" in found.reason


def test_bad_requests(int8_net: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threads and runs are at least 1; found 0, 100"):
        operator_latency.measure(int8_net, threads=0)
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"damaged\.tflite"):
        operator_latency.measure(damaged)


def test_a_measurement_says_which_cores_it_was_pinned_to(int8_net: Path) -> None:
    found = host_latency.measure(int8_net, runs=5, warm_up=1)
    before = os.sched_getaffinity(0)
    assert len(found.cores) == 1
    assert set(found.cores) <= before
    time, _ = host_latency.build_metrics(found, "host")
    assert time.details["cores"] == f"pinned to core {found.cores[0]}"
    assert os.sched_getaffinity(0) == before, "only the child is pinned"
    many = host_latency.measure(int8_net, threads=len(before) + 1, runs=5, warm_up=1)
    assert many.cores == ()


def test_pinning_in_words() -> None:
    assert cpu_cores.describe_pinning((0, 3)) == "pinned to cores 0, 3"
    assert cpu_cores.describe_pinning(()).startswith("not pinned: the system")
