"""What a run tells while it goes, and what it says a stage cost."""

import os
import pty
import subprocess
import sys
import time

import numpy as np
import pytest

from edgepipe.core import cost
from edgepipe.core.progress import LineProgress, SilentProgress, active, count_steps, report_step, show_progress


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


def test_steps_are_told_wherever_they_happen(capsys: pytest.CaptureFixture[str]) -> None:
    """One that is counted only when it takes long, and then with what remains."""
    report_step("nobody listens")
    with show_progress():
        report_step("loading TensorFlow")
        report_step("loading TensorFlow")
        assert list(count_steps("abc", "reading photos")) == ["a", "b", "c"]
        time.sleep(0.2)
    with show_progress(has_lines=False):
        report_step("hidden in a log")
    assert capsys.readouterr().err == "    loading TensorFlow\n"


def test_a_long_step_says_what_remains(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *(second for second in range(0, 3000, 3) for _ in range(2))])
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    with active(LineProgress()):
        for _ in count_steps(range(1000), "reading photos"):
            pass
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("    reading photos: ")
    assert first.endswith(" min left")
    assert " of 1,000" in second


LIVE = """
import os, sys, time
from edgepipe.core.progress import report_step, show_progress
with show_progress() as progress:
    progress.stage("train", 1, 2, "running")
    report_step("loading TensorFlow")
    time.sleep(0.3)
    for epoch in range(1, 4):
        progress.epoch(epoch, 3, {"train loss": 0.5, "validation accuracy": 0.75})
        time.sleep(0.15)
    progress.note("a [note] with brackets")
    progress.stage("train", 1, 2, "done in 1.0 s")
"""


def _shown_on_a_terminal(code: str) -> bytes:
    parent, child = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=child, check=True, env={**os.environ, "TERM": "xterm"})
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
    return said


def test_a_terminal_gets_a_live_bar() -> None:
    said = _shown_on_a_terminal(LIVE)
    assert b"[1/2] train: done in 1.0 s" in said
    assert b"note: a [note] with brackets" in said
    assert b"loading TensorFlow" in said
    assert b"epoch 2/3  train loss 0.5000  validation accuracy 0.7500" in said
    assert b" s left" in said


CAPTURED = """
import os, time
from edgepipe.core.progress import report_step, show_progress
from edgepipe.models.native_stderr import capture_stderr
with show_progress():
    with capture_stderr():
        report_step("captured meanwhile")
        os.write(2, b"noise of a library")
        time.sleep(0.3)
"""


def test_the_bar_lives_while_stderr_is_captured() -> None:
    said = _shown_on_a_terminal(CAPTURED)
    assert b"captured meanwhile" in said
    assert b"noise" not in said


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
