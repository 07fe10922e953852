"""A TCP proxy whose open connections can fall silent while new ones work: half-open, as after a lost NAT entry."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class HalfOpen:
    """Forwards 127.0.0.1:port to a server of this machine."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._silent: list[threading.Event] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def silence(self) -> None:
        """What goes over the connections that are open now disappears, either way. Nobody is told."""
        for silent in self._silent:
            silent.set()

    def serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                return
            silent = threading.Event()
            self._silent.append(silent)
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_forward, args=(source, target, silent), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _forward(source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65_536):
            if not silent.is_set():
                target.sendall(chunk)
        if not silent.is_set():
            target.close()


@contextmanager
def half_open(server_port: int) -> Iterator[HalfOpen]:
    proxy = HalfOpen(server_port)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    yield proxy
    proxy.close()
    thread.join(5)
