"""How fast edgepipe starts: `--help` beside a bare `import click`, `check`, and a run whose stages are all cached.

Prints medians and ratios of one run on this machine; nothing here is a test.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = str(ROOT / "pipelines" / "digits.yaml")
ROUNDS = 15


def seconds(command: list[str]) -> float:
    """Wall time of one process; it must end with 0."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def medians(commands: list[list[str]], rounds: int) -> list[float]:
    """The median of each command, taken in turns so that noise falls on all of them."""
    taken = [[seconds(command) for command in commands] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def main() -> None:
    """Print the table."""
    python = [sys.executable]
    bare, helped, checked = medians(
        [
            [*python, "-c", "import click"],
            [*python, "-m", "edgepipe", "--help"],
            [*python, "-m", "edgepipe", "check", PIPELINE],
        ],
        ROUNDS,
    )
    print(f"python -c 'import click'   {bare * 1e3:6.0f} ms")
    print(f"edgepipe --help            {helped * 1e3:6.0f} ms   {helped / bare:.2f} x the bare import (goal <= 1.5)")
    print(f"edgepipe check             {checked * 1e3:6.0f} ms   (goal < 500 ms)")
    with tempfile.TemporaryDirectory() as folder:
        run = [
            *python,
            "-m",
            "edgepipe",
            "run",
            PIPELINE,
            "--quiet",
            "--output-dir",
            f"{folder}/out",
            "--cache-dir",
            f"{folder}/cache",
        ]
        first = seconds(run)
        (again,) = medians([run], 5)
    print(f"edgepipe run, first time   {first:6.2f} s")
    print(f"edgepipe run, all cached   {again:6.2f} s    (goal < 1.5 s)")


if __name__ == "__main__":
    main()
