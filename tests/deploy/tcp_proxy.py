"""A TCP proxy that delays what it forwards, or cuts the connection after so many bytes."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Queue


@dataclass
class Proxy:
    """Listens on `port` and forwards to `target`. `cut_after`: bytes from the client to the server, over all
    connections, after which everything is cut; `delay`: seconds that each piece is late, one way."""

    target: int
    delay: float = 0.0
    cut_after: int | None = None
    forwarded: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    open_sockets: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """Accept connections until it is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self.open_sockets += [client, server]
                for source, sink, counts in ((client, server, True), (server, client, False)):
                    self._start_pump(source, sink, counts)

    def _start_pump(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        pieces: Queue[tuple[float, bytes]] = Queue()
        threading.Thread(target=self._read, args=(source, pieces, counts), daemon=True).start()
        threading.Thread(target=self._write, args=(sink, pieces), daemon=True).start()

    def _read(self, source: socket.socket, pieces: "Queue[tuple[float, bytes]]", counts: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(4096):
                pieces.put((time.monotonic() + self.delay, self._count(content) if counts else content))
        pieces.put((0.0, b""))

    def _count(self, content: bytes) -> bytes:
        with self.lock:
            room = len(content) if self.cut_after is None else max(0, self.cut_after - self.forwarded)
            self.forwarded += len(content)
        if room < len(content):
            threading.Timer(0.02, self.cut).start()  # the last bytes get through first
        return content[:room]

    def _write(self, sink: socket.socket, pieces: "Queue[tuple[float, bytes]]") -> None:
        with contextlib.suppress(OSError):
            while True:
                due, content = pieces.get()
                if not content and due == 0.0:
                    sink.shutdown(socket.SHUT_WR)
                    return
                time.sleep(max(0.0, due - time.monotonic()))
                sink.sendall(content)

    def cut(self) -> None:
        """Close every connection."""
        for end in self.open_sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.open_sockets.clear()


@contextlib.contextmanager
def forwarding(target: int, delay: float = 0.0, cut_after: int | None = None) -> Iterator[Proxy]:
    """A proxy to the port `target`."""
    proxy = Proxy(target, delay, cut_after)
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.listener.close()
        proxy.cut()
