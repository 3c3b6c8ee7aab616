"""What was computed from a file's bytes, stored so that an unchanged file is not read again."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, final

from edgepipe.core.artifact import content_digest, file_digest

log = logging.getLogger(__name__)
SETTLING_SECONDS = 2.0  # a younger file may change again without a new ctime, so nothing of it is kept
MEMO_FILE = "digests.sqlite"  # in the cache folder


class FileState(NamedTuple):
    """What changes whenever a file's bytes do: its ctime cannot be set back."""

    path: str
    size: int
    ctime_ns: int
    inode: int


@final
class FileMemo:
    """Texts computed from files, by the kind of text, the file's path, size, inode and ctime.

    While it is entered (`with memo:`, also again later) they are read from and written to a SQLite file, and
    `active_memo` is this one. A SQLite file that cannot be used causes a warning and is ignored; a damaged one is also
    removed.
    """

    def __init__(self, memo_path: Path | None) -> None:
        """`memo_path` is the SQLite file; with None texts are kept for this process only."""
        self.memo_path = memo_path
        self._database: sqlite3.Connection | None = None
        self._text_by_state: dict[tuple[str, FileState], str] = {}
        self._tokens: list[Token[FileMemo]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_active_memo.set(self))
        if self.memo_path is not None:
            with self._warn_on_error():
                self.memo_path.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(self.memo_path, timeout=5)
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS texts (kind TEXT, path TEXT, size INTEGER, ctime INTEGER, "
                    "inode INTEGER, text TEXT, PRIMARY KEY (kind, path))"
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _active_memo.reset(self._tokens.pop())
        if self._database is not None:
            with self._warn_on_error():
                self._database.commit()
        self._close()

    def digest_of(self, path: Path) -> str:
        """The SHA-256 of the bytes of `path`."""
        return self.text_of(path, "sha256", file_digest)

    def content_digest_of(self, path: Path) -> str:
        """`artifact.content_digest(path)`; that of a folder is computed anew."""
        return self.text_of(path, "content", content_digest) if path.is_file() else content_digest(path)

    def text_of(self, path: Path, kind: str, compute_text: Callable[[Path], str]) -> str:
        """`compute_text(path)`, or what it was for the same bytes; `kind` names what is computed, and how."""
        file_stat = path.stat()
        state = FileState(str(path.absolute()), file_stat.st_size, file_stat.st_ctime_ns, file_stat.st_ino)
        text = self._text_by_state.get((kind, state)) or self._find_stored_text(kind, state)
        if text is None:
            text = compute_text(path)
            if time.time() - file_stat.st_ctime > SETTLING_SECONDS:
                self._store_text(kind, state, text)
        return text

    def _find_stored_text(self, kind: str, state: FileState) -> str | None:
        row = None
        if self._database is not None:
            with self._warn_on_error():
                query = "SELECT text FROM texts WHERE kind = ? AND path = ? AND size = ? AND ctime = ? AND inode = ?"
                row = self._database.execute(query, (kind, *state)).fetchone()
        if row is None:
            return None
        return self._text_by_state.setdefault((kind, state), str(row[0]))

    def _store_text(self, kind: str, state: FileState, text: str) -> None:
        self._text_by_state[kind, state] = text
        if self._database is not None:
            with self._warn_on_error():
                self._database.execute("INSERT OR REPLACE INTO texts VALUES (?, ?, ?, ?, ?, ?)", (kind, *state, text))

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


_active_memo: ContextVar[FileMemo] = ContextVar("_active_memo", default=FileMemo(None))  # noqa: B039 - one a process


def active_memo() -> FileMemo:
    """The memo that is entered; outside of one, that of this process."""
    return _active_memo.get()
