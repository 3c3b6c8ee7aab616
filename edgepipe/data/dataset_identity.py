"""The dataset's part of a cache key, computed without loading it."""

import ast
import contextlib
import logging
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from edgepipe.core import references
from edgepipe.core.artifact import file_digest, list_files, text_digest
from edgepipe.core.errors import InputError
from edgepipe.data import idx, speech
from edgepipe.data.data_spec import (
    CsvSpec,
    DataSpec,
    FashionSpec,
    FunctionSpec,
    IdxSpec,
    ImagesSpec,
    ParquetSpec,
    SoundSpec,
    SpokenDigitsSpec,
    TableSpec,
    noise_folder,
    source_path,
    table_files,
)

log = logging.getLogger(__name__)
_PATH_OPTIONS: dict[str, Any] = dict.fromkeys(
    ("npz", "images", "idx", "fashion_mnist", "csv", "parquet", "audio", "files", "representative"), True
) | {"augment": {"noise": {"folder": True}}}
SETTLING_SECONDS = 2.0  # a younger file may change again without a new ctime, so its digest is not stored
# import name -> distribution name, where they differ
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "Pillow", "cv2": "opencv-python", "skimage": "scikit-image"}


def identity(spec: DataSpec, base: Path, memo: Path | None = None) -> dict[str, Any]:
    """A JSON value that changes whenever the samples, their order or their split may change.

    It has the options (without file paths, whose content counts, and the number of calibration samples), digests of
    edgepipe's loaders, of a user function's source and of every input file, and the versions of the packages that read
    them. Of a function, only its `files` and the modules in its own folder or package are covered.

    Args:
        spec: the parsed `data:` key.
        base: the folder that relative file names start from.
        memo: a SQLite file that stores digests by path, size, inode and ctime, which cannot be set back; None hashes
            every file.

    Raises:
        InputError: a file is missing.
    """
    with FileDigests(memo) as digests:
        digest_by_name = {name: _content_digest(path, digests) for name, path in _source_files(spec, base).items()}
        noise = noise_folder(spec, base)
        noise_digest = None if noise is None else _content_digest(noise, digests)
    return {
        "options": spec.model_dump(mode="json", exclude=_PATH_OPTIONS),
        "kind": type(spec).__name__,
        "loader": references.source_digest("edgepipe.data.dataset_loading"),
        "function": references.source_digest(_module_name(spec), base) if isinstance(spec, FunctionSpec) else None,
        "files": digest_by_name,
        "noise": noise_digest,
        "program": speech.espeak_version() if isinstance(spec, SpokenDigitsSpec) else None,
        "packages": {name: references.installed_version(name) for name in sorted(_reader_packages(spec, base))},
    }


def _module_name(spec: FunctionSpec) -> str:
    return spec.function.partition(":")[0]


def _source_files(spec: DataSpec, base: Path) -> dict[str, Path]:
    if isinstance(spec, FunctionSpec):
        return {file: base / file for file in spec.files}
    if isinstance(spec, SpokenDigitsSpec):
        return {}  # its options and the version of espeak-ng determine it
    if isinstance(spec, (IdxSpec, FashionSpec)):
        files_by_split = idx.find_files(source_path(spec, base))
        images = {f"{split}.images": pair[0] for split, pair in files_by_split.items()}
        return images | {f"{split}.labels": pair[1] for split, pair in files_by_split.items()}
    if isinstance(spec, (CsvSpec, ParquetSpec)):
        root = source_path(spec, base)
        return {path.relative_to(root.parent).as_posix(): path for path in table_files(root, spec)}
    return {"source": source_path(spec, base)}


def _content_digest(path: Path, digests: "FileDigests") -> str:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return digests.digest_of(path)
    name_digest_pairs = ((file.relative_to(path).as_posix(), digests.digest_of(file)) for file in list_files(path))
    return text_digest(*(text for pair in name_digest_pairs for text in pair))


def _reader_packages(spec: DataSpec, base: Path) -> set[str]:
    if isinstance(spec, ImagesSpec):
        return {"numpy", "Pillow"}
    if isinstance(spec, TableSpec):
        return {"numpy", "pandas", "pyarrow"}
    if isinstance(spec, SoundSpec):
        return {"numpy", "librosa", "soundfile", "soxr"}
    if not isinstance(spec, FunctionSpec):
        return {"numpy"}
    own_modules = references.import_closure(_module_name(spec), base)
    imported_packages = {name.partition(".")[0] for file in own_modules.values() for name in _imported_modules(file)}
    foreign_packages = imported_packages - {name.partition(".")[0] for name in own_modules} - sys.stdlib_module_names
    return {"numpy"} | {_DISTRIBUTIONS.get(name, name) for name in foreign_packages}


def _imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@final
class FileDigests:
    """SHA-256 of files, stored in a SQLite file so that unchanged files are not read again.

    A memo that cannot be used causes a warning and is ignored; a damaged one is also removed.
    """

    def __init__(self, memo: Path | None) -> None:
        self.memo = memo
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        if self.memo is not None:
            with self._warn_on_error():
                self.memo.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(self.memo, timeout=5)
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS digests "
                    "(path TEXT PRIMARY KEY, size INTEGER, ctime INTEGER, inode INTEGER, digest TEXT)"
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._database is not None:
            with self._warn_on_error():
                self._database.commit()
        self._close()

    def digest_of(self, path: Path) -> str:
        """The SHA-256 of the bytes of `path`."""
        state = path.stat()
        key = (str(path.resolve()), state.st_size, state.st_ctime_ns, state.st_ino)
        stored_digest = self._stored_digest(key)
        if stored_digest is not None:
            return stored_digest
        digest = file_digest(path)
        if self._database is not None and time.time() - state.st_ctime > SETTLING_SECONDS:
            with self._warn_on_error():
                self._database.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", (*key, digest))
        return digest

    def _stored_digest(self, key: tuple[str, int, int, int]) -> str | None:
        row = None
        if self._database is not None:
            with self._warn_on_error():
                query = "SELECT digest FROM digests WHERE path = ? AND size = ? AND ctime = ? AND inode = ?"
                row = self._database.execute(query, key).fetchone()
        return None if row is None else str(row[0])

    @contextlib.contextmanager
    def _warn_on_error(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            log.warning("%s: the file digest cache cannot be used (%s); files are hashed again", self.memo, error)
            self._close()
            is_damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
            if is_damaged and self.memo is not None:
                self.memo.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
