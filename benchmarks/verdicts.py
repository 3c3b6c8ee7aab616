"""Hunts for wrong verdicts of `verify` on random models: python benchmarks/verdicts.py [FIRST [COUNT]]

Each model has one to twelve layers; LiteRT and TensorFlow Lite Micro run it on random samples. Prints every verdict
that does not hold, and how many were decided. `tests/devices/test_verdict_hunt.py` tries the first 60 models.
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path += [str(TESTS / "devices"), str(TESTS)]

from verdict_hunt import try_model  # noqa: E402

DEFAULT_COUNT = 300


def main(first: int, count: int) -> None:
    """Try the models of `count` seeds from `first` on."""
    judgement_counts, problem_count = Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            for trial in try_model(seed, Path(folder)):
                judgement_counts[f"{trial.device}: {trial.judgement}"] += 1
                problem_count += bool(trial.problem)
                if trial.problem:
                    print(trial.problem, flush=True)
    print("; ".join(f"{name} {number}" for name, number in sorted(judgement_counts.items())))
    print(f"{problem_count} verdicts do not hold")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0, int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_COUNT)
