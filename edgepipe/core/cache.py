"""The cache: stage results, keyed by the digest of everything that determines them.

    <root>/entries/<key>/entry.json     kind, content digest, digests of all files, outcome, cost
    <root>/entries/<key>/entry.sha256   of entry.json itself
    <root>/entries/<key>/files/...      the artifact
    <root>/work/...                     being written; renamed into entries/ when complete

An entry appears by one rename, so a killed process leaves no partial entry, and two runs that write the same entry at
once both succeed: the second uses the first one's. Entries are verified when read; a damaged one is a warning and a
miss. Runs hold a shared lock, `clear` an exclusive one.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from edgepipe.core.artifact import Artifact, ArtifactKind, file_digest, list_files, wrap_storage_errors
from edgepipe.core.cost import Cost
from edgepipe.core.errors import InputError, StorageError
from edgepipe.core.metric import Record
from edgepipe.core.outcome import Outcome

ENTRY_FILE = "entry.json"
ENTRY_DIGEST_FILE = "entry.sha256"
ENTRY_FILES_FOLDER = "files"
WORKSPACE_PREFIX = "edgepipe-"  # of workspaces; nothing else below work/ may be removed
_KEY_PATTERN = re.compile("[0-9a-f]{64}")


class CacheEntry(Record):
    """What `entry.json` holds."""

    key: str
    stage: str
    kind: ArtifactKind
    path: str = Field(description="of the artifact, relative to the entry's files")
    digest: str = Field(description="of the artifact's content")
    files: dict[str, str] = Field(description="relative path -> SHA-256 of every file")
    outcome: Outcome
    cost: Cost
    created: float = Field(description="seconds since 1970")


@dataclass(frozen=True)
class StoredArtifact:
    """An entry and the artifact it holds."""

    entry: CacheEntry
    artifact: Artifact


class DamagedEntryError(StorageError):
    """An entry whose files do not match its digests."""


def default_root() -> Path:
    """`$EDGEPIPE_CACHE_DIR`, else `edgepipe` below `$XDG_CACHE_HOME` or `~/.cache`."""
    if cache_dir := os.environ.get("EDGEPIPE_CACHE_DIR"):
        return Path(cache_dir)
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "edgepipe"


class Cache:
    """A folder of entries. Create one with `Cache(root)`; every method is safe while other processes use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries_folder = root / "entries"
        self.workspace_root = root / "work"

    @contextlib.contextmanager
    def shared_lock(self) -> Iterator[None]:
        """Block `clear` while a run uses entries; remove partial entries of killed runs.

        Entries in a folder that cannot be written are only read, which is enough for a run that finds all its stages.

        Raises:
            StorageError: the folder cannot be written, and holds no entries.
        """
        if self._is_read_only():
            with self._read_only_lock():
                yield
            return
        with wrap_storage_errors(f"cache {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("a")
        with lock:
            self._try_remove_leftovers(lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
            with wrap_storage_errors(f"cache {self.root}"):  # only now: until here `clear` may remove them
                self.entries_folder.mkdir(exist_ok=True)
                self.workspace_root.mkdir(exist_ok=True)
            yield

    def _is_read_only(self) -> bool:
        paths = (self.root, self.root / "lock", self.entries_folder, self.workspace_root)
        return self.entries_folder.is_dir() and not all(os.access(p, os.W_OK) for p in paths if p.exists())

    @contextlib.contextmanager
    def _read_only_lock(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # some file systems that cannot be written have no locks either
                fcntl.flock(stack.enter_context((self.root / "lock").open()), fcntl.LOCK_SH)
            yield

    def _try_remove_leftovers(self, lock: IO[str]) -> None:
        # With the exclusive lock no other run is active: whatever is in work/ was left by killed runs.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        for folder in self.workspace_root.glob(f"{WORKSPACE_PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def find(self, key: str) -> StoredArtifact | None:
        """The entry of `key`, verified, or None if there is none.

        Raises:
            DamagedEntryError: there is one, but it is incomplete or its files have changed.
        """
        folder = self.entries_folder / key
        return self._read_stored_artifact(folder) if folder.exists() else None

    def _read_stored_artifact(self, folder: Path) -> StoredArtifact:
        try:
            entry_json, stored_digest = (folder / ENTRY_FILE).read_bytes(), (folder / ENTRY_DIGEST_FILE).read_bytes()
            entry = CacheEntry.model_validate_json(entry_json)
        except (OSError, ValidationError) as error:
            raise DamagedEntryError(f"cache entry {folder.name[:12]}: {str(error).splitlines()[0]}") from None
        if _compute_entry_digest(entry_json) != stored_digest:
            raise DamagedEntryError(
                f"cache entry {folder.name[:12]} ({entry.stage}): '{ENTRY_FILE}' is not what was stored"
            )
        files_folder = folder / ENTRY_FILES_FOLDER
        if entry.key != folder.name:
            raise DamagedEntryError(f"cache entry {folder.name[:12]} says it is {entry.key[:12]}")
        digest_by_file = _digest_files(files_folder) if files_folder.is_dir() else {}
        if digest_by_file != entry.files:
            changed_files = sorted(set(digest_by_file.items()) ^ set(entry.files.items()))
            raise DamagedEntryError(
                f"cache entry {folder.name[:12]} ({entry.stage}): '{changed_files[0][0]}' is not what was stored"
            )
        return StoredArtifact(entry, Artifact(entry.kind, files_folder / entry.path, entry.digest))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder for a stage to write to; removed afterwards unless `store` took it."""
        with wrap_storage_errors(f"cache {self.root}"):
            folder = Path(tempfile.mkdtemp(prefix=WORKSPACE_PREFIX, dir=self.workspace_root))
            (folder / ENTRY_FILES_FOLDER).mkdir()
        try:
            yield folder / ENTRY_FILES_FOLDER
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def store(
        self, workspace: Path, key: str, stage_name: str, artifact: Artifact, outcome: Outcome, cost: Cost
    ) -> StoredArtifact:
        """Turn a workspace into the entry of `key`; a damaged entry of that key is replaced.

        Args:
            workspace: the folder from `workspace()`, with the artifact inside.
            key: 64 hex digits: the digest of everything that determines the result.
            stage_name: name of the stage, for messages and `list_entries`.
            artifact: the result, below `workspace`.
            outcome: what the stage reports besides the artifact.
            cost: what the stage took.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        entry = CacheEntry(
            key=key, stage=stage_name, kind=artifact.kind, path=artifact.path.relative_to(workspace).as_posix(),
            digest=artifact.digest, files=_digest_files(workspace),
            outcome=outcome, cost=cost, created=time.time(),
        )  # fmt: skip
        target = self.entries_folder / key
        with wrap_storage_errors(f"cache {self.root}"):
            entry_json = entry.model_dump_json(indent=1).encode()
            _write_durably(workspace.parent / ENTRY_DIGEST_FILE, _compute_entry_digest(entry_json))
            _write_durably(workspace.parent / ENTRY_FILE, entry_json)
            self._rename(workspace.parent, target)
        return self._read_stored_artifact(target)

    def _rename(self, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except OSError:
            try:
                self._read_stored_artifact(target)  # another run stored this key first: use its entry
            except DamagedEntryError:
                self.discard(target.name)
                source.rename(target)

    def discard(self, key: str) -> None:
        """Remove the entry of `key` if there is one, by renaming it away first."""
        with wrap_storage_errors(f"cache {self.root}"):
            trash_folder = Path(tempfile.mkdtemp(prefix=WORKSPACE_PREFIX, dir=self.workspace_root))
        with contextlib.suppress(FileNotFoundError):
            (self.entries_folder / key).rename(trash_folder / key)
        shutil.rmtree(trash_folder, ignore_errors=True)

    def list_entries(self) -> list[CacheEntry]:
        """All readable entries, the newest first."""
        folders = self.entries_folder.iterdir() if self.entries_folder.is_dir() else []
        entries = [entry for folder in folders if (entry := _read_unverified(folder)) is not None]
        return sorted(entries, key=lambda entry: -entry.created)

    def entry_size(self, key: str) -> int:
        """Bytes of an entry on disk."""
        return sum(file.stat().st_size for file in list_files(self.entries_folder / key))

    def clear(self) -> int:
        """Remove all entries and return how many there were.

        Raises:
            InputError: a run is using the cache.
        """
        if not self.entries_folder.is_dir():
            return 0
        with wrap_storage_errors(f"cache {self.root}"):
            lock = (self.root / "lock").open("a")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"cache {self.root}: a run is using it; try again when it has ended") from None
            # Only folders named like a key: the user may have given a folder of something else.
            entry_folders = [folder for folder in self.entries_folder.iterdir() if _KEY_PATTERN.fullmatch(folder.name)]
            with wrap_storage_errors(f"cache {self.root}"):
                for folder in entry_folders:
                    shutil.rmtree(folder)
            self._remove_leftovers()
        return len(entry_folders)


def _digest_files(root: Path) -> dict[str, str]:
    return {file.relative_to(root).as_posix(): file_digest(file) for file in list_files(root)}


def _read_unverified(folder: Path) -> CacheEntry | None:
    try:
        entry = CacheEntry.model_validate_json((folder / ENTRY_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    return entry if entry.key == folder.name else None


def _compute_entry_digest(entry_json: bytes) -> bytes:
    return hashlib.sha256(entry_json).hexdigest().encode()


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
