"""An Android device for the real adb client: a daemon that speaks adb's protocol over TCP and runs shell commands.

Connection, authentication by key, and the service shell_v2; see protocol.txt of adb in Android's sources. Commands run
in this machine's /bin/sh with the programs of `folder/bin` first.
"""

import contextlib
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

VERSION, MAX_PAYLOAD = 0x01000001, 1 << 18
BANNER = b"device::ro.product.name=pixel;ro.product.model=Pixel;ro.product.device=pixel;features=shell_v2,cmd"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


@dataclass
class AdbDaemon:
    """One device. `trusts_keys`: whether a computer may connect; `breaks_after`: commands after which it is gone."""

    folder: Path
    trusts_keys: bool = True
    breaks_after: int | None = None
    commands: list[str] = field(default_factory=list)
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def serial(self) -> str:
        """How adb names it."""
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_Connection(self, connection).serve, daemon=True).start()


class _Connection:
    """Packets of one computer: command, two arguments, payload."""

    def __init__(self, daemon: AdbDaemon, stream: socket.socket) -> None:
        self.daemon, self.stream, self.lock = daemon, stream, threading.Lock()
        self.shells: dict[int, _Shell] = {}

    def send(self, command: bytes, first: int, second: int, payload: bytes = b"") -> None:
        number = struct.unpack("<I", command)[0]
        header = struct.pack("<6I", number, first, second, len(payload), sum(payload) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self.lock:
            self.stream.sendall(header + payload)

    def _read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self.stream.recv(size - len(content))
            if not piece:
                raise EOFError
            content += piece
        return content

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, first, second, size, _, _ = struct.unpack("<4s5I", self._read(24))
                self._handle(command, first, second, self._read(size))
        for shell in list(self.shells.values()):
            shell.end()
        self.stream.close()

    def _handle(self, command: bytes, first: int, second: int, payload: bytes) -> None:
        if command == b"CNXN":
            if self.daemon.trusts_keys:
                self.send(b"CNXN", VERSION, MAX_PAYLOAD, BANNER)
            else:
                self.send(b"AUTH", 1, 0, os.urandom(20))
        elif command == b"AUTH" and first == 2:  # a signature: by a key that nobody has accepted
            self.send(b"AUTH", 1, 0, os.urandom(20))
        elif command == b"OPEN":
            self._open(first, payload.rstrip(b"\0").decode())
        elif command == b"WRTE" and second in self.shells:
            self.shells[second].received.put(payload)
            self.send(b"OKAY", second, first)
        elif command == b"OKAY" and second in self.shells:
            self.shells[second].writable.release()
        elif command == b"CLSE" and second in self.shells:
            self.shells.pop(second).end()
            self.send(b"CLSE", second, first)

    def _open(self, remote: int, service: str) -> None:
        kind, _, command = service.partition(":")
        if not kind.startswith("shell"):
            self.send(b"CLSE", 0, remote)
            return
        self.daemon.commands.append(command)
        if self.daemon.breaks_after is not None and len(self.daemon.commands) > self.daemon.breaks_after:
            raise EOFError
        shell = _Shell(self, local=len(self.daemon.commands), remote=remote)
        self.shells[shell.local] = shell
        self.send(b"OKAY", shell.local, remote)
        threading.Thread(target=shell.run, args=(command,), daemon=True).start()


class _Shell:
    """One command of shell_v2: packets of a byte for the stream, four for the size, and the content."""

    def __init__(self, connection: _Connection, local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self.received: queue.Queue[bytes | None] = queue.Queue()
        self.writable = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        self.received.put(None)
        self.writable.release(1000)  # nobody waits for the computer any more
        if self.process is not None:
            self.process.kill()

    def run(self, command: str) -> None:
        folder = self.connection.daemon.folder
        environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=folder
        )
        threading.Thread(target=self._feed, daemon=True).start()
        pumps = [
            threading.Thread(target=self._pump, args=(stream, number), daemon=True)
            for stream, number in ((self.process.stdout, STDOUT), (self.process.stderr, STDERR))
        ]
        with contextlib.suppress(OSError):
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()
            self._send(EXIT, bytes([self.process.wait() & 255]))
            self.connection.send(b"CLSE", self.local, self.remote)
        self.end()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                stream.close() if stream is not None else None

    def _send(self, number: int, content: bytes) -> None:
        with self.lock:
            self.connection.send(b"WRTE", self.local, self.remote, struct.pack("<BI", number, len(content)) + content)
            self.writable.acquire()

    def _pump(self, stream: "subprocess.Popen[bytes] | object", number: int) -> None:
        with contextlib.suppress(OSError):
            while content := os.read(stream.fileno(), 32768):  # type: ignore[union-attr]
                self._send(number, content)

    def _feed(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        content = b""
        with contextlib.suppress(OSError):
            while (piece := self.received.get()) is not None:
                content += piece
                while len(content) >= 5 and len(content) >= 5 + struct.unpack("<I", content[1:5])[0]:
                    number, size = struct.unpack("<BI", content[:5])
                    if number == STDIN:
                        self.process.stdin.write(content[5 : 5 + size])
                        self.process.stdin.flush()
                    elif number == CLOSE_STDIN:
                        self.process.stdin.close()
                    content = content[5 + size :]
        with contextlib.suppress(OSError):
            self.process.stdin.close()


@contextlib.contextmanager
def running(folder: Path, trusts_keys: bool = True, breaks_after: int | None = None) -> Iterator[AdbDaemon]:
    """A device whose properties are those of a phone."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    getprop = folder / "bin" / "getprop"
    getprop.write_text('#!/bin/sh\ncase "$1" in ro.product.model) echo Pixel 9;; *) echo 16;; esac\n')
    getprop.chmod(0o755)
    daemon = AdbDaemon(folder, trusts_keys, breaks_after)
    threading.Thread(target=daemon.serve, daemon=True).start()
    try:
        yield daemon
    finally:
        daemon.listener.close()
