"""Artifacts: the files that stages read and write, each with a kind and a digest of its content.

The digest of a Keras file covers the model's config and weights, not the dates inside the zip, so two runs with one
seed give equal digests. It is computed without Keras: a `.keras` file is a zip of JSON and HDF5.
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edgepipe.core.archives import open_zip
from edgepipe.core.errors import InputError, StorageError
from edgepipe.core.hdf5_check import check_hdf5
from edgepipe.core.input_files import check_ordinary

CHUNK_BYTES = 1 << 20
QAT_RECIPE_FILE = "recipe.json"
BASE_MODEL_FILE = "base.keras"
WEIGHTS_FILE = "weights.npz"
KERAS_WEIGHTS_MEMBER = "model.weights.h5"


class ArtifactKind(StrEnum):
    """What an artifact is; the chain of a pipeline is checked by kind."""

    KERAS = "keras"  # a Keras 3 model, `.keras`
    FLOAT = "float"  # a tf_keras model, `.keras` or legacy `.h5`: what the compression stages work on
    QAT = "qat"  # a fake-quant model: a folder of base model, recipe and weights
    SAVED_MODEL = "saved_model"  # a SavedModel folder: a program, which can only be converted
    TFLITE = "tflite"
    VELA = "vela"  # a .tflite compiled for an Arm Ethos-U: its operators are command streams


@dataclass(frozen=True)
class Artifact:
    """One file or folder, what it is, and the SHA-256 of its content."""

    kind: ArtifactKind
    path: Path
    digest: str

    @classmethod
    def from_path(cls, kind: ArtifactKind, path: Path) -> "Artifact":
        """The artifact at `path`, its digest taken from its content."""
        return cls(kind, path, content_digest(path))

    @property
    def bytes(self) -> int:
        """The size of the file, or of all files of the folder."""
        return sum(file.stat().st_size for file in list_files(self.path))


def list_files(path: Path) -> list[Path]:
    """The file `path`, or all files below the folder `path`, sorted."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(*texts: str) -> str:
    """SHA-256 of texts, each with its length, so that no two lists of texts share a digest by joining."""
    hasher = hashlib.sha256()
    for text in texts:
        hasher.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))  # names of files need not be UTF-8
    return hasher.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return text_digest(json.dumps(value, sort_keys=True, separators=(",", ":")))


def content_digest(path: Path) -> str:
    """SHA-256 of the content of a file or folder; dates inside archives are ignored.

    Raises:
        InputError: the file is missing, or is named `.keras` and is damaged.
    """
    check_ordinary(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        return text_digest(
            *(text for file in list_files(path) for text in (file.relative_to(path).as_posix(), content_digest(file)))
        )
    if path.suffix == ".keras":
        return _keras_digest(path)
    return file_digest(path)


def read_keras_member(path: Path, member_name: str) -> bytes:
    """The bytes of one member (`config.json`, ...) of a `.keras` file, or an `InputError` that says what is wrong."""
    try:
        with open_zip(path) as archive:
            return archive.read(member_name)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a readable .keras file (truncated or damaged?): {error}") from None


def _keras_digest(path: Path) -> str:
    import h5py

    config = json.loads(read_keras_member(path, "config.json"))
    config.pop("compile_config", None)
    hasher = hashlib.sha256(json_digest(config).encode())
    weights = read_keras_member(path, KERAS_WEIGHTS_MEMBER)
    check_hdf5(f"{path}: {KERAS_WEIGHTS_MEMBER}", weights)
    try:
        with h5py.File(io.BytesIO(weights), "r") as weights_file:
            for name in _h5_dataset_names(weights_file):
                weight = weights_file[name][()]
                hasher.update(f"{name}:{weight.dtype}:{weight.shape}:".encode() + weight.tobytes())
    except OSError as error:
        raise InputError(f"{path}: its weights cannot be read (truncated or damaged?): {error}") from None
    return hasher.hexdigest()


def _h5_dataset_names(h5_group: Any) -> list[str]:
    import h5py

    names: list[str] = []
    h5_group.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return sorted(names)


@contextlib.contextmanager
def wrap_storage_errors(subject: str) -> Iterator[None]:
    """Turn a full disk or a directory without write permission into one clear `StorageError`."""
    try:
        yield
    except FileExistsError as error:  # `mkdir` where there is a file of that name
        raise StorageError(f"{subject}: cannot be written: '{error.filename}' is a file, not a folder") from error
    except OSError as error:
        raise StorageError(f"{subject}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def wrap_disk_full_errors(subject: str) -> Iterator[None]:
    """Turn a full disk inside a library into one clear `StorageError`; other errors pass through."""
    try:
        yield
    except OSError as error:
        # HDF5 sets no errno; it only quotes the text of the one it got.
        is_disk_error = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
        if is_disk_error or any(
            os.strerror(error_code) in str(error) for error_code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        ):
            raise StorageError(f"{subject}: its result cannot be written: {error.strerror or error}") from error
        raise


@contextlib.contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; it is renamed to `target` if the body succeeds, else removed."""
    with stage_beside(target) as staging_folder:
        staging_path = staging_folder / target.name
        yield staging_path
        with wrap_storage_errors(str(target)):
            staging_path.replace(target)


@contextlib.contextmanager
def stage_beside(target: Path) -> Iterator[Path]:
    """Yield a hidden temporary folder beside `target`, on the same disk; it is removed in the end.

    What killed processes left behind for the same target is removed first.
    """
    with wrap_storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_staging(target)
        staging_folder = Path(tempfile.mkdtemp(prefix=f"{_staging_prefix(target)}{os.getpid()}.", dir=target.parent))
    try:
        yield staging_folder
    finally:
        shutil.rmtree(staging_folder, ignore_errors=True)


def _staging_prefix(target: Path) -> str:
    return f".{target.name}.edgepipe-"


def _remove_stale_staging(target: Path) -> None:
    """Remove what killed processes left behind while writing `target`."""
    prefix = _staging_prefix(target)
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):
        pid = folder.name.removeprefix(prefix).split(".")[0]
        if pid.isdigit() and not _is_process_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_process_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target` completely or not at all."""
    with write_atomically(target) as staging_path, wrap_storage_errors(str(target)):
        staging_path.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8 to `target` completely or not at all."""
    write_bytes(target, text.encode())


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file or folder to `target`, replacing what is there; a partial copy is never left."""
    with write_atomically(target) as staging_path, wrap_storage_errors(str(target)):
        if source.is_dir():
            shutil.copytree(source, staging_path)
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.copyfile(source, staging_path)
