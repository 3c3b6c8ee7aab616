"""Where the suite is measured: what every way of reaching a device offers to a calibration."""

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
    """What a measurement holds for; part of the key it is kept under."""

    host: str
    host_digest: str
    runtime: str
    threads: int


@dataclass(frozen=True)
class Visits:
    """How often a model has its turn, and for how many seconds at least."""

    rounds: int
    seconds: float


SHORT_VISITS = Visits(rounds=4, seconds=0.006)
LONG_VISITS = Visits(rounds=1, seconds=0.3)  # as long as `edgepipe.tflite.host_latency.measure` takes at least


class Backend(Protocol):
    """Reaches one device."""

    @property
    def identity(self) -> BackendIdentity:
        """The device, its runtime and the threads."""

    def measure(
        self, models: list[Path], reference: Path, seed: int, visits: Visits = SHORT_VISITS
    ) -> list[LatencyReading]:
        """A reading of each of `models`, in turns with `reference`; a model that does not run gets its reason."""


@dataclass(frozen=True)
class HostBackend:
    """This machine, through LiteRT with XNNPACK in a child process."""

    threads: int

    @property
    def identity(self) -> BackendIdentity:
        """This machine and the installed LiteRT."""
        host = fingerprint()
        runtime = f"ai-edge-litert {installed_version('ai-edge-litert')} ({Runtime.XNNPACK})"
        return BackendIdentity(host=host.text(), host_digest=host.digest, runtime=runtime, threads=self.threads)

    def measure(
        self, models: list[Path], reference: Path, seed: int, visits: Visits = SHORT_VISITS
    ) -> list[LatencyReading]:
        """All in one child; if it crashes, each model in a child of its own, so that the culprit is named."""
        plan = SeriesPlan(self.threads, rounds=visits.rounds, visit_seconds=visits.seconds, seed=seed)
        try:
            return latency_series.measure(models, reference, plan)
        except ChildError as error:
            if len(models) == 1:
                return [LatencyReading(seconds=None, refused=str(error))]
        return [reading for model in models for reading in self.measure([model], reference, seed, visits)]
