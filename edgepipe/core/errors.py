"""The errors that a user can get, and the exit code of each.

Everything edgepipe raises on purpose is an `EdgepipeError`; the command line prints its message on stderr without
a traceback and ends with its exit code. Anything else that escapes is a bug in edgepipe (exit 1).
"""

import difflib
from collections.abc import Iterable
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


class ConfigError(InputError):
    """All problems of one or more files, sorted by file and line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(name: str, allowed_names: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest allowed name, otherwise the list of what is allowed."""
    names = sorted(allowed_names)
    name_by_lower_case = {allowed_name.lower(): allowed_name for allowed_name in names}
    close_matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6) or [
        name_by_lower_case[match] for match in difflib.get_close_matches(name.lower(), name_by_lower_case, n=1)
    ]
    if close_matches:
        return f"; did you mean '{close_matches[0]}'?"
    return f"; allowed: {', '.join(names)}" if names else ""
