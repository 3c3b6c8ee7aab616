"""Damaged inputs of six kinds: exit 0, 2 or 3, in time and memory, and nothing else happens.

`EDGEPIPE_FUZZ=5000` tries more of them, as `python tests/fuzz/fuzz_run.py 5000 SEED KIND` does by hand.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe.core.module_sources import PACKAGE_ROOT

COUNT = int(os.environ.get("EDGEPIPE_FUZZ", "300"))
SHARES = {"pipeline": 0.23, "profile": 0.23, "tflite": 0.23, "dataset": 0.23, "keras": 0.04, "cache": 0.04}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_damaged_inputs(kind: str) -> None:
    """Must-show: in a process of its own, whose threads are known, as it forks for every command."""
    count = max(1, round(COUNT * SHARES[kind]))
    line = [sys.executable, str(Path(__file__).parent / "fuzz_run.py"), str(count), "0", kind]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, json.dumps([done.stdout, done.stderr], indent=1)
