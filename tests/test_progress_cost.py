"""What a run tells while it goes, and what it says a stage cost."""

import os
import pty
import subprocess
import sys
import time

import numpy as np
import pytest

from edgepipe.core import cost
from edgepipe.core.progress import LineProgress, SilentProgress, show_progress


def test_plain_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    progress.stage("train", 2, 6, "running")
    progress.epoch(1, 4, {"loss": 0.5, "accuracy": 0.25})
    progress.note("something")
    progress.stage("train", 2, 6, "done in 3.1 s")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, epoch, note, last = captured.err.splitlines()
    assert (first, note, last) == ("[2/6] train: running", "note: something", "[2/6] train: done in 3.1 s")
    assert epoch.startswith("    epoch 1/4  loss 0.5000  accuracy 0.2500  ")
    assert epoch.endswith(" s left")


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=True) as progress:
        assert isinstance(progress, SilentProgress)
        progress.stage("train", 1, 1, "running")
    assert capsys.readouterr() == ("", "")


LIVE = """
from edgepipe.core.progress import show_progress
with show_progress() as progress:
    progress.stage("train", 1, 2, "running")
    for epoch in range(1, 4):
        progress.epoch(epoch, 3, {"loss": 0.5})
    progress.note("a [note] with brackets")
    progress.stage("train", 1, 2, "done in 1.0 s")
"""


def test_a_terminal_gets_a_live_bar() -> None:
    parent, child = pty.openpty()
    subprocess.run([sys.executable, "-c", LIVE], stderr=child, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(child)
    said = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the end of a pseudo-terminal whose other side is closed
            break
        if not part:
            break
        said += part
    os.close(parent)
    assert b"[1/2] train: done in 1.0 s" in said
    assert b"note: a [note] with brackets" in said
    assert b"loss 0.5000" in said


def test_wall_cpu_and_the_stage_s_own_peak() -> None:
    with cost.measure_cost() as large:
        block = np.ones(40_000_000)  # 320 MB
        del block
    with cost.measure_cost() as small:
        time.sleep(0.05)
    assert small.cost.wall >= 0.05
    assert small.cost.cpu < 0.05
    assert large.cost.peak_memory is not None
    assert small.cost.peak_memory is not None
    if "VmHWM" in small.cost.how:
        assert large.cost.peak_memory - small.cost.peak_memory > 200_000_000
    else:
        assert "could not be reset" in small.cost.how
