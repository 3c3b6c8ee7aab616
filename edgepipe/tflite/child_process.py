"""Runs a worker module in a child process: native code may crash or hang there without harm to edgepipe.

The request goes in as JSON on stdin; the answer comes back as JSON in a file, because native libraries write to stdout
and stderr as they like. Arrays travel in .npz files that the request names.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.core.module_sources import PACKAGE_ROOT

Json = dict[str, Any]
STDERR_LIMIT = 2000  # characters kept from the end of stderr


CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


class ChildError(InputError):
    """The child process refused the request, crashed, hung, or ended with an error of its own.

    `is_crash`: native code ended it by a signal, and not for want of memory.
    """

    def __init__(self, message: str, stderr: str, is_refusal: bool = False, is_crash: bool = False) -> None:
        super().__init__(message)
        self.stderr = stderr[-STDERR_LIMIT:]
        self.is_refusal = is_refusal
        self.is_crash = is_crash


def run(worker_module: str, request: Json, timeout: float, subject: str) -> Json:
    """Run `python -m worker_module` on `request`.

    Args:
        worker_module: a worker, which calls `serve`.
        request: what the worker's `handle_request` takes; JSON.
        timeout: seconds, after which the process is killed.
        subject: begins the message of a crash or timeout.

    Returns:
        The worker's answer, and what it wrote to stderr under the key "stderr".

    Raises:
        ChildError: the worker refused the request, crashed by a signal, took longer than `timeout`, or broke.
    """
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        answer_path = Path(folder) / "answer.json"
        command = [sys.executable, "-P", "-m", worker_module, str(answer_path)]
        try:
            process = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=build_environment(),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            stderr = _decode_stderr(error.stderr)
            raise ChildError(
                f"{subject}: timed out after {timeout:g} s; the child process was stopped", stderr
            ) from None
        if process.returncode != 0 or not answer_path.exists():
            raise build_exit_error(subject, process.returncode, process.stderr)
        reply: Json = json.loads(answer_path.read_text(encoding="utf-8"))
    if "refused" in reply:
        raise ChildError(reply["refused"], process.stderr, is_refusal=True)
    return {**reply, "stderr": process.stderr}


def serve(handle_request: Callable[[Json], Json]) -> None:
    """The child's side: read the request, handle it, write the answer or the message of an `EdgepipeError`."""
    request = json.load(sys.stdin)
    try:
        answer = handle_request(request)
    except EdgepipeError as error:
        answer = {"refused": str(error)}
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


def build_environment() -> dict[str, str]:
    """This process's environment, with the package importable although `-P` keeps the current folder off the path."""
    python_path = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(PACKAGE_ROOT), *([python_path] if python_path else [])])
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def build_exit_error(subject: str, status: int, stderr: str) -> ChildError:
    """The error of a process that ended without an answer."""
    is_out_of_memory = "bad_alloc" in stderr or "MemoryError" in stderr
    is_crash = status < 0 and -status in CRASH_SIGNALS and not is_out_of_memory
    return ChildError(f"{subject}: {_describe_exit(status, stderr)}", stderr, is_crash=is_crash)


def _describe_exit(status: int, stderr: str) -> str:
    """How a process ended, with the last line it wrote."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    last_line = f"; last output: {lines[-1].strip()}" if lines else ""
    if status < 0:
        return f"the child process crashed with {signal.Signals(-status).name}{last_line}"
    return f"the child process ended with exit status {status} and no answer{last_line}"


def _decode_stderr(stderr: bytes | str | None) -> str:
    return stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr or ""
