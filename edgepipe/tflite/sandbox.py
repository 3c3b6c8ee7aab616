"""One child process for many files that are not trusted yet: native code may crash, hang or eat memory there.

`child_process.run` starts a process for each request, which is half a second of loading libraries; a `Sandbox` keeps
one and starts another when it crashed, hung, or broke. An earlier damaged file may have corrupted memory, so no file is
blamed for another: a request that crashes a reused process is repeated in a fresh one.
"""

import atexit
import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import IO, Any

from edgepipe.core.errors import EdgepipeError
from edgepipe.tflite.child_process import ChildError, Json, build_environment, build_exit_error

MEMORY_LIMIT_BYTES = 2 << 30  # bytes of address space of the child, more for large files
FILE_SIZE_FACTOR = 4  # times the size of a file over 256 MiB: its mapping, packed weights, activations
GRACE_SECONDS = 5  # after its time limit a child ends itself, in case its parent is gone
CHUNK_BYTES = 1 << 16


class TooSlowError(ChildError):
    """The request exceeded its time limit."""


class Sandbox:
    """A reusable child process: `run` sends it one request after another. Use it in a `with`, or `close` it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _SandboxProcess | None = None
        self.start_count = 0  # processes started so far

    def run(
        self, worker_module: str, request: Json, timeout: float, subject: str, memory_limit: int = MEMORY_LIMIT_BYTES
    ) -> Json:
        """What `worker_module.handle_request(request)` answers, and what it wrote to stderr under the key "stderr".

        Args:
            worker_module: a worker with a function `handle_request`.
            request: what it takes; JSON.
            timeout: seconds.
            subject: begins the message of a crash or timeout.
            memory_limit: bytes of address space.

        Raises:
            ChildError: the worker refused the request, crashed, exceeded the time or memory limit, or broke.
        """
        with self._lock:
            was_running = self._child is not None
            # The caller may have changed its folder since the child was started; paths in requests are relative to it.
            context = {"folder": str(Path.cwd())}
            message = {
                "module": worker_module,
                "request": request,
                "seconds": timeout,
                "memory": memory_limit,
                **context,
            }
            try:
                return self._send_once(message, subject)
            except ChildError as error:
                if error.is_refusal or not was_running or isinstance(error, TooSlowError):
                    raise
            return self._send_once(message, subject)

    def _send_once(self, message: Json, subject: str) -> Json:
        if self._child is None:
            self._child, self.start_count = _SandboxProcess(), self.start_count + 1
        try:
            answer = self._child.ask(message, subject)
        except BaseException:
            self._drop_child()
            raise
        if "broken" in answer:
            self._drop_child()
            raise ChildError(f"{subject}: {answer['broken']}", answer["stderr"])
        if "refused" in answer:
            raise ChildError(answer["refused"], answer["stderr"], is_refusal=True)
        return answer

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def close(self) -> None:
        """End the child process."""
        with self._lock:
            self._drop_child()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def get_shared() -> Sandbox:
    """The sandbox of this process, closed at exit."""
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox


def memory_limit_for(path: Path) -> int:
    """The address space that running the file at `path` may take: 2 GiB, more only for what is itself large."""
    return max(MEMORY_LIMIT_BYTES, FILE_SIZE_FACTOR * path.stat().st_size + (MEMORY_LIMIT_BYTES >> 1))


class _SandboxProcess:
    """One process: requests go in as lines of JSON on stdin, answers come back likewise through a separate pipe."""

    def __init__(self) -> None:
        self.stderr_file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.stderr_position = 0
        read_end, write_end = os.pipe()
        command = [sys.executable, "-P", "-m", __name__, str(write_end)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self.stderr_file,
                env={**build_environment(), "OPENBLAS_NUM_THREADS": "1"},  # each of its threads takes address space
                pass_fds=[write_end],
            )
        finally:
            os.close(write_end)
        self.answer_pipe = read_end

    def ask(self, message: Json, subject: str) -> Json:
        timeout: float = message["seconds"]
        line = json.dumps(message).encode() + b"\n"
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(line)
            self.process.stdin.flush()
            answer = self._read_line(time.monotonic() + timeout)
        except BrokenPipeError:
            answer = b""
        except TimeoutError:
            raise TooSlowError(
                f"{subject}: timed out after {timeout:g} s; the child process was stopped", self._read_new_stderr()
            ) from None
        if not answer.endswith(b"\n"):
            stderr = self._read_new_stderr()
            raise build_exit_error(subject, self.process.wait(), stderr)
        return {**json.loads(answer), "stderr": self._read_new_stderr()}

    def _read_line(self, deadline: float) -> bytes:
        """One line, or what there was of it when the process ended."""
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.answer_pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(self.answer_pipe, CHUNK_BYTES)
            if not chunk:
                break
            line += chunk
        return line

    def _read_new_stderr(self) -> str:
        """What the process wrote to stderr since the last call."""
        self.stderr_file.seek(self.stderr_position)
        text = self.stderr_file.read()
        self.stderr_position += len(text)
        return text.decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what was not yet written has no reader any more
            self.process.stdin.close()
        os.close(self.answer_pipe)
        self.stderr_file.close()


def _serve(answer_pipe: int) -> None:
    """The child's side: answer requests until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    for line in sys.stdin:
        message = json.loads(line)
        os.chdir(message["folder"])
        memory_limit = message["memory"] if hard_limit == resource.RLIM_INFINITY else min(message["memory"], hard_limit)
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, hard_limit))
        signal.alarm(int(message["seconds"]) + GRACE_SECONDS)
        answer = _handle_request(message["module"], message["request"], memory_limit)
        signal.alarm(0)
        os.write(answer_pipe, json.dumps(answer).encode() + b"\n")


def _handle_request(worker_module: str, request: Json, memory_limit: int) -> Any:
    try:
        return importlib.import_module(worker_module).handle_request(request)
    except EdgepipeError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"broken": f"needs more than the memory limit of {memory_limit / 2**30:.2g} GiB"}
    except Exception as error:  # noqa: BLE001 - whatever a worker breaks on is reported
        return {"broken": f"the child process broke: {type(error).__name__}: {' '.join(str(error).split())}"}


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
