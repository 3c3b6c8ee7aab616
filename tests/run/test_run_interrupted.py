"""kill -9, Ctrl-C and a full disk at any moment: the next run completes, with the digests of an undisturbed one.

Atomicity is the cache's, whatever a stage does: it is proven with stages that need no TensorFlow, killed at many
moments; one SIGKILL, one SIGTERM and one full disk hit a run that trains. EDGEPIPE_KILLS=300 is done by hand.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgepipe.devices.calibration.network_builder import NetworkBuilder

from .conftest import FinishedRun, Workplace, environment

pytestmark = pytest.mark.slow
FullDisk = Callable[[int], AbstractContextManager[None]]
KILLS = int(os.environ.get("EDGEPIPE_KILLS", "16"))
STAGE = '''\
"""A stage that writes a large file and several small ones, slowly."""

import time
from typing import ClassVar, final

from edgepipe import Artifact, ArtifactKind, Outcome, Stage, StageContext


@final
class Grow(Stage):
    """Append to the model, and write files beside it."""

    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.TFLITE}

    byte: int

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        target = context.output_folder / "model.tflite"
        with target.open("wb") as file:
            file.write(context.artifact.path.read_bytes())
            for _ in range(20):
                file.write(bytes([self.byte]) * 50_000)
                file.flush()
                time.sleep(0.005)
        for number in range(5):
            (context.output_folder / f"beside{number}.txt").write_text(str(self.byte))
        return Artifact.from_path(ArtifactKind.TFLITE, target), Outcome(notes=(f"grown by {self.byte}",))
'''
GROWING = """\
name: growing
model: m.tflite
stages:
  - grow:Grow: {as: first, byte: 1}
  - grow:Grow: {as: second, byte: 2}
  - grow:Grow: {as: third, byte: 3}
"""
STEPS = ("model", "first", "second", "third")
TRAINS = """\
name: trains
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [4]}}
data: edgepipe.data:digits
task: classification
allow_chance: true
seed: 3
stages:
  - train: {epochs: 5, batch_size: 256}
  - convert: {scheme: float32}
"""
IN_TRAINING = "epoch 2/5"  # what stderr shows while the model trains


def growing(folder: Path) -> Workplace:
    """A workplace whose stages need no TensorFlow."""
    folder.mkdir(exist_ok=True)
    network = NetworkBuilder(1)
    network.set_outputs(network.conv(network.input(1, 4, 4, 2), 3, 1))
    (folder / "m.tflite").write_bytes(network.to_bytes())
    (folder / "grow.py").write_text(STAGE)
    return Workplace(folder, GROWING)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Return once the process has printed `line` on stderr."""
    assert process.stderr is not None
    assert any(line in printed for printed in process.stderr), f"never printed: {line}"


def kill(place: Workplace, line: str, delay: float = 0) -> None:
    """Start a run and kill it `delay` seconds after stderr has `line`."""
    with subprocess.Popen(
        place.command(), env=environment(), cwd=place.folder, stdout=-3, stderr=-1, text=True, start_new_session=True
    ) as process:
        wait_for(process, line)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)


def nothing_half_written(ended: FinishedRun, place: Workplace) -> FinishedRun:
    """The run after a kill, which completes; nothing of the killed one is left beside the finished entries."""
    assert ended.code == 0, ended.stderr
    assert not list((place.cache / "work").iterdir())
    assert not list(ended.folder.rglob(".*edgepipe-*"))
    return ended


def test_kill_9_at_many_moments(tmp_path: Path) -> None:
    """Two at a time; a moment past the end of a run kills nothing, and proves that the resumed run is cached."""
    expected = growing(tmp_path / "undisturbed").run_process()
    assert expected.code == 0, expected.stderr
    places = [growing(tmp_path / str(number)) for number in range(KILLS)]
    lines = [f"{STEPS[number % len(STEPS)]}: running" for number in range(KILLS)]
    delays = [random.Random(number).uniform(0, 0.25) for number in range(KILLS)]  # a stage takes about 0.15 s
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kill, places, lines, delays))
    resumed = [nothing_half_written(place.run(), place) for place in places]  # here, which needs no new process
    assert [ended.digests() for ended in resumed] == [expected.digests()] * KILLS
    cached = [list(ended.statuses().values()).count("cached") for ended in resumed]
    assert len(set(cached)) > 2  # the kills hit different stages


def test_kill_9_while_a_model_trains(tmp_path: Path) -> None:
    """Digests equal those of another process with the same seed, too: the undisturbed run is in this one."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    expected = Workplace(undisturbed, TRAINS).run()
    assert expected.code == 0, expected.stderr
    place = Workplace(killed, TRAINS)
    kill(place, IN_TRAINING)
    resumed = nothing_half_written(place.run_process(), place)
    assert resumed.statuses() == {"model": "cached", "train": "ran", "convert": "ran"}
    assert resumed.digests() == expected.digests()


def reset_signals() -> None:
    """A shell's background job, and all it starts, ignores SIGINT; what `nohup` starts ignores SIGHUP."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def interrupted(place: Workplace, number: signal.Signals, line: str) -> str:
    """Send `number` once stderr has `line`; stderr until the end. The run ends with 130 and one line."""
    with subprocess.Popen(
        place.command(),
        env=environment(),
        cwd=place.folder,
        stdout=-1,
        stderr=-1,
        text=True,
        preexec_fn=reset_signals,
    ) as process:
        wait_for(process, line)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; finished work is kept" in stderr
    assert "Traceback" not in stderr
    return stderr


def test_sigterm_while_a_model_trains(tmp_path: Path) -> None:
    place = Workplace(tmp_path, TRAINS)
    interrupted(place, signal.SIGTERM, IN_TRAINING)
    assert [entry.name for entry in (place.cache / "entries").iterdir()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_sigterm_keep_what_was_finished(tmp_path: Path, number: signal.Signals) -> None:
    place = growing(tmp_path / "place")
    interrupted(place, number, "second: running")
    statuses = place.run_process().statuses()
    assert (statuses["model"], statuses["first"], statuses["third"]) == ("cached", "cached", "ran")


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(tmp_path: Path, full_disk: FullDisk) -> None:
    place = growing(tmp_path / "place")
    with full_disk(300_000):
        ends_with_one_error(place)
    assert place.run().code == 0


def test_a_full_disk_while_a_model_trains(tmp_path: Path, full_disk: FullDisk) -> None:
    """The model before training is in the cache, so that the file too large is the one that `train` writes."""
    place = Workplace(tmp_path, "".join(line for line in TRAINS.splitlines(True) if "train:" not in line))
    assert place.run().code == 0
    place.pipeline.write_text(TRAINS)
    with full_disk(12_000):
        assert IN_TRAINING in ends_with_one_error(place)


def ends_with_one_error(place: Workplace) -> str:
    """Run into a full disk; what was printed on stderr."""
    done = place.run()
    assert done.code == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((place.cache / "work").iterdir())
    return done.stderr
