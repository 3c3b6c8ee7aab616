"""Measuring a suite: stored readings, interruption, disagreement, and models that a device refuses or crashes on."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from edgepipe.core.artifact import file_digest
from edgepipe.core.progress import SilentProgress
from edgepipe.devices.calibration.measurement_backend import (
    LONG_VISITS,
    SHORT_VISITS,
    BackendIdentity,
    HostBackend,
    VisitSchedule,
)
from edgepipe.devices.calibration.network_builder import NetworkBuilder
from edgepipe.devices.calibration.suite import SuiteCase
from edgepipe.devices.calibration.suite_measurement import (
    MAX_EXTRA_PASSES,
    MODELS_PER_PROCESS,
    CaseFile,
    ReadingStore,
    SuiteBench,
    combine_readings,
)
from edgepipe.tflite.latency_series import LatencyReading


@dataclass
class FakeBackend:
    """A device with the latencies of a table, which may be interrupted after some batches."""

    times: dict[str, list[float]] = field(default_factory=dict)
    batches: int = 1000
    runtime: str = "clockwork 1"
    runs_by_model: Counter[str] = field(default_factory=Counter)

    @property
    def identity(self) -> BackendIdentity:
        return BackendIdentity(host="a table", host_digest="0", runtime=self.runtime, threads=1)

    def measure(
        self, models: list[Path], reference: Path, seed: int, visits: VisitSchedule = SHORT_VISITS
    ) -> list[LatencyReading]:
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        readings = []
        for path in models:
            times = [3e-3] if visits == LONG_VISITS else self.times.get(path.stem, [1e-3])
            readings.append(LatencyReading(seconds=times[min(self.runs_by_model[path.stem], len(times) - 1)], rounds=3))
            self.runs_by_model[path.stem] += 1
        return readings


def _write_cases(count: int, folder: Path) -> list[CaseFile]:
    def build(seed: int) -> NetworkBuilder:
        raise AssertionError("not built here")

    files = []
    for number in range(count):
        path = folder / f"m{number}.tflite"
        path.write_bytes(bytes([number]))
        files.append(CaseFile(SuiteCase(path.stem, "g", False, build), path, file_digest(path)))
    return files


def _bench(backend: FakeBackend, folder: Path, seed: int = 1) -> SuiteBench:
    return SuiteBench(backend, ReadingStore(folder / "kept"), folder / "reference", seed, SilentProgress())


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    files, interrupted_backend = _write_cases(3 * MODELS_PER_PROCESS, tmp_path), FakeBackend(batches=4)
    with pytest.raises(KeyboardInterrupt):
        _bench(interrupted_backend, tmp_path).measure(files, 2)
    assert sum(interrupted_backend.runs_by_model.values()) == 4 * MODELS_PER_PROCESS
    resumed_backend = FakeBackend()
    readings = _bench(resumed_backend, tmp_path).measure(files, 2)
    assert (
        sum(resumed_backend.runs_by_model.values()) == 2 * MODELS_PER_PROCESS
    )  # those that the first run did not reach
    assert {reading.rounds for reading in readings.values()} == {6}
    unused_backend = FakeBackend(batches=0)
    assert _bench(unused_backend, tmp_path).measure(files, 2) == readings


@pytest.mark.parametrize("change", ["runtime", "seed", "content"])
def test_readings_of_other_conditions_are_not_reused(change: str, tmp_path: Path) -> None:
    files = _write_cases(2, tmp_path)
    _bench(FakeBackend(), tmp_path).measure(files, 1)
    changed_backend = FakeBackend(runtime="clockwork 2" if change == "runtime" else "clockwork 1")
    if change == "content":
        files[0].path.write_bytes(b"new")
        files = [CaseFile(file.case, file.path, file_digest(file.path)) for file in files]
    _bench(changed_backend, tmp_path, seed=2 if change == "seed" else 1).measure(files, 1)
    assert changed_backend.runs_by_model == ({"m0": 1} if change == "content" else {"m0": 1, "m1": 1})


def test_a_damaged_reading_is_measured_again(tmp_path: Path) -> None:
    files = _write_cases(2, tmp_path)
    _bench(FakeBackend(), tmp_path).measure(files, 1)
    next((tmp_path / "kept").rglob("*.json")).write_text('{"seconds": "fast"}', encoding="utf-8")
    backend = FakeBackend()
    _bench(backend, tmp_path).measure(files, 1)
    assert sum(backend.runs_by_model.values()) == 1


def test_a_model_whose_passes_disagree_is_measured_again(tmp_path: Path) -> None:
    backend = FakeBackend({"m0": [2e-3, 1e-3, 1.01e-3], "m1": [1e-3, 1.02e-3], "m2": [5e-3, 4e-3, 3e-3, 2e-3, 1e-3]})
    readings = _bench(backend, tmp_path).measure(_write_cases(3, tmp_path), 2)
    assert backend.runs_by_model == {"m0": 3, "m1": 2, "m2": 2 + MAX_EXTRA_PASSES}
    assert readings["m0"].seconds == pytest.approx(1.005e-3)  # the disturbed pass does not count
    assert readings["m2"].spread == 4


def test_long_runs_scale_the_short_ones(tmp_path: Path) -> None:
    """The fake backend takes 1 ms in a short turn and 3 ms in a long run."""
    files = [
        CaseFile(replace(file.case, is_composite=True), file.path, file.digest) for file in _write_cases(5, tmp_path)
    ]
    bench = _bench(FakeBackend(), tmp_path)
    readings = bench.measure(files, 1)
    assert bench.measure_sustained_factor(files, readings) == pytest.approx(3)
    assert bench.measure_sustained_factor(_write_cases(5, tmp_path), readings) == 1  # no composites


def test_a_refusal_outweighs_readings() -> None:
    refusal = LatencyReading(seconds=None, refused="no such kernel")
    assert combine_readings([LatencyReading(seconds=1.0, rounds=3), refusal]) == refusal


def test_the_host_names_the_models_it_refuses(tmp_path: Path) -> None:
    net = NetworkBuilder(0)
    valid_path, invalid_path = tmp_path / "good.tflite", tmp_path / "bad.tflite"
    valid_path.write_bytes(net.set_outputs(net.conv(net.input(8, 8, 3), 8, 3)).to_bytes())
    invalid_path.write_bytes(b"not a model")
    readings = HostBackend(threads=1).measure(
        [valid_path, invalid_path, valid_path], valid_path, 0, VisitSchedule(2, 0.005)
    )
    assert [reading.seconds is None for reading in readings] == [False, True, False]
    assert "bad.tflite" in readings[1].refused
    first_seconds, second_seconds = readings[0].seconds, readings[2].seconds
    assert first_seconds is not None
    assert second_seconds is not None
    assert first_seconds == pytest.approx(second_seconds, rel=1.0)  # the same model: a factor of 2 at most


@pytest.mark.slow
def test_the_host_survives_a_model_that_kills_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process with the culprit crashes; each of its models is then measured in a separate child."""
    from edgepipe.tflite import latency_series

    net = NetworkBuilder(0)
    paths = [tmp_path / name for name in ("a.tflite", "culprit.tflite", "b.tflite")]
    for path in paths:
        path.write_bytes(net.set_outputs(net.conv(net.input(8, 8, 3), 8, 3)).to_bytes())
    real_measure = latency_series.measure

    def crashing_measure(models: list[Path], reference: Path, plan: latency_series.SeriesPlan) -> list[LatencyReading]:
        if paths[1] in models:
            raise latency_series.child_process.ChildError("the child process crashed with SIGSEGV", "")
        return real_measure(models, reference, plan)

    monkeypatch.setattr(latency_series, "measure", crashing_measure)
    readings = HostBackend(threads=1).measure(paths, paths[0], 0, VisitSchedule(1, 0.005))
    assert [reading.seconds is None for reading in readings] == [False, True, False]
    assert readings[1].refused == "the child process crashed with SIGSEGV"
