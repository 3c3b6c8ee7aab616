"""Measures a suite in passes, stores every reading, and resumes an interrupted calibration.

Passes are minutes apart and reshuffle the models, so that a disturbance of some seconds only affects one pass of a few
models. A model whose passes disagree is measured again. Its time is a low quantile of its passes.
"""

from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from edgepipe.core import artifact
from edgepipe.core.progress import Progress
from edgepipe.core.units import plural
from edgepipe.devices.calibration.measurement_backend import LONG_VISITS, SHORT_VISITS, Backend, Visits
from edgepipe.devices.calibration.suite import SuiteCase
from edgepipe.tflite.latency_series import LatencyReading

BATCH_SIZE = 32  # models per child process
TIME_QUANTILE = 0.25
MAX_PASS_DIFFERENCE = 0.08  # (second pass - fastest) / fastest: beyond it the model is measured again
MAX_EXTRA_PASSES = 3
SUSTAINED_MODELS = 24  # models that also get long runs
MIN_SUSTAINED_SECONDS = 20e-6  # seconds per inference: call overhead dominates shorter ones


@dataclass(frozen=True)
class ReadingStore:
    """One file per reading; the key in its name covers the model, the device, the runtime and the pass."""

    folder: Path

    def read(self, key: str) -> LatencyReading | None:
        """The reading stored under `key`, or None; a damaged file is removed."""
        file = self._reading_path(key)
        if not file.exists():
            return None
        try:
            return LatencyReading.model_validate_json(file.read_bytes())
        except ValidationError:
            file.unlink(missing_ok=True)
            return None

    def write(self, key: str, reading: LatencyReading) -> None:
        """Store a reading atomically."""
        artifact.write_text(self._reading_path(key), reading.model_dump_json())

    def _reading_path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


@dataclass(frozen=True)
class CaseFile:
    """A suite case written to a file."""

    case: SuiteCase
    path: Path
    digest: str


@dataclass(frozen=True)
class SuiteBench:
    """Measures suite cases on one backend with one store."""

    backend: Backend
    store: ReadingStore
    reference: Path
    seed: int
    progress: Progress

    def measure(self, files: list[CaseFile], passes: int) -> dict[str, LatencyReading]:
        """The combined reading of each file, by case name."""
        readings_by_case: dict[str, list[LatencyReading]] = {file.case.name: [] for file in files}
        for pass_number in range(passes):
            self._run_pass(files, readings_by_case, pass_number, passes)
        for extra in range(MAX_EXTRA_PASSES):
            unstable_files = [file for file in files if _passes_disagree(readings_by_case[file.case.name])]
            if not unstable_files:
                break
            count = plural(len(unstable_files), "model")
            self.progress.note(f"measuring {count} again: their passes differ by over {MAX_PASS_DIFFERENCE:.0%}")
            self._run_pass(unstable_files, readings_by_case, passes + extra, passes + MAX_EXTRA_PASSES)
        return {name: combine_readings(readings) for name, readings in readings_by_case.items()}

    def _run_pass(
        self,
        files: list[CaseFile],
        readings_by_case: dict[str, list[LatencyReading]],
        pass_number: int,
        pass_count: int,
    ) -> None:
        order = np.random.default_rng((self.seed, pass_number)).permutation(len(files)).tolist()
        batches = [
            [files[index] for index in order[start : start + BATCH_SIZE]] for start in range(0, len(order), BATCH_SIZE)
        ]
        self.progress.stage(f"pass {pass_number + 1}", pass_number + 1, pass_count, "running")
        for batch_number, batch in enumerate(batches):
            for name, reading in self._measure_batch(batch, pass_number).items():
                readings_by_case[name].append(reading)
            self.progress.epoch(batch_number + 1, len(batches), {"models": float(len(files))})
        self.progress.stage(
            f"pass {pass_number + 1}", pass_number + 1, pass_count, f"done: {plural(len(files), 'model')}"
        )

    def measure_sustained_factor(self, files: list[CaseFile], reading_by_case: dict[str, LatencyReading]) -> float:
        """The slowdown of inferences in sustained runs, as in a measured latency, relative to short turns.

        The median over composites of all durations; 1 if there are none.
        """
        composite_names = [file.case.name for file in files if file.case.composite]
        times = {name: reading_by_case[name].seconds or 0.0 for name in composite_names}
        eligible_files = sorted(
            (file for file in files if times.get(file.case.name, 0.0) >= MIN_SUSTAINED_SECONDS),
            key=lambda file: times[file.case.name],
        )
        chosen_files = eligible_files[:: max(1, len(eligible_files) // SUSTAINED_MODELS)]
        readings_by_pass = [self._measure_batch(chosen_files, number, LONG_VISITS) for number in range(2)]
        ratios = [
            reading.seconds / times[name]
            for readings in readings_by_pass
            for name, reading in readings.items()
            if reading.seconds is not None
        ]
        return float(np.median(ratios)) if ratios else 1.0

    def _measure_batch(
        self, batch: list[CaseFile], pass_number: int, visits: Visits = SHORT_VISITS
    ) -> dict[str, LatencyReading]:
        keys = {file.case.name: self._reading_key(file, pass_number, visits) for file in batch}
        reading_by_case = {name: reading for name, key in keys.items() if (reading := self.store.read(key)) is not None}
        missing_files = [file for file in batch if file.case.name not in reading_by_case]
        if missing_files:
            readings = self.backend.measure(
                [file.path for file in missing_files], self.reference, self.seed + pass_number, visits
            )
            for file, reading in zip(missing_files, readings, strict=True):
                self.store.write(keys[file.case.name], reading)
                reading_by_case[file.case.name] = reading
        return reading_by_case

    def _reading_key(self, file: CaseFile, pass_number: int, visits: Visits) -> str:
        return artifact.json_digest(
            [file.digest, self.backend.identity.model_dump(), self.seed, pass_number, *astuple(visits)]
        )


def combine_readings(passes: list[LatencyReading]) -> LatencyReading:
    """One reading from those of several passes; a refusal if the device refused the model in any pass."""
    refusal = next((reading for reading in passes if reading.seconds is None), None)
    if refusal is not None:
        return refusal
    times = [reading.seconds for reading in passes if reading.seconds is not None]
    return LatencyReading(
        seconds=float(np.quantile(times, TIME_QUANTILE)),
        spread=(max(times) - min(times)) / min(times),
        rounds=sum(reading.rounds for reading in passes),
    )


def _passes_disagree(passes: list[LatencyReading]) -> bool:
    """Whether the two fastest passes differ: then neither is known to be undisturbed."""
    times = sorted(reading.seconds for reading in passes if reading.seconds is not None)
    return len(times) > 1 and times[1] > times[0] * (1 + MAX_PASS_DIFFERENCE)
