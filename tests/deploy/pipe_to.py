"""A ProxyCommand: `python pipe_to.py HOST PORT` copies between its streams and a socket."""

import os
import socket
import sys
import threading

connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))


def _send() -> None:
    while content := os.read(0, 65536):
        connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)


threading.Thread(target=_send, daemon=True).start()
while received := connection.recv(65536):
    os.write(1, received)
