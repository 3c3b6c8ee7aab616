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
from edgepipe.core.input_files import check_ordinary
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
    find_table_files,
    noise_folder,
    source_path,
)

log = logging.getLogger(__name__)
_PATH_OPTIONS: dict[str, Any] = dict.fromkeys(
    ("npz", "images", "idx", "fashion_mnist", "csv", "parquet", "audio", "files", "representative"), True
) | {"augment": {"noise": {"folder": True}}}
SETTLING_SECONDS = 2.0  # a younger file may change again without a new ctime, so its digest is not stored
# import name -> distribution name, where they differ
_DISTRIBUTION_BY_PACKAGE = {
    "sklearn": "scikit-learn",
    "PIL": "Pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
}


def compute_identity(spec: DataSpec, base_folder: Path, memo_path: Path | None = None) -> dict[str, Any]:
    """A JSON value that changes whenever the samples, their order or their split may change.

    It has the options (without file paths, whose content counts, and the number of calibration samples), digests of
    edgepipe's loaders, of a user function's source and of every input file, and the versions of the packages that read
    them. Of a function, only its `files` and the modules in its own folder or package are covered.

    Args:
        spec: the parsed `data:` key.
        base_folder: the folder that relative file names start from.
        memo_path: a SQLite file that stores digests by path, size, inode and ctime, which cannot be set back; None
            hashes every file.

    Raises:
        InputError: a file is missing.
    """
    with FileDigestCache(memo_path) as file_digests:
        digest_by_name = {
            name: _content_digest(path, file_digests) for name, path in _source_path_by_name(spec, base_folder).items()
        }
        noise_path = noise_folder(spec, base_folder)
        noise_digest = None if noise_path is None else _content_digest(noise_path, file_digests)
    return {
        "options": spec.model_dump(mode="json", exclude=_PATH_OPTIONS),
        "kind": type(spec).__name__,
        "loader": references.source_digest("edgepipe.data.dataset_loading"),
        "function": references.source_digest(_module_name(spec), base_folder)
        if isinstance(spec, FunctionSpec)
        else None,
        "files": digest_by_name,
        "noise": noise_digest,
        "program": speech.espeak_version() if isinstance(spec, SpokenDigitsSpec) else None,
        "packages": {name: references.installed_version(name) for name in sorted(_reader_packages(spec, base_folder))},
    }


def _module_name(spec: FunctionSpec) -> str:
    return spec.function.partition(":")[0]


def _source_path_by_name(spec: DataSpec, base_folder: Path) -> dict[str, Path]:
    if isinstance(spec, FunctionSpec):
        return {file: base_folder / file for file in spec.files}
    if isinstance(spec, SpokenDigitsSpec):
        return {}  # its options and the version of espeak-ng determine it
    if isinstance(spec, (IdxSpec, FashionSpec)):
        files_by_split = idx.find_files(source_path(spec, base_folder))
        image_path_by_name = {f"{split}.images": pair[0] for split, pair in files_by_split.items()}
        return image_path_by_name | {f"{split}.labels": pair[1] for split, pair in files_by_split.items()}
    if isinstance(spec, (CsvSpec, ParquetSpec)):
        root = source_path(spec, base_folder)
        return {path.relative_to(root.parent).as_posix(): path for path in find_table_files(root, spec)}
    return {"source": source_path(spec, base_folder)}


def _content_digest(path: Path, file_digests: "FileDigestCache") -> str:
    check_ordinary(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return file_digests.digest_of(path)
    name_digest_pairs = ((file.relative_to(path).as_posix(), file_digests.digest_of(file)) for file in list_files(path))
    return text_digest(*(text for pair in name_digest_pairs for text in pair))


def _reader_packages(spec: DataSpec, base_folder: Path) -> set[str]:
    if isinstance(spec, ImagesSpec):
        return {"numpy", "Pillow"}
    if isinstance(spec, TableSpec):
        return {"numpy", "pandas", "pyarrow"}
    if isinstance(spec, SoundSpec):
        return {"numpy", "librosa", "soundfile", "soxr"}
    if not isinstance(spec, FunctionSpec):
        return {"numpy"}
    path_by_module = references.import_closure(_module_name(spec), base_folder)
    imported_packages = {name.partition(".")[0] for file in path_by_module.values() for name in _imported_modules(file)}
    foreign_packages = imported_packages - {name.partition(".")[0] for name in path_by_module} - sys.stdlib_module_names
    return {"numpy"} | {_DISTRIBUTION_BY_PACKAGE.get(name, name) for name in foreign_packages}


def _imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@final
class FileDigestCache:
    """SHA-256 of files, stored in a SQLite file so that unchanged files are not read again.

    A memo that cannot be used causes a warning and is ignored; a damaged one is also removed.
    """

    def __init__(self, memo_path: Path | None) -> None:
        self.memo_path = memo_path
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        if self.memo_path is not None:
            with self._warn_on_error():
                self.memo_path.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(self.memo_path, timeout=5)
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
        file_stat = path.stat()
        key = (str(path.resolve()), file_stat.st_size, file_stat.st_ctime_ns, file_stat.st_ino)
        stored_digest = self._find_stored_digest(key)
        if stored_digest is not None:
            return stored_digest
        digest = file_digest(path)
        if self._database is not None and time.time() - file_stat.st_ctime > SETTLING_SECONDS:
            with self._warn_on_error():
                self._database.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", (*key, digest))
        return digest

    def _find_stored_digest(self, key: tuple[str, int, int, int]) -> str | None:
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
            log.warning("%s: the file digest cache cannot be used (%s); files are hashed again", self.memo_path, error)
            self._close()
            is_damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
            if is_damaged and self.memo_path is not None:
                self.memo_path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
