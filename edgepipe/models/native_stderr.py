"""Captures what native code writes to stderr."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def capture_stderr() -> Iterator[Callable[[], str]]:
    """Redirect stderr of C++ and Python to a temporary file; yields a function that reads it."""
    sys.stderr.flush()
    stderr_descriptor = os.dup(2)
    with tempfile.TemporaryFile() as log_file:
        os.dup2(log_file.fileno(), 2)
        try:
            yield lambda: os.pread(log_file.fileno(), os.fstat(log_file.fileno()).st_size, 0).decode(errors="replace")
        finally:
            sys.stderr.flush()
            os.dup2(stderr_descriptor, 2)
            os.close(stderr_descriptor)
