"""Commands as processes of this machine: a shell here, or a client program that reaches a device."""

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, final

from edgepipe.deploy.transport import CHUNK_BYTES, DeviceError, RunLimits, flood_error, timeout_error


def start_process(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a program whose input and whole output are pipes."""
    return subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C is for edgepipe, which then ends the command in order
    )


def run_process(name: str, arguments: Sequence[str], input_bytes: bytes, limits: RunLimits) -> bytes:
    """What the program prints on stdout and stderr.

    Raises:
        DeviceError: it takes too long, or prints too much; `name` is the device's.
    """
    with start_process(arguments) as process:
        try:
            output, _ = process.communicate(input_bytes, timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise timeout_error(name, limits.seconds) from None
    if len(output) > limits.output_bytes:
        raise flood_error(name, limits.output_bytes)
    return output


@final
@dataclass(frozen=True)
class HeldProcess:
    """A command that runs until its input is closed."""

    name: str
    process: subprocess.Popen[bytes]

    def read_line(self, seconds: float) -> str:
        """See `HeldCommand.read_line`."""
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([_stream(self.process.stdout)], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise timeout_error(self.name, seconds)
            byte = os.read(_stream(self.process.stdout).fileno(), 1)
            if not byte or len(line) > CHUNK_BYTES:
                break
            line += byte
        return line.decode(errors="replace").rstrip("\n")

    def write(self, text: str) -> None:
        """See `HeldCommand.write`."""
        try:
            _stream(self.process.stdin).write(text.encode())
            _stream(self.process.stdin).flush()
        except OSError as error:
            raise DeviceError(f"{self.name}: the command that holds the lock has ended: {error}") from None

    def close(self) -> None:
        """See `HeldCommand.close`."""
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):  # it has already ended, and its input with it
                _stream(stream).close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all streams are pipes"
    return stream
