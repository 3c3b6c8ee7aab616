"""Digests of content, and files that appear whole or not at all."""

import contextlib
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgepipe.core import artifact
from edgepipe.core.artifact import (
    Artifact,
    ArtifactKind,
    content_digest,
    copy_atomically,
    text_digest,
    write_atomically,
    write_bytes,
    write_text,
)
from edgepipe.core.errors import InputError, StorageError


def keras_file(path: Path, date: int = 2000, weight: float = 1.0, **config: Any) -> Path:
    """A `.keras` file as Keras writes it: a zip of JSON and HDF5, with the date in it."""
    with h5py.File(path.with_suffix(".h5"), "w") as weights:
        weights.create_dataset("layers/dense/vars/0", data=np.full((2, 3), weight, np.float32))
    described = {"class_name": "Sequential", "config": {"name": "m"}, **config}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (
            ("metadata.json", json.dumps({"keras_version": "3", "date_saved": str(date)}).encode()),
            ("config.json", json.dumps(described).encode()),
            ("model.weights.h5", path.with_suffix(".h5").read_bytes()),
        ):
            archive.writestr(zipfile.ZipInfo(name, (date, 1, 1, 0, 0, 0)), data)
    path.with_suffix(".h5").unlink()
    return path


def test_a_keras_digest_is_blind_to_dates_and_sees_the_rest(tmp_path: Path) -> None:
    before = content_digest(keras_file(tmp_path / "a.keras"))
    assert content_digest(keras_file(tmp_path / "b.keras", date=2026)) == before
    assert content_digest(keras_file(tmp_path / "c.keras", compile_config={"optimizer": "adam"})) == before
    assert content_digest(keras_file(tmp_path / "d.keras", weight=1.0000001)) != before
    assert content_digest(keras_file(tmp_path / "e.keras", config={"name": "n"})) != before


def test_a_folder_digest_sees_names_and_content(tmp_path: Path) -> None:
    digests = set()
    for number, files in enumerate(
        ({"a": "1", "b/c": "2"}, {"a": "1", "b/d": "2"}, {"a": "12", "b/c": ""}, {"a": "1"})
    ):
        for name, text in files.items():
            file = tmp_path / str(number) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        digests.add(content_digest(tmp_path / str(number)))
    assert len(digests) == 4
    assert text_digest("ab", "c") != text_digest("a", "bc")
    made = Artifact.from_path(ArtifactKind.SAVED_MODEL, tmp_path / "0")
    assert (made.bytes, made.digest in digests) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.keras", None, "gone.keras: no such file or folder"),
        ("empty.keras", b"", r"not a readable \.keras file \(truncated or damaged\?\)"),
        ("text.keras", b"hello", r"not a readable \.keras file"),
        ("zip.keras", b"PK\x05\x06" + bytes(18), r"not a readable \.keras file.*config\.json"),
    ],
)
def test_a_damaged_keras_file(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        content_digest(tmp_path / name)


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_keras_file_with_a_changed_byte_is_told_or_the_same(place: int, tmp_path: Path) -> None:
    file = keras_file(tmp_path / "m.keras")
    good, data = content_digest(file), bytearray(file.read_bytes())
    data[len(data) * place // 100] ^= 0xFF
    file.write_bytes(bytes(data))
    try:
        assert content_digest(file) == good  # a byte that nobody reads, such as one of a date
    except InputError as error:
        assert "m.keras: " in str(error)  # noqa: PT017 - one of two right outcomes; a wrong digest is the failure


@pytest.mark.parametrize("length", [0, 50, 400, 1500])
def test_a_truncated_keras_file(length: int, tmp_path: Path) -> None:
    file = keras_file(tmp_path / "m.keras")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match="truncated or damaged"):
        content_digest(file)


def test_what_is_written_replaces_what_was_there_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    write_text(target, "ä")
    write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "a.txt"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with contextlib.suppress(ZeroDivisionError), write_atomically(target) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("below", ["a.txt/b.txt", "a.txt/b/c.txt"])
def test_a_folder_that_cannot_be(below: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a file, no folder")
    with pytest.raises(StorageError, match=r"cannot be written: ('.*a\.txt' is a file, not a folder|Not a directory)$"):
        write_text(tmp_path / below, "x")
    with pytest.raises(StorageError, match="/proc/x: cannot be written"):
        write_text(Path("/proc/x"), "x")


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="a: cannot be written: Is a directory"):
        write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does: in the middle, with an OSError."""
    (tmp_path / "big").write_bytes(bytes(4000))
    code = """
        import resource, signal, sys
        from pathlib import Path
        from edgepipe.core.artifact import copy_atomically, write_bytes
        from edgepipe.core.errors import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        writes = (lambda: write_bytes(Path("out/a"), bytes(4000)), lambda: copy_atomically(Path("big"), Path("out/b")))
        for write in writes:
            try:
                write()
            except StorageError as error:
                print(error)
    """
    line = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"out/{n}: cannot be written: File too large" for n in "ab"]
    assert list((tmp_path / "out").iterdir()) == []


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from edgepipe.core.artifact import write_atomically\n"
        "with write_atomically(Path('a.txt')) as aside:\n"
        "    aside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == -9
    assert [file.name.startswith(".a.txt.") for file in tmp_path.iterdir()] == [True]
    write_text(tmp_path / "a.txt", "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_copy_whole_replaces_a_folder(tmp_path: Path) -> None:
    for name, inner in (("old", "gone"), ("new", "here")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inner).write_text(name)
    copy_atomically(tmp_path / "new", tmp_path / "old")
    assert [file.relative_to(tmp_path).as_posix() for file in artifact.list_files(tmp_path)] == ["new/here", "old/here"]
