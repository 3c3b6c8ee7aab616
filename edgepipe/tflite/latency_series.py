"""Measures many small models in one child process, in rounds, so that a disturbance hits one round of all.

Each round visits every model in a new random order, and a reference model between them; a round in which the reference
was slower than in its best round is scaled by that factor. A model's time is a low quantile of its rounds' medians:
what the machine takes when nothing else disturbs it.
"""

from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.metric import Record
from edgepipe.tflite import child_process
from edgepipe.tflite.interpreter import Runtime

STARTUP_SECONDS = 60.0  # of the child's time limit
SECONDS_PER_MODEL = 10.0


class LatencyReading(Record):
    """The time of one inference in seconds, and the spread of its rounds; or why there is none."""

    seconds: float | None
    spread: float = 0.0  # (third quartile - first) / median of the rounds
    rounds: int = 0
    refused: str = ""


@dataclass(frozen=True)
class SeriesPlan:
    """How a series is measured: `visit_seconds` is the minimum that one round spends on a model."""

    threads: int = 1
    runtime: Runtime = Runtime.XNNPACK
    rounds: int = 7
    visit_seconds: float = 0.006
    seed: int = 0


def measure(model_paths: list[Path], reference_path: Path, plan: SeriesPlan) -> list[LatencyReading]:
    """A reading of each of `models`, in their order; a model that the runtime refuses gets its reason.

    Raises:
        ChildError: the runtime crashed or hung on one of them.
    """
    request = {
        "models": [str(path) for path in model_paths],
        "reference": str(reference_path),
        "threads": plan.threads,
        "runtime": plan.runtime,
        "rounds": plan.rounds,
        "visit": plan.visit_seconds,
        "seed": plan.seed,
    }
    timeout = STARTUP_SECONDS + SECONDS_PER_MODEL * len(model_paths)
    subject = f"measuring {len(model_paths)} models on LiteRT {plan.runtime}"
    answer = child_process.run("edgepipe.tflite.latency_series_worker", request, timeout, subject)
    return [LatencyReading.model_validate(reading) for reading in answer["readings"]]
