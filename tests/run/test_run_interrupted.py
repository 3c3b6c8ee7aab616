"""kill -9, Ctrl-C and a full disk at any moment: the next run completes, with the digests of an undisturbed one.

Atomicity is the cache's, whatever a stage does: it is proven with stages that need no TensorFlow, killed at many
moments; one SIGKILL, one SIGTERM and one full disk hit a run that trains. EDGEPIPE_KILLS=300 is done by hand.
"""

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepipe.devices.calibration.network_builder import NetworkBuilder

from .conftest import FinishedRun, Workplace, environment

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("EDGEPIPE_KILLS", "24"))
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


def growing(folder: Path) -> Workplace:
    """A workplace whose stages need no TensorFlow."""
    folder.mkdir(exist_ok=True)
    network = NetworkBuilder(1)
    network.set_outputs(network.conv(network.input(1, 4, 4, 2), 3, 1))
    (folder / "m.tflite").write_bytes(network.to_bytes())
    (folder / "grow.py").write_text(STAGE)
    return Workplace(folder, GROWING)


def timed(place: Workplace) -> tuple[FinishedRun, float]:
    """An undisturbed run and its seconds."""
    start = time.monotonic()
    ended = place.run_process()
    assert ended.code == 0, ended.stderr
    return ended, time.monotonic() - start


def killed_and_resumed(place: Workplace, moment: float) -> FinishedRun:
    """The run after one that was killed `moment` seconds after its start; nothing half-written is left."""
    with subprocess.Popen(
        place.command(), env=environment(), cwd=place.folder, stdout=-3, stderr=-3, start_new_session=True
    ) as process:
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
    ended = place.run_process()
    assert ended.code == 0, (moment, ended.stderr)
    assert not list((place.cache / "work").iterdir())
    assert not list(ended.folder.rglob(".*edgepipe-*"))
    return ended


def test_kill_9_at_many_moments(tmp_path: Path) -> None:
    """Two at a time; a moment past the end of a run kills nothing, and proves that the resumed run is cached."""
    expected, seconds = timed(growing(tmp_path / "undisturbed"))
    moments = [random.Random(number).uniform(0.1, seconds) for number in range(KILLS)]
    with ThreadPoolExecutor(2) as pool:
        places = [growing(tmp_path / str(number)) for number in range(KILLS)]
        resumed = list(pool.map(killed_and_resumed, places, moments))
    assert [ended.digests() for ended in resumed] == [expected.digests()] * KILLS
    cached = [list(ended.statuses().values()).count("cached") for ended in resumed]
    assert len(set(cached)) > 2  # the kills hit different stages


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, float]:
    """An undisturbed run that trains, quantizes and converts, and its seconds."""
    return timed(Workplace(tmp_path_factory.mktemp("undisturbed")))


def test_kill_9_while_a_model_trains(trained: tuple[FinishedRun, float], workplace: Workplace) -> None:
    """Digests equal those of another process with the same seed, too."""
    expected, seconds = trained
    assert killed_and_resumed(workplace, 0.6 * seconds).digests() == expected.digests()


def default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job, and all it starts, ignores it


def interrupted(place: Workplace, number: signal.Signals, line: str) -> str:
    """Send `number` once stderr has `line`; stderr until the end. The run ends with 130 and one line."""
    with subprocess.Popen(
        place.command(), env=environment(), cwd=place.folder, stdout=-1, stderr=-1, text=True, preexec_fn=default_sigint
    ) as process:
        assert process.stderr is not None
        for printed in process.stderr:
            if line in printed:
                break
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; finished work is kept" in stderr
    assert "Traceback" not in stderr
    return stderr


def test_sigterm_while_a_model_trains(workplace: Workplace) -> None:
    interrupted(workplace, signal.SIGTERM, "train: running")
    assert [entry.name for entry in (workplace.cache / "entries").iterdir()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_keep_what_was_finished(tmp_path: Path, number: signal.Signals) -> None:
    place = growing(tmp_path / "place")
    interrupted(place, number, "second: running")
    statuses = place.run_process().statuses()
    assert (statuses["model"], statuses["first"], statuses["third"]) == ("cached", "cached", "ran")


def small_files(limit: int) -> Callable[[], None]:
    """Makes a process fail on files larger than `limit` bytes, as a full disk does."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return prepare


@pytest.mark.parametrize(("kind", "limit"), [("grows", 300_000), ("trains", 12_000)])
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(kind: str, limit: int, tmp_path: Path) -> None:
    place = growing(tmp_path / "place") if kind == "grows" else Workplace(tmp_path)
    done = subprocess.run(
        place.command(), env=environment(), cwd=place.folder, capture_output=True, text=True, check=False,
        preexec_fn=small_files(limit),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((place.cache / "work").iterdir())
    if kind == "grows":
        assert place.run_process().code == 0
