"""Measuring a suite: kept readings, interruption, disagreement, and models that a device refuses or dies of."""

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
    Visits,
)
from edgepipe.devices.calibration.network_builder import NetworkBuilder
from edgepipe.devices.calibration.suite import SuiteCase
from edgepipe.devices.calibration.suite_measurement import (
    BATCH_SIZE,
    MAX_EXTRA_PASSES,
    CaseFile,
    ReadingStore,
    SuiteBench,
    combine_readings,
)
from edgepipe.tflite.latency_series import LatencyReading


@dataclass
class Clockwork:
    """A device that takes as long as its table says, and may be switched off after some batches."""

    times: dict[str, list[float]] = field(default_factory=dict)
    batches: int = 1000
    runtime: str = "clockwork 1"
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def identity(self) -> BackendIdentity:
        return BackendIdentity(host="a table", host_digest="0", runtime=self.runtime, threads=1)

    def measure(
        self, models: list[Path], reference: Path, seed: int, visits: Visits = SHORT_VISITS
    ) -> list[LatencyReading]:
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        readings = []
        for path in models:
            times = [3e-3] if visits == LONG_VISITS else self.times.get(path.stem, [1e-3])
            readings.append(LatencyReading(seconds=times[min(self.asked[path.stem], len(times) - 1)], rounds=3))
            self.asked[path.stem] += 1
        return readings


def _items(count: int, folder: Path) -> list[CaseFile]:
    def build(seed: int) -> NetworkBuilder:
        raise AssertionError("not built here")

    items = []
    for number in range(count):
        path = folder / f"m{number}.tflite"
        path.write_bytes(bytes([number]))
        items.append(CaseFile(SuiteCase(path.stem, "g", False, build), path, file_digest(path)))
    return items


def _bench(backend: Clockwork, folder: Path, seed: int = 1) -> SuiteBench:
    return SuiteBench(backend, ReadingStore(folder / "kept"), folder / "reference", seed, SilentProgress())


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    items, stopped = _items(3 * BATCH_SIZE, tmp_path), Clockwork(batches=4)
    with pytest.raises(KeyboardInterrupt):
        _bench(stopped, tmp_path).measure(items, 2)
    assert sum(stopped.asked.values()) == 4 * BATCH_SIZE
    resumed = Clockwork()
    found = _bench(resumed, tmp_path).measure(items, 2)
    assert sum(resumed.asked.values()) == 2 * BATCH_SIZE  # what the first one did not get to
    assert {reading.rounds for reading in found.values()} == {6}
    again = Clockwork(batches=0)
    assert _bench(again, tmp_path).measure(items, 2) == found


@pytest.mark.parametrize("change", ["runtime", "seed", "content"])
def test_readings_of_something_else_are_not_taken(change: str, tmp_path: Path) -> None:
    items = _items(2, tmp_path)
    _bench(Clockwork(), tmp_path).measure(items, 1)
    other = Clockwork(runtime="clockwork 2" if change == "runtime" else "clockwork 1")
    if change == "content":
        items[0].path.write_bytes(b"new")
        items = [CaseFile(item.case, item.path, file_digest(item.path)) for item in items]
    _bench(other, tmp_path, seed=2 if change == "seed" else 1).measure(items, 1)
    assert other.asked == ({"m0": 1} if change == "content" else {"m0": 1, "m1": 1})


def test_a_damaged_reading_is_measured_again(tmp_path: Path) -> None:
    items = _items(2, tmp_path)
    _bench(Clockwork(), tmp_path).measure(items, 1)
    next((tmp_path / "kept").rglob("*.json")).write_text('{"seconds": "fast"}', encoding="utf-8")
    again = Clockwork()
    _bench(again, tmp_path).measure(items, 1)
    assert sum(again.asked.values()) == 1


def test_a_model_whose_passes_disagree_is_measured_again(tmp_path: Path) -> None:
    backend = Clockwork({"m0": [2e-3, 1e-3, 1.01e-3], "m1": [1e-3, 1.02e-3], "m2": [5e-3, 4e-3, 3e-3, 2e-3, 1e-3]})
    found = _bench(backend, tmp_path).measure(_items(3, tmp_path), 2)
    assert backend.asked == {"m0": 3, "m1": 2, "m2": 2 + MAX_EXTRA_PASSES}
    assert found["m0"].seconds == pytest.approx(1.005e-3)  # the disturbed pass does not count
    assert found["m2"].spread == 4


def test_long_runs_scale_the_short_ones(tmp_path: Path) -> None:
    """The clockwork takes 1 ms in a short turn and 3 ms in a long run."""
    items = [CaseFile(replace(item.case, composite=True), item.path, item.digest) for item in _items(5, tmp_path)]
    bench = _bench(Clockwork(), tmp_path)
    found = bench.measure(items, 1)
    assert bench.measure_sustained_factor(items, found) == pytest.approx(3)
    assert bench.measure_sustained_factor(_items(5, tmp_path), found) == 1  # no composites


def test_a_refusal_outweighs_readings() -> None:
    refused = LatencyReading(seconds=None, refused="no such kernel")
    assert combine_readings([LatencyReading(seconds=1.0, rounds=3), refused]) == refused


def test_the_host_names_the_models_it_refuses(tmp_path: Path) -> None:
    net = NetworkBuilder(0)
    good, bad = tmp_path / "good.tflite", tmp_path / "bad.tflite"
    good.write_bytes(net.output(net.conv(net.input(8, 8, 3), 8, 3)).to_bytes())
    bad.write_bytes(b"not a model")
    readings = HostBackend(threads=1).measure([good, bad, good], good, 0, Visits(2, 0.005))
    assert [reading.seconds is None for reading in readings] == [False, True, False]
    assert "bad.tflite" in readings[1].refused
    first, second = readings[0].seconds, readings[2].seconds
    assert first is not None
    assert second is not None
    assert first == pytest.approx(second, rel=1.0)  # the same model: a factor of 2 at most


def test_the_host_survives_a_model_that_kills_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that has the culprit dies; each of its models is then measured in a child of its own."""
    from edgepipe.tflite import latency_series

    net = NetworkBuilder(0)
    paths = [tmp_path / name for name in ("a.tflite", "culprit.tflite", "b.tflite")]
    for path in paths:
        path.write_bytes(net.output(net.conv(net.input(8, 8, 3), 8, 3)).to_bytes())
    alive = latency_series.measure

    def dying(models: list[Path], reference: Path, plan: latency_series.SeriesPlan) -> list[LatencyReading]:
        if paths[1] in models:
            raise latency_series.child_process.ChildError("the child process crashed with SIGSEGV", "")
        return alive(models, reference, plan)

    monkeypatch.setattr(latency_series, "measure", dying)
    readings = HostBackend(threads=1).measure(paths, paths[0], 0, Visits(1, 0.005))
    assert [reading.seconds is None for reading in readings] == [False, True, False]
    assert readings[1].refused == "the child process crashed with SIGSEGV"
