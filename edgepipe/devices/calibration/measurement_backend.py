"""Backends that measure the suite on a device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgepipe.core.metric import Record
from edgepipe.core.references import installed_version
from edgepipe.tflite import latency_series
from edgepipe.tflite.child_process import ChildError
from edgepipe.tflite.host_fingerprint import fingerprint
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.latency_series import LatencyReading, SeriesPlan


class BackendIdentity(Record):
    """What a measurement is valid for; part of its cache key."""

    host: str
    host_digest: str
    runtime: str
    threads: int


@dataclass(frozen=True)
class VisitSchedule:
    """How many turns a model gets, and the minimum seconds of a turn."""

    rounds: int
    min_turn_seconds: float


SHORT_VISITS = VisitSchedule(rounds=4, min_turn_seconds=0.006)
LONG_VISITS = VisitSchedule(
    rounds=1, min_turn_seconds=0.3
)  # the minimum duration of `edgepipe.tflite.host_latency.measure`


class Backend(Protocol):
    """Runs models on one device."""

    @property
    def identity(self) -> BackendIdentity:
        """The device, its runtime and the threads."""

    def measure(
        self, model_paths: list[Path], reference_path: Path, seed: int, visits: VisitSchedule = SHORT_VISITS
    ) -> list[LatencyReading]:
        """A reading of each of `model_paths`, interleaved with `reference_path`.

        Args:
            model_paths: .tflite files.
            reference_path: the model that tracks the speed of the device between turns.
            seed: seeds the order of the turns.
            visits: number and duration of the turns per model.

        Returns:
            One reading per model, in order; that of a model that does not run has the reason instead of seconds.
        """


@dataclass(frozen=True)
class HostBackend:
    """This machine, through LiteRT with XNNPACK in a child process."""

    threads: int

    @property
    def identity(self) -> BackendIdentity:
        """This machine and the installed LiteRT."""
        host = fingerprint()
        runtime_text = f"ai-edge-litert {installed_version('ai-edge-litert')} ({Runtime.XNNPACK})"
        return BackendIdentity(host=host.text(), host_digest=host.digest, runtime=runtime_text, threads=self.threads)

    def measure(
        self, model_paths: list[Path], reference_path: Path, seed: int, visits: VisitSchedule = SHORT_VISITS
    ) -> list[LatencyReading]:
        """A reading of each of `model_paths`; see `Backend.measure`.

        All models run in one child process; if it crashes, each runs in its own, so that the culprit is identified.

        Args:
            model_paths: .tflite files.
            reference_path: the model that tracks the speed of the machine between turns.
            seed: seeds the order of the turns.
            visits: number and duration of the turns per model.
        """
        series_plan = SeriesPlan(self.threads, rounds=visits.rounds, visit_seconds=visits.min_turn_seconds, seed=seed)
        try:
            return latency_series.measure(model_paths, reference_path, series_plan)
        except ChildError as error:
            if len(model_paths) == 1:
                return [LatencyReading(seconds=None, refused=str(error))]
        return [
            reading
            for model_path in model_paths
            for reading in self.measure([model_path], reference_path, seed, visits)
        ]
