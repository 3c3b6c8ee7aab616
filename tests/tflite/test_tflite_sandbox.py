"""The sandbox: one process for many requests, another after each bad end, and no file blamed for its predecessor."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tflite_handmade import Op, T, write

from edgepipe.tflite.child_process import ChildError
from edgepipe.tflite.interpreter import check_runs
from edgepipe.tflite.sandbox import MEMORY_LIMIT_BYTES, Sandbox, get_shared, memory_limit_for

WORKER = "tflite_misbehaving"


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Sandbox() as made:
        yield made


def _ask(box: Sandbox, what: str, seconds: float = 30, **more: object) -> object:
    return box.run(WORKER, {"do": what, **more}, seconds, "x.tflite")


def test_one_process_answers_many(box: Sandbox) -> None:
    pids = {_ask(box, "pid")["pid"] for _ in range(20)}  # type: ignore[index]
    assert len(pids) == box.start_count == 1
    assert os.getpid() not in pids


def test_each_request_has_its_own_stderr(box: Sandbox) -> None:
    answers = [_ask(box, "answer", value=[index, "ü"]) for index in range(3)]
    assert answers == [{"got": [index, "ü"], "tensorflow": False, "stderr": "last words\n"} for index in range(3)]


def test_a_refusal_keeps_the_process(box: Sandbox) -> None:
    first = _ask(box, "pid")["pid"]  # type: ignore[index]
    with pytest.raises(ChildError, match=r"^not this one$") as caught:
        _ask(box, "refuse")
    assert caught.value.is_refusal
    assert caught.value.stderr == "last words\n"
    assert _ask(box, "pid")["pid"] == first  # type: ignore[index]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("break", r"^x\.tflite: the child process broke: KeyError: 'oops'$"),
        ("crash", r"^x\.tflite: the child process crashed with SIGABRT; last output: last words$"),
        ("leave", r"^x\.tflite: the child process ended with exit status 0 and no answer; last output: last words$"),
        ("eat", r"^x\.tflite: needs more than the memory limit of 2 GiB$"),
    ],
)
def test_bad_endings(what: str, message: str, box: Sandbox) -> None:
    for used in (False, True):
        before = box.start_count
        with pytest.raises(ChildError, match=message) as caught:
            _ask(box, what)
        assert not caught.value.is_refusal
        assert box.start_count == before + 1  # where the process was used before, a fresh one was asked again
        _ask(box, "pid")
        assert used or box.start_count == before + 2


def test_a_file_is_not_blamed_for_its_predecessor(box: Sandbox, tmp_path: Path) -> None:
    """A request that ends badly only in a process that served another one is answered by a fresh process."""
    _ask(box, "poison")
    assert _ask(box, "answer", value=1)["got"] == 1  # type: ignore[index]
    assert box.start_count == 2


def test_a_hang_is_stopped(box: Sandbox) -> None:
    start = time.perf_counter()
    with pytest.raises(ChildError, match=r"^x\.tflite: timed out after 1 s; the child process was stopped$"):
        _ask(box, "hang", 1)
    assert time.perf_counter() - start < 10
    assert _ask(box, "answer", value=1)["got"] == 1  # type: ignore[index]
    with pytest.raises(ChildError, match="timed out after 1 s"):
        _ask(box, "hang", 1)
    assert box.start_count == 2  # not asked again, although the process was used


def test_a_child_ends_when_its_parent_is_gone(box: Sandbox) -> None:
    pid = _ask(box, "pid")["pid"]  # type: ignore[index]
    assert box._child is not None
    assert box._child.process.stdin is not None
    box._child.process.stdin.close()
    box._child.process.wait(10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_large_files_may_have_more_memory(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.touch()
    with large.open("wb") as file:
        file.truncate(1 << 30)
    assert (memory_limit_for(small), memory_limit_for(large)) == (MEMORY_LIMIT_BYTES, 5 << 30)


def test_there_is_one_for_the_process() -> None:
    assert get_shared() is get_shared()


def test_paths_are_relative_to_where_the_caller_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        tensors = [T(tensor, (1, 4), scales=(0.1,), zero_points=(0,)) for tensor in ("x", "y")]
        write(tmp_path / name / f"{name}.tflite", tensors, [Op("RELU", ("x",), ("y",))], ["x"], ["y"])
        monkeypatch.chdir(tmp_path / name)
        check_runs(Path(f"{name}.tflite"))
