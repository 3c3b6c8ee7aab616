"""The one place where text leaves edgepipe for a terminal or a pipe. Nothing else prints, but for tables and bars,
which escape what they show in the same way.
"""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from edgepipe.core.escape import escape_line


def print_line(text: str, to_stderr: bool = False) -> None:
    """Print `text` as one line, whatever it holds."""
    _print(f"{escape_line(text)}\n", to_stderr)


def print_document(text: str, to_stderr: bool = False) -> None:
    """Print the lines of `text`, whose names have been escaped by whoever put it together."""
    _print(text.rstrip("\n") + "\n", to_stderr)


def _print(text: str, to_stderr: bool) -> None:
    print(text, end="", file=sys.stderr if to_stderr else sys.stdout, flush=True)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what libraries warn and log, and characters that the encoding of the terminal lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    format_warning, build_record = warnings.formatwarning, logging.getLogRecordFactory()
    warnings.formatwarning = _format_escaped(format_warning)
    logging.setLogRecordFactory(_build_escaped(build_record))
    try:
        yield
    finally:
        warnings.formatwarning = format_warning
        logging.setLogRecordFactory(build_record)


def _format_escaped(format_warning: Callable[..., str]) -> Callable[..., str]:
    return lambda message, *details, **options: format_warning(escape_line(str(message)), *details, **options)


def _build_escaped(build_record: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def build(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = build_record(*arguments, **options)
        with suppress(TypeError, ValueError):  # arguments that do not fit, which logging itself reports
            record.msg, record.args = escape_line(record.getMessage()), ()
        return record

    return build
