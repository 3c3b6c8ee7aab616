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
from edgepipe.devices.calibration.measurement_backend import LONG, SHORT, Backend, Visits
from edgepipe.devices.calibration.suite import Case
from edgepipe.tflite.latency_series import Reading

BATCH = 32  # models in one child
QUANTILE = 0.25
DISAGREE = 0.08  # (highest pass - lowest) / lowest: beyond it the model is measured again
MOST_AGAIN = 3
SUSTAINED = 24  # models that are also run for long
SUSTAINED_LEAST = 20e-6  # seconds of one inference: shorter ones are ruled by what surrounds the call


@dataclass(frozen=True)
class Store:
    """One file for each reading, in a folder; its name holds the model, the device, the runtime and the pass."""

    folder: Path

    def read(self, key: str) -> Reading | None:
        """The reading kept under `key`; a damaged one is removed and measured again."""
        file = self._file(key)
        if not file.exists():
            return None
        try:
            return Reading.model_validate_json(file.read_bytes())
        except ValidationError:
            file.unlink(missing_ok=True)
            return None

    def write(self, key: str, reading: Reading) -> None:
        """Keep a reading, whole or not at all."""
        artifact.write_text(self._file(key), reading.model_dump_json())

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


@dataclass(frozen=True)
class Item:
    """A case of the suite as a file."""

    case: Case
    path: Path
    digest: str


@dataclass(frozen=True)
class Bench:
    """Measures items on one backend with one store."""

    backend: Backend
    store: Store
    reference: Path
    seed: int
    progress: Progress

    def measure(self, items: list[Item], passes: int) -> dict[str, Reading]:
        """The combined reading of each item, by the name of its case."""
        found: dict[str, list[Reading]] = {item.case.name: [] for item in items}
        for number in range(passes):
            self._pass(items, found, number, passes)
        for extra in range(MOST_AGAIN):
            again = [item for item in items if _disagree(found[item.case.name])]
            if not again:
                break
            self.progress.note(f"{len(again)} models measured again: their passes differ by over {DISAGREE:.0%}")
            self._pass(again, found, passes + extra, passes + MOST_AGAIN)
        return {name: combine(readings) for name, readings in found.items()}

    def _pass(self, items: list[Item], found: dict[str, list[Reading]], number: int, of: int) -> None:
        order = np.random.default_rng((self.seed, number)).permutation(len(items)).tolist()
        batches = [[items[place] for place in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
        self.progress.stage(f"pass {number + 1}", number + 1, of, "running")
        for place, batch in enumerate(batches):
            for name, reading in self._batch(batch, number).items():
                found[name].append(reading)
            self.progress.epoch(place + 1, len(batches), {"models": float(len(items))})
        self.progress.stage(f"pass {number + 1}", number + 1, of, f"done: {len(items)} models")

    def sustained(self, items: list[Item], found: dict[str, Reading]) -> float:
        """How many times longer inferences take when they follow one another for long, as in a measured latency.

        The median over composites spread over all durations; 1 if there are too few.
        """
        times = {item.case.name: found[item.case.name].seconds or 0.0 for item in items if item.case.composite}
        fit = sorted((item for item in items if times.get(item.case.name, 0.0) >= SUSTAINED_LEAST),
                     key=lambda item: times[item.case.name])  # fmt: skip
        chosen = fit[:: max(1, len(fit) // SUSTAINED)]
        readings = [self._batch(chosen, number, LONG) for number in range(2)]
        ratios = [r.seconds / times[name] for batch in readings for name, r in batch.items() if r.seconds is not None]
        return float(np.median(ratios)) if ratios else 1.0

    def _batch(self, batch: list[Item], number: int, visits: Visits = SHORT) -> dict[str, Reading]:
        keys = {item.case.name: self._key(item, number, visits) for item in batch}
        kept = {name: reading for name, key in keys.items() if (reading := self.store.read(key)) is not None}
        missing = [item for item in batch if item.case.name not in kept]
        if missing:
            readings = self.backend.measure([item.path for item in missing], self.reference, self.seed + number, visits)
            for item, reading in zip(missing, readings, strict=True):
                self.store.write(keys[item.case.name], reading)
                kept[item.case.name] = reading
        return kept

    def _key(self, item: Item, number: int, visits: Visits) -> str:
        return artifact.json_digest(
            [item.digest, self.backend.identity.model_dump(), self.seed, number, *astuple(visits)]
        )


def combine(passes: list[Reading]) -> Reading:
    """One reading from those of several passes; refused if the device ever refused it."""
    refused = next((reading for reading in passes if reading.seconds is None), None)
    if refused is not None:
        return refused
    times = [reading.seconds for reading in passes if reading.seconds is not None]
    return Reading(
        seconds=float(np.quantile(times, QUANTILE)),
        spread=(max(times) - min(times)) / min(times),
        rounds=sum(reading.rounds for reading in passes),
    )


def _disagree(passes: list[Reading]) -> bool:
    """Whether the two fastest passes lie apart: then neither is known to be undisturbed."""
    times = sorted(reading.seconds for reading in passes if reading.seconds is not None)
    return len(times) > 1 and times[1] > times[0] * (1 + DISAGREE)
