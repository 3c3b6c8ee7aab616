"""kill -9, Ctrl-C and a full disk at any moment: the next run completes, with the digests of an undisturbed one.

EDGEPIPE_KILLS=30 makes the longer run that is done by hand.
"""

import os
import random
import resource
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import Ended, Workplace, environment

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("EDGEPIPE_KILLS", "8"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, float]:
    began = time.monotonic()
    ended = Workplace(tmp_path_factory.mktemp("undisturbed")).run()
    assert ended.code == 0, ended.stderr
    return ended, time.monotonic() - began


def test_two_processes_with_one_seed_give_equal_digests(undisturbed: tuple[Ended, float], workplace: Workplace) -> None:
    assert workplace.run().digests() == undisturbed[0].digests()


def test_kill_9_at_random_moments(undisturbed: tuple[Ended, float], tmp_path: Path) -> None:
    expected, seconds = undisturbed
    moments = [random.Random(number).uniform(0.1, seconds) for number in range(KILLS)]
    with ThreadPoolExecutor(2) as pool:
        resumed = list(pool.map(lambda pair: _killed(tmp_path / str(pair[0]), pair[1]), enumerate(moments)))
    for moment, ended in zip(moments, resumed, strict=True):
        assert ended.code == 0, (moment, ended.stderr)
        assert ended.digests() == expected.digests(), moment


def _killed(folder: Path, moment: float) -> Ended:
    folder.mkdir()
    place = Workplace(folder)
    with subprocess.Popen(place.command(), env=environment(), stdout=-3, stderr=-3, start_new_session=True) as process:
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
    ended = place.run()
    assert not list((place.cache / "work").iterdir())
    assert not list(ended.folder.rglob(".*edgepipe-*"))
    return ended


def _hears_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job, and all it starts, ignores it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_130_and_one_line(workplace: Workplace, number: signal.Signals) -> None:
    with subprocess.Popen(
        workplace.command(), env=environment(), stdout=-1, stderr=-1, text=True, preexec_fn=_hears_sigint
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "train: running" in line:
                break
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept" in stderr
    assert "Traceback" not in stderr
    assert workplace.run().statuses()["model"] == "cached"


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(workplace: Workplace) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    done = subprocess.run(
        workplace.command(), env=environment(), capture_output=True, text=True, preexec_fn=small_files
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((workplace.cache / "work").iterdir())
    assert workplace.run().code == 0
