"""Measures a suite in passes, keeps every reading, and goes on where an interrupted calibration stopped.

Passes lie minutes apart and mix the models anew, so that a disturbance of some seconds spoils one pass of a few models.
A model whose passes disagree is measured again. Its time is a low quantile of its passes.
"""

from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from edgepipe.core import artifact
from edgepipe.core.progress import Progress
from edgepipe.devices.calibration.measurement_backend import LONG_VISITS, SHORT_VISITS, Backend, Visits
from edgepipe.devices.calibration.suite import SuiteCase
from edgepipe.tflite.latency_series import LatencyReading

BATCH_SIZE = 32  # models in one child
TIME_QUANTILE = 0.25
MAX_PASS_DIFFERENCE = 0.08  # (highest pass - lowest) / lowest: beyond it the model is measured again
MAX_EXTRA_PASSES = 3
SUSTAINED_MODELS = 24  # models that are also run for long
MIN_SUSTAINED_SECONDS = 20e-6  # seconds of one inference: shorter ones are ruled by what surrounds the call


@dataclass(frozen=True)
class ReadingStore:
    """One file for each reading, in a folder; its name holds the model, the device, the runtime and the pass."""

    folder: Path

    def read(self, key: str) -> LatencyReading | None:
        """The reading kept under `key`; a damaged one is removed and measured again."""
        file = self._reading_path(key)
        if not file.exists():
            return None
        try:
            return LatencyReading.model_validate_json(file.read_bytes())
        except ValidationError:
            file.unlink(missing_ok=True)
            return None

    def write(self, key: str, reading: LatencyReading) -> None:
        """Keep a reading, whole or not at all."""
        artifact.write_text(self._reading_path(key), reading.model_dump_json())

    def _reading_path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


@dataclass(frozen=True)
class CaseFile:
    """A case of the suite as a file."""

    case: SuiteCase
    path: Path
    digest: str


@dataclass(frozen=True)
class SuiteBench:
    """Measures items on one backend with one store."""

    backend: Backend
    store: ReadingStore
    reference: Path
    seed: int
    progress: Progress

    def measure(self, files: list[CaseFile], passes: int) -> dict[str, LatencyReading]:
        """The combined reading of each item, by the name of its case."""
        readings_by_case: dict[str, list[LatencyReading]] = {file.case.name: [] for file in files}
        for pass_number in range(passes):
            self._run_pass(files, readings_by_case, pass_number, passes)
        for extra in range(MAX_EXTRA_PASSES):
            unstable_files = [file for file in files if _passes_disagree(readings_by_case[file.case.name])]
            if not unstable_files:
                break
            self.progress.note(
                f"{len(unstable_files)} models measured again: their passes differ by over {MAX_PASS_DIFFERENCE:.0%}"
            )
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
        self.progress.stage(f"pass {pass_number + 1}", pass_number + 1, pass_count, f"done: {len(files)} models")

    def measure_sustained_factor(self, files: list[CaseFile], reading_by_case: dict[str, LatencyReading]) -> float:
        """How many times longer inferences take when they follow one another for long, as in a measured latency.

        The median over composites spread over all durations; 1 if there are too few.
        """
        times = {
            file.case.name: reading_by_case[file.case.name].seconds or 0.0 for file in files if file.case.composite
        }
        eligible_files = sorted((file for file in files if times.get(file.case.name, 0.0) >= MIN_SUSTAINED_SECONDS),
                     key=lambda file: times[file.case.name])  # fmt: skip
        chosen_files = eligible_files[:: max(1, len(eligible_files) // SUSTAINED_MODELS)]
        readings = [self._measure_batch(chosen_files, number, LONG_VISITS) for number in range(2)]
        ratios = [r.seconds / times[name] for batch in readings for name, r in batch.items() if r.seconds is not None]
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
    """One reading from those of several passes; refused if the device ever refused it."""
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
    """Whether the two fastest passes lie apart: then neither is known to be undisturbed."""
    times = sorted(reading.seconds for reading in passes if reading.seconds is not None)
    return len(times) > 1 and times[1] > times[0] * (1 + MAX_PASS_DIFFERENCE)
