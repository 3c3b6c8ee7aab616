"""Child processes: answers come back, and every way to end badly is one clear error."""

import time
from pathlib import Path

import pytest

from edgepipe.core.errors import InputError
from edgepipe.tflite import child_process
from edgepipe.tflite.child_process import ChildError

WORKER = "tflite_misbehaving"


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_an_answer_comes_back_despite_noise() -> None:
    answer = child_process.run(WORKER, {"do": "answer", "value": [1, "ü"]}, 30, "x.tflite")
    assert answer == {"got": [1, "ü"], "tensorflow": False, "stderr": "last words\n"}


@pytest.mark.parametrize(
    ("what", "message", "refused"),
    [
        ("refuse", r"^not this one$", True),
        ("break", r"^x\.tflite: .* exit status 1 and no answer; last output: KeyError: 'oops'$", False),
        ("crash", r"^x\.tflite: the child process crashed with SIGABRT; last output: last words$", False),
        ("leave", r"^x\.tflite: the child process ended with exit status 0 and no answer", False),
    ],
)
def test_bad_endings(what: str, message: str, refused: bool) -> None:
    with pytest.raises(ChildError, match=message) as caught:
        child_process.run(WORKER, {"do": what}, 30, "x.tflite")
    assert caught.value.is_refusal is refused
    assert "last words" in caught.value.stderr


def test_a_hang_is_stopped() -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"^x\.tflite: timed out after 1 s; the child process was stopped$"):
        child_process.run(WORKER, {"do": "hang"}, 1, "x.tflite")
    assert time.perf_counter() - start < 10


def test_files_of_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert child_process.run(WORKER, {"do": "answer", "value": 1}, 30, "x")["got"] == 1
