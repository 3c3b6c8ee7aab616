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
from edgepipe.devices.calibration.measurement_backend import LONG_VISITS, SHORT_VISITS, Backend, VisitSchedule
from edgepipe.devices.calibration.suite import SuiteCase
from edgepipe.tflite.latency_series import LatencyReading

MODELS_PER_PROCESS = 32  # models per child process
TIME_QUANTILE = 0.25
MAX_PASS_DIFFERENCE = 0.08  # (second pass - fastest) / fastest: beyond it the model is measured again
MAX_EXTRA_PASSES = 3
MAX_SUSTAINED_MODELS = 24  # models that also get long runs
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
    reading_store: ReadingStore
    reference_path: Path
    seed: int
    progress: Progress

    def measure(self, case_files: list[CaseFile], pass_count: int) -> dict[str, LatencyReading]:
        """The combined reading of each file, by case name."""
        readings_by_case: dict[str, list[LatencyReading]] = {file.case.name: [] for file in case_files}
        for pass_number in range(pass_count):
            self._run_pass(case_files, readings_by_case, pass_number, pass_count)
        for extra_pass in range(MAX_EXTRA_PASSES):
            unstable_files = [file for file in case_files if _passes_disagree(readings_by_case[file.case.name])]
            if not unstable_files:
                break
            count_text = plural(len(unstable_files), "model")
            self.progress.note(f"measuring {count_text} again: their passes differ by over {MAX_PASS_DIFFERENCE:.0%}")
            self._run_pass(unstable_files, readings_by_case, pass_count + extra_pass, pass_count + MAX_EXTRA_PASSES)
        return {name: combine_readings(readings) for name, readings in readings_by_case.items()}

    def _run_pass(
        self,
        case_files: list[CaseFile],
        readings_by_case: dict[str, list[LatencyReading]],
        pass_number: int,
        pass_count: int,
    ) -> None:
        file_order = np.random.default_rng((self.seed, pass_number)).permutation(len(case_files)).tolist()
        file_batches = [
            [case_files[index] for index in file_order[start : start + MODELS_PER_PROCESS]]
            for start in range(0, len(file_order), MODELS_PER_PROCESS)
        ]
        self.progress.stage(f"pass {pass_number + 1}", pass_number + 1, pass_count, "running")
        for batch_number, batch_files in enumerate(file_batches):
            for name, reading in self._measure_batch(batch_files, pass_number).items():
                readings_by_case[name].append(reading)
            self.progress.epoch(batch_number + 1, len(file_batches), {"models": float(len(case_files))})
        self.progress.stage(
            f"pass {pass_number + 1}", pass_number + 1, pass_count, f"done: {plural(len(case_files), 'model')}"
        )

    def measure_sustained_factor(self, case_files: list[CaseFile], reading_by_case: dict[str, LatencyReading]) -> float:
        """The slowdown of inferences in sustained runs, as in a measured latency, relative to short turns.

        The median over composites of all durations; 1 if there are none.
        """
        composite_names = [file.case.name for file in case_files if file.case.is_composite]
        seconds_by_case = {name: reading_by_case[name].seconds or 0.0 for name in composite_names}
        eligible_files = sorted(
            (file for file in case_files if seconds_by_case.get(file.case.name, 0.0) >= MIN_SUSTAINED_SECONDS),
            key=lambda file: seconds_by_case[file.case.name],
        )
        chosen_files = eligible_files[:: max(1, len(eligible_files) // MAX_SUSTAINED_MODELS)]
        readings_by_pass = [self._measure_batch(chosen_files, number, LONG_VISITS) for number in range(2)]
        slowdown_ratios = [
            reading.seconds / seconds_by_case[name]
            for readings in readings_by_pass
            for name, reading in readings.items()
            if reading.seconds is not None
        ]
        return float(np.median(slowdown_ratios)) if slowdown_ratios else 1.0

    def _measure_batch(
        self, batch_files: list[CaseFile], pass_number: int, visits: VisitSchedule = SHORT_VISITS
    ) -> dict[str, LatencyReading]:
        key_by_case = {file.case.name: self._reading_key(file, pass_number, visits) for file in batch_files}
        reading_by_case = {
            name: reading for name, key in key_by_case.items() if (reading := self.reading_store.read(key)) is not None
        }
        missing_files = [file for file in batch_files if file.case.name not in reading_by_case]
        if missing_files:
            readings = self.backend.measure(
                [file.path for file in missing_files], self.reference_path, self.seed + pass_number, visits
            )
            for file, reading in zip(missing_files, readings, strict=True):
                self.reading_store.write(key_by_case[file.case.name], reading)
                reading_by_case[file.case.name] = reading
        return reading_by_case

    def _reading_key(self, file: CaseFile, pass_number: int, visits: VisitSchedule) -> str:
        return artifact.json_digest(
            [file.digest, self.backend.identity.model_dump(), self.seed, pass_number, *astuple(visits)]
        )


def combine_readings(pass_readings: list[LatencyReading]) -> LatencyReading:
    """One reading from those of several passes; a refusal if the device refused the model in any pass."""
    refused_reading = next((reading for reading in pass_readings if reading.seconds is None), None)
    if refused_reading is not None:
        return refused_reading
    pass_seconds = [reading.seconds for reading in pass_readings if reading.seconds is not None]
    return LatencyReading(
        seconds=float(np.quantile(pass_seconds, TIME_QUANTILE)),
        spread=(max(pass_seconds) - min(pass_seconds)) / min(pass_seconds),
        rounds=sum(reading.rounds for reading in pass_readings),
    )


def _passes_disagree(pass_readings: list[LatencyReading]) -> bool:
    """Whether the two fastest passes differ: then neither is known to be undisturbed."""
    pass_seconds = sorted(reading.seconds for reading in pass_readings if reading.seconds is not None)
    return len(pass_seconds) > 1 and pass_seconds[1] > pass_seconds[0] * (1 + MAX_PASS_DIFFERENCE)
