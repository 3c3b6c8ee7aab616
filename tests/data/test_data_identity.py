"""The identity of a dataset changes with everything that can change a sample, and only with that."""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from edgepipe.core.errors import InputError
from edgepipe.data import dataset_identity as module
from edgepipe.data.data_spec import FunctionSpec, ImagesSpec, NpzSpec
from edgepipe.data.dataset_identity import FileDigestCache, compute_identity


def set_age(path: Path, seconds: float = 100) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_npz_content_counts_and_its_path_does_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    first_id = compute_identity(NpzSpec(npz="a.npz"), tmp_path)
    assert json.loads(json.dumps(first_id)) == first_id
    assert compute_identity(NpzSpec(npz="b.npz"), tmp_path / "there") == first_id
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    assert compute_identity(NpzSpec(npz="a.npz"), tmp_path) != first_id
    assert compute_identity(NpzSpec(npz="b.npz", test=0.3), tmp_path / "there") != first_id


def test_function_source_helper_arguments_and_files_count(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import helper\ndef load():\n    return helper.x\n")
    (tmp_path / "helper.py").write_text("import scipy\nx = 1\n")
    (tmp_path / "raw.csv").write_text("1,2")
    spec = FunctionSpec(function="mine:load", files=("raw.csv",))
    identities = [compute_identity(spec, tmp_path)]
    assert set(identities[0]["packages"]) == {"numpy", "scipy"}
    (tmp_path / "helper.py").write_text("import scipy\nx = 22\n")
    identities.append(compute_identity(spec, tmp_path))
    (tmp_path / "raw.csv").write_text("1,3")
    identities.append(compute_identity(spec, tmp_path))
    identities.append(compute_identity(spec.model_copy(update={"args": {"n": 1}}), tmp_path))
    assert len({json.dumps(dataset_id) for dataset_id in identities}) == 4
    assert compute_identity(spec, tmp_path) == identities[2]


def test_digits_names_scikit_learn(tmp_path: Path) -> None:
    packages = compute_identity(FunctionSpec(function="edgepipe.data:digits"), tmp_path)["packages"]
    assert packages["scikit-learn"][0].isdigit()
    assert "Pillow" not in packages


def test_image_folder_names_and_contents_count(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"1")
    first_id = compute_identity(ImagesSpec(images="."), tmp_path)
    assert "Pillow" in first_id["packages"]
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    second = compute_identity(ImagesSpec(images="."), tmp_path)
    (tmp_path / "cat" / "2.png").write_bytes(b"2")
    assert (
        len(
            {
                json.dumps(dataset_id)
                for dataset_id in (first_id, second, compute_identity(ImagesSpec(images="."), tmp_path))
            }
        )
        == 3
    )


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.npz: no such file"):
        compute_identity(NpzSpec(npz="gone.npz"), tmp_path)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "cache" / "files.sqlite"
    monkeypatch.setattr(module, "SETTLING_SECONDS", 0.0)  # no test can set a ctime back
    with FileDigestCache(memo) as digests:
        first_digest = digests.digest_of(file)
    monkeypatch.setattr(module, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    with FileDigestCache(memo) as digests:
        assert digests.digest_of(file) == first_digest


def aged_file(folder: Path) -> Path:
    file = folder / "data.bin"
    file.write_bytes(b"one")
    return set_age(file)


def test_a_changed_or_replaced_file_is_read_again(tmp_path: Path) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "files.sqlite"
    hashes = set()
    with FileDigestCache(memo) as digests:
        hashes.add(digests.digest_of(file))
    file.write_bytes(b"two")  # same size, newer
    set_age(file, 50)
    with FileDigestCache(memo) as digests:
        hashes.add(digests.digest_of(file))
    state = file.stat()
    (tmp_path / "other").write_bytes(b"333")  # same size and date, another inode
    os.utime(tmp_path / "other", ns=(state.st_atime_ns, state.st_mtime_ns))
    (tmp_path / "other").replace(file)
    with FileDigestCache(memo) as digests:
        hashes.add(digests.digest_of(file))
    assert len(hashes) == 3


def test_an_in_place_edit_that_keeps_size_and_date_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "files.sqlite"
    monkeypatch.setattr(module, "SETTLING_SECONDS", 0.0)
    with FileDigestCache(memo) as digests:
        first_digest = digests.digest_of(file)
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with FileDigestCache(memo) as digests:
        assert digests.digest_of(file) != first_digest


def test_a_file_that_may_still_change_is_not_stored(tmp_path: Path) -> None:
    file, memo = tmp_path / "data.bin", tmp_path / "files.sqlite"
    file.write_bytes(b"one")
    state = file.stat()
    with FileDigestCache(memo) as digests:
        first_digest = digests.digest_of(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with FileDigestCache(memo) as digests:
        assert digests.digest_of(file) != first_digest


def test_a_damaged_memo_is_a_warning_and_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, memo = aged_file(tmp_path), tmp_path / "files.sqlite"
    with FileDigestCache(None) as digests:
        truth = digests.digest_of(file)
    memo.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with caplog.at_level(logging.WARNING), FileDigestCache(memo) as digests:
        assert digests.digest_of(file) == truth
    assert "files are hashed again" in caplog.text
    with FileDigestCache(memo) as digests:
        assert digests.digest_of(file) == truth
    assert memo.read_bytes().startswith(b"SQLite format 3")


def test_an_unwritable_memo_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = aged_file(tmp_path)
    with caplog.at_level(logging.WARNING), FileDigestCache(file / "files.sqlite") as digests:
        assert len(digests.digest_of(file)) == 64
    assert "cannot be used" in caplog.text
