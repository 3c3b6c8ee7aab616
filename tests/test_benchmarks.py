"""The benchmarks are not run in tests, but each can be imported: what they name of edgepipe is there."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
IMPORT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
for file in sys.argv[2:]:
    print(file, file=sys.stderr, flush=True)
    runpy.run_path(file, run_name="imported")
"""


@pytest.mark.slow
def test_every_benchmark_can_be_imported() -> None:
    files = sorted(map(str, FOLDER.glob("*.py")))
    assert len(files) > 10
    command = [sys.executable, "-c", IMPORT, str(FOLDER), *files]  # one process: most of them load TensorFlow
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
