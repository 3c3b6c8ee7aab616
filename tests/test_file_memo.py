"""What was computed from a file is kept as long as the file is the same, and never longer."""

import logging
import os
import time
from pathlib import Path

import pytest

from edgepipe.core import file_memo
from edgepipe.core.file_memo import FileMemo


def set_age(path: Path, seconds: float = 100) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "cache" / "files.sqlite"
    monkeypatch.setattr(file_memo, "SETTLING_SECONDS", 0.0)  # no test can set a ctime back
    with FileMemo(memo) as digests:
        first_digest = digests.digest_of(file)
    monkeypatch.setattr(file_memo, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    with FileMemo(memo) as digests:
        assert digests.digest_of(file) == first_digest


def aged_file(folder: Path) -> Path:
    file = folder / "data.bin"
    file.write_bytes(b"one")
    return set_age(file)


def test_a_changed_or_replaced_file_is_read_again(tmp_path: Path) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "files.sqlite"
    hashes = set()
    with FileMemo(memo) as digests:
        hashes.add(digests.digest_of(file))
    file.write_bytes(b"two")  # same size, newer
    set_age(file, 50)
    with FileMemo(memo) as digests:
        hashes.add(digests.digest_of(file))
    state = file.stat()
    (tmp_path / "other").write_bytes(b"333")  # same size and date, another inode
    os.utime(tmp_path / "other", ns=(state.st_atime_ns, state.st_mtime_ns))
    (tmp_path / "other").replace(file)
    with FileMemo(memo) as digests:
        hashes.add(digests.digest_of(file))
    assert len(hashes) == 3


def test_an_in_place_edit_that_keeps_size_and_date_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "files.sqlite"
    monkeypatch.setattr(file_memo, "SETTLING_SECONDS", 0.0)
    with FileMemo(memo) as digests:
        first_digest = digests.digest_of(file)
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with FileMemo(memo) as digests:
        assert digests.digest_of(file) != first_digest


def test_a_file_that_may_still_change_is_not_stored(tmp_path: Path) -> None:
    file, memo = tmp_path / "data.bin", tmp_path / "files.sqlite"
    file.write_bytes(b"one")
    state = file.stat()
    with FileMemo(memo) as digests:
        first_digest = digests.digest_of(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with FileMemo(memo) as digests:
        assert digests.digest_of(file) != first_digest


def test_a_damaged_memo_is_a_warning_and_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "files.sqlite"
    with FileMemo(None) as digests:
        truth = digests.digest_of(file)
    memo.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with caplog.at_level(logging.WARNING), FileMemo(memo) as digests:
        assert digests.digest_of(file) == truth
    assert "files are hashed again" in caplog.text
    with FileMemo(memo) as digests:
        assert digests.digest_of(file) == truth
    assert memo.read_bytes().startswith(b"SQLite format 3")


def test_an_unwritable_memo_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = aged_file(tmp_path)
    with caplog.at_level(logging.WARNING), FileMemo(file / "files.sqlite") as digests:
        assert len(digests.digest_of(file)) == 64
    assert "cannot be used" in caplog.text


def test_kinds_of_texts_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memo_path = aged_file(tmp_path), tmp_path / "files.sqlite"
    monkeypatch.setattr(file_memo, "SETTLING_SECONDS", 0.0)
    with FileMemo(memo_path) as memo:
        assert memo.text_of(file, "length", lambda path: str(path.stat().st_size)) == "3"
        assert memo.text_of(file, "name", lambda path: path.name) == "data.bin"
    with FileMemo(memo_path) as memo:
        assert memo.text_of(file, "length", lambda path: pytest.fail("computed again")) == "3"
        assert memo.text_of(file, "name", lambda path: pytest.fail("computed again")) == "data.bin"


def test_one_memo_is_entered_again_and_active_only_then(tmp_path: Path) -> None:
    memo = FileMemo(tmp_path / "files.sqlite")
    process_memo = file_memo.active_memo()
    for _ in range(2):
        with memo:
            assert file_memo.active_memo() is memo
        assert file_memo.active_memo() is process_memo


def test_the_content_digest_of_a_folder_sees_its_files(tmp_path: Path) -> None:
    file = aged_file(tmp_path)
    with FileMemo(tmp_path.parent / "files.sqlite") as memo:
        first_digest = memo.content_digest_of(tmp_path)
        file.write_bytes(b"two")
        assert memo.content_digest_of(tmp_path) != first_digest
