"""Artifacts: the files that stages take and give, each with a kind and a digest of its content.

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
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edgepipe.core.errors import InputError, StorageError

CHUNK = 1 << 20
RECIPE_FILE = "recipe.json"
BASE_FILE = "base.keras"
WEIGHTS_FILE = "weights.npz"


class Kind(StrEnum):
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

    kind: Kind
    path: Path
    digest: str

    @classmethod
    def of(cls, kind: Kind, path: Path) -> "Artifact":
        """The artifact at `path`, its digest taken from its content."""
        return cls(kind, path, content_digest(path))

    @property
    def bytes(self) -> int:
        """The size of the file, or of all files of the folder."""
        return sum(file.stat().st_size for file in files(self.path))


def files(path: Path) -> list[Path]:
    """The file `path`, or all files below the folder `path`, sorted."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(*parts: str) -> str:
    """SHA-256 of texts, each with its length, so that no two lists of texts share a digest by joining."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)}:".encode() + part.encode())
    return total.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return text_digest(json.dumps(value, sort_keys=True, separators=(",", ":")))


def content_digest(path: Path) -> str:
    """SHA-256 of what a file or folder holds, blind to the dates inside archives.

    Raises:
        InputError: the file is missing, or is named `.keras` and is damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        return text_digest(
            *(part for file in files(path) for part in (file.relative_to(path).as_posix(), content_digest(file)))
        )
    if path.suffix == ".keras":
        return _keras_digest(path)
    return file_digest(path)


def read_keras_member(path: Path, member: str) -> bytes:
    """The bytes of one member (`config.json`, ...) of a `.keras` file, or an `InputError` that says what is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable .keras file (truncated or damaged?): {error}") from None


def _keras_digest(path: Path) -> str:
    import h5py

    config = json.loads(read_keras_member(path, "config.json"))
    config.pop("compile_config", None)
    total = hashlib.sha256(json_digest(config).encode())
    try:
        with h5py.File(io.BytesIO(read_keras_member(path, "model.weights.h5")), "r") as weights:
            for name in _datasets(weights):
                value = weights[name][()]
                total.update(f"{name}:{value.dtype}:{value.shape}:".encode() + value.tobytes())
    except OSError as error:
        raise InputError(f"{path}: its weights cannot be read (truncated or damaged?): {error}") from None
    return total.hexdigest()


def _datasets(group: Any) -> list[str]:
    import h5py

    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(names)


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn a full disk or a directory without write permission into one clear `StorageError`."""
    try:
        yield
    except FileExistsError as error:  # what `mkdir` says of a file where a folder is wanted
        raise StorageError(f"{what}: cannot be written: '{error.filename}' is a file, not a folder") from error
    except OSError as error:
        raise StorageError(f"{what}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def full_disk(what: str) -> Iterator[None]:
    """Turn a full disk inside other people's code into one clear `StorageError`; any other error passes."""
    try:
        yield
    except OSError as error:
        # HDF5 gives no errno of its own, only the text of the one it met.
        known = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
        if known or any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise StorageError(f"{what}: its result cannot be written: {error.strerror or error}") from error
        raise


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`; it is renamed to `target` if the body ends well, else removed."""
    with storing(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        folder = Path(tempfile.mkdtemp(prefix=f"{_aside_prefix(target)}{os.getpid()}.", dir=target.parent))
    try:
        aside = folder / target.name
        yield aside
        with storing(str(target)):
            aside.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _aside_prefix(target: Path) -> str:
    return f".{target.name}.edgepipe-"


def _sweep(target: Path) -> None:
    """Remove what killed processes left of earlier attempts to write `target`."""
    prefix = _aside_prefix(target)
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):
        pid = folder.name.removeprefix(prefix).split(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` whole or not at all."""
    with written_aside(target) as aside, storing(str(target)):
        aside.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8 to `target` whole or not at all."""
    write_bytes(target, text.encode())


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file or folder to `target`, replacing what is there, never leaving half of it."""
    with written_aside(target) as aside, storing(str(target)):
        if source.is_dir():
            shutil.copytree(source, aside)
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.copyfile(source, aside)
