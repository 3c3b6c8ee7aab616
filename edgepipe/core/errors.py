"""The errors that a user can get, and the exit code of each.

Everything edgepipe raises on purpose is an `EdgepipeError`; the command line prints its message on stderr without
a traceback and ends with its exit code. Anything else that escapes is a bug in edgepipe (exit 1).
"""

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple


class ExitCode(IntEnum):
    """What a process that ran edgepipe can conclude from its exit status."""

    SUCCESS = 0
    BUG = 1
    BAD_INPUT = 2
    NOT_MET = 3
    UNREACHABLE = 4
    INTERRUPTED = 130  # what a shell reports for Ctrl-C
    BROKEN_PIPE = 141  # ... for a program whose reader went away, as in `edgepipe stages | head -1`


class EdgepipeError(Exception):
    """Base of all errors that edgepipe raises on purpose."""

    exit_code = ExitCode.BAD_INPUT

    @property
    def lines(self) -> tuple[str, ...]:
        """The message by lines; a line break inside one is part of a name."""
        return (_shorten(str(self)),)


class InputError(EdgepipeError):
    """A file, an option or an argument that cannot be used; the message says what is allowed."""


class StorageError(EdgepipeError):
    """The disk is full, or a directory cannot be written; nothing half-written is left."""


class ToolError(EdgepipeError):
    """A program, a package or a device that the work needs could not be reached."""

    exit_code = ExitCode.UNREACHABLE


class TargetNotMetError(EdgepipeError):
    """A target that was searched for and cannot be reached; the message states the best result found."""

    exit_code = ExitCode.NOT_MET


class Problem(NamedTuple):
    """One thing that is wrong in a file: where (1-based line and column, 0 if none), at which path, and what."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        location = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{location}: {self.path}: {self.message}" if self.path else f"{location}: {self.message}"


MAX_LINES = 40  # of one message: a screenful
MAX_LINE = 3000  # characters; what is wrong is at its beginning, the remedy at its end
MAX_NAMES = 100  # that a message lists
MAX_NAME = 200  # characters of each
MAX_COMPARED = 10_000  # names among which the nearest is looked for


def _limit(lines: tuple[str, ...]) -> tuple[str, ...]:
    shown_lines = tuple(map(_shorten, lines[:MAX_LINES]))
    return shown_lines if len(lines) <= MAX_LINES else (*shown_lines, f"... and {len(lines) - MAX_LINES:,} more")


def _shorten(line: str) -> str:
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} .. {line[-MAX_LINE // 2 :]}"


class ConfigError(InputError):
    """All problems of one or more files, sorted by file and line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """One for each problem."""
        return _limit(tuple(str(problem) for problem in self.problems))


class ListedError(InputError):
    """Several things with one fault: a line that says what it is, and one for each of them."""

    def __init__(self, message: str, items: Iterable[str]) -> None:
        self.message, self.items = message, tuple(items)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, and the items, indented."""
        return (self.message, *_limit(tuple(f"  {item}" for item in self.items)))


def did_you_mean(name: str, allowed_names: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest allowed name, otherwise the list of what is allowed."""
    names = sorted(allowed_names)
    if close_match := _find_close_match(name, names):
        return f"; did you mean '{close_match}'?"
    return f"; allowed: {list_names(names)}" if names else ""


def list_names(names: Sequence[str]) -> str:
    """The names in order, comma-separated; of very many the first, and how many there are."""
    more_text = f", .. ({len(names):,} in all)" if len(names) > MAX_NAMES else ""
    return ", ".join(f"{name[:MAX_NAME]}.." if len(name) > MAX_NAME else name for name in names[:MAX_NAMES]) + more_text


def _find_close_match(name: str, names: Sequence[str]) -> str | None:
    # The comparison takes the product of both lengths, for each name.
    comparable_names = [other for other in names[:MAX_COMPARED] if len(other) <= MAX_NAME]
    if len(name) > MAX_NAME:
        return None
    name_by_lower_case = {other.lower(): other for other in comparable_names}
    close_matches = difflib.get_close_matches(name, comparable_names, n=1, cutoff=0.6) or [
        name_by_lower_case[match] for match in difflib.get_close_matches(name.lower(), name_by_lower_case, n=1)
    ]
    return next(iter(close_matches), None)
