"""Measured latency and memory of this host."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Op, T, write

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence
from edgepipe.tflite import host_fingerprint, host_latency
from edgepipe.tflite.host_latency import LatencyMeasurement
from edgepipe.tflite.interpreter import Runtime


@pytest.fixture(scope="module")
def measured(int8_net: Path) -> LatencyMeasurement:
    return host_latency.measure(int8_net, threads=1, runs=20)


def test_a_measurement_is_complete(measured: LatencyMeasurement) -> None:
    assert 0 < measured.p5 <= measured.p50 <= measured.p95 < 0.1
    assert measured.runs >= 20
    assert measured.runs * measured.p95 > 0.1  # a tiny model is run for 0.3 s, far more than 20 times
    assert (measured.threads, measured.runtime, measured.warm_up) == (
        1,
        Runtime.XNNPACK,
        host_latency.DEFAULT_WARM_UP_RUNS,
    )
    assert measured.version == f"ai-edge-litert {version('ai-edge-litert')}"
    assert measured.host == host_fingerprint.fingerprint()
    age = datetime.now(UTC) - datetime.fromisoformat(measured.measured_at)
    assert 0 <= age.total_seconds() < 120
    assert measured.memory is not None
    assert 100_000 < measured.memory < 100_000_000
    assert LatencyMeasurement.model_validate_json(measured.model_dump_json()) == measured


def test_its_metrics_say_how(measured: LatencyMeasurement) -> None:
    time, ram = host_latency.build_metrics(measured, "host")
    assert (time.name, time.value, time.evidence, time.device) == ("latency", measured.p50, Evidence.MEASURED, "host")
    assert {"p5", "p95", "runs", "threads", "host", "host_digest", "measured_at"} <= set(time.details)
    assert (ram.name, ram.value, ram.evidence) == ("ram", measured.memory, Evidence.MEASURED)
    json.dumps([time.model_dump(mode="json"), ram.model_dump(mode="json")])


def test_memory_that_the_system_does_not_tell_is_unavailable(measured: LatencyMeasurement) -> None:
    blind = measured.model_copy(update={"memory": None, "memory_reason": "no /proc"})
    ram = host_latency.build_metrics(blind, "host")[1]
    assert (ram.value, ram.evidence, ram.how) == (None, Evidence.UNAVAILABLE, "no /proc")


def test_more_memory_is_seen(tmp_path: Path) -> None:
    """Adding two arrays of 16 MiB needs at least the three of them."""
    tensors = [T(name, (1, 4 << 20), "float32") for name in "xyz"]
    op = Op("ADD", ("x", "y"), ("z",), schema.AddOptionsT())
    path = write(tmp_path / "m.tflite", tensors, [op], ["x", "y"], ["z"])
    measured = host_latency.measure(path, runs=3, warm_up=1, runtime=Runtime.BUILTIN)
    assert measured.memory is not None
    assert 48 << 20 <= measured.memory < 80 << 20


def test_bad_requests(int8_net: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threads, runs and warm-up are at least 1; found 0, 50, 5"):
        host_latency.measure(int8_net, threads=0)
    tensors = [T("x", (1, 4)), T("y", (1, 4))]
    path = write(tmp_path / "m.tflite", tensors, [Op("CUSTOM", ("x",), ("y",), custom="MyOp")], ["x"], ["y"])
    with pytest.raises(InputError, match=r"^\S+m\.tflite: LiteRT xnnpack does not run this model: .*MyOp"):
        host_latency.measure(path)


def test_the_host_is_identified() -> None:
    found = host_fingerprint.fingerprint()
    assert found.cores >= 1
    assert found.cpu
    assert len(found.digest) == 64
    assert found.digest != found.model_copy(update={"cores": found.cores + 1}).digest
    assert found.text().startswith(f"{found.cpu}, {found.cores} core")
