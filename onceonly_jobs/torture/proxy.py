"""A TCP proxy on the loopback interface whose line can be made bad while connections are open."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

_CHUNK = 65_536
_POLL_S = 0.1
_RESET = struct.pack(
    "ii", 1, 0
)  # SO_LINGER with no time: close sends a reset, as a crashed machine's peer sees


class Way(StrEnum):
    """Which bytes: what the caller asks, or what the server answers."""

    REQUEST = "request"
    REPLY = "reply"


@dataclass(frozen=True, slots=True)
class Line:
    """How the line behaves. The default is a good one.

    delay_s: each chunk waits that long. swallowed: bytes going these ways disappear, the connections stay open.
    reply_bytes: a connection is cut when it has carried that many bytes of answers (None: never).
    """

    delay_s: float = 0.0
    swallowed: frozenset[Way] = frozenset()
    reply_bytes: int | None = None


GOOD = Line()
BLACKHOLE = Line(swallowed=frozenset(Way))


class TcpProxy:
    """Forwards 127.0.0.1:port to a server; use as a context manager, or call start and close.

    All methods may be called from any thread. A connection that lost bytes is reset when the line is healed,
    since what follows would make no sense to either end.
    """

    def __init__(self, host: str, port: int, *, listen_port: int = 0) -> None:
        self._upstream = (host, port)
        self._line = GOOD
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._closed = threading.Event()
        self._listener: socket.socket | None = _listener(listen_port)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True)

    def start(self) -> TcpProxy:
        self._acceptor.start()
        return self

    def close(self) -> None:
        """Stop listening and reset every connection."""
        self._closed.set()
        self._listen(False)
        self.cut()
        self._acceptor.join(5)

    def __enter__(self) -> TcpProxy:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def line(self) -> Line:
        return self._line

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._open)

    def set(self, line: Line) -> None:
        """Let the line behave so from now on, for open connections too."""
        self._line = line

    def blackhole(self) -> None:
        """Accept everything, forward nothing, answer nothing."""
        self.set(BLACKHOLE)

    def half_open(self, swallowed: Way) -> None:
        """Forward one way only: what goes the other way disappears."""
        self.set(Line(swallowed=frozenset({swallowed})))

    def delay(self, delay_s: float) -> None:
        """Hold each chunk back for that many seconds, both ways."""
        self.set(Line(delay_s=delay_s))

    def cut_after_reply(self, reply_bytes: int) -> None:
        """Cut each new connection once it has carried that many bytes of answers: exactly so many arrive."""
        self.set(Line(reply_bytes=reply_bytes))

    def refuse(self) -> None:
        """Refuse new connections as a closed port does; open ones go on."""
        self._listen(False)

    def cut(self) -> int:
        """Reset all open connections; how many there were."""
        with self._lock:
            found = list(self._open)
        for connection in found:
            connection.reset()
        return len(found)

    def heal(self) -> None:
        """A good line again: listens, forwards at once; connections that lost bytes are reset."""
        self._line = GOOD
        self._listen(True)
        with self._lock:
            lossy = [connection for connection in self._open if connection.lost]
        for connection in lossy:
            connection.reset()

    @contextlib.contextmanager
    def broken(self, line: Line) -> Iterator[None]:
        """The line behaves so inside the block and is healed after it."""
        self.set(line)
        try:
            yield
        finally:
            self.heal()

    def _listen(self, wanted: bool) -> None:
        with self._lock:
            if not wanted and self._listener is not None:
                self._listener.shutdown(
                    socket.SHUT_RDWR
                )  # a thread that waits in accept holds the port otherwise
                self._listener.close()
                self._listener = None
            elif wanted and self._listener is None and not self._closed.is_set():
                self._listener = _listener(self.port)

    def _accept(self) -> None:
        while not self._closed.is_set():
            listener = self._listener
            if listener is None:
                self._closed.wait(_POLL_S)
                continue
            try:
                near, _ = listener.accept()
            except OSError:  # nobody came, or the listener was closed: look again
                continue
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        connection = _Connection(near)
        with self._lock:
            self._open.add(connection)
        try:
            if self._dial(connection):
                back = threading.Thread(target=self._pump, args=(connection, Way.REPLY), daemon=True)
                back.start()
                self._pump(connection, Way.REQUEST)
                back.join()
        finally:
            connection.close()
            with self._lock:
                self._open.discard(connection)

    def _dial(self, connection: _Connection) -> bool:
        """Reach the server, unless nothing gets there: then wait until the line is healed or the caller leaves."""
        while self._line.swallowed == BLACKHOLE.swallowed and not connection.over:
            connection.lost = True
            if self._closed.wait(_POLL_S) or _left(connection.near):
                return False
        if connection.over:
            return False
        try:
            connection.far = socket.create_connection(self._upstream, timeout=5)
        except OSError:
            connection.reset()
            return False
        return True

    def _pump(self, connection: _Connection, way: Way) -> None:
        source, target = connection.ends(way)
        while not connection.over and not self._closed.is_set():
            try:
                source.settimeout(_POLL_S)
                chunk = source.recv(_CHUNK)
            except TimeoutError:
                continue
            except OSError:
                break
            if not chunk:
                with contextlib.suppress(OSError):
                    target.shutdown(socket.SHUT_WR)
                return
            if not self._forward(connection, way, chunk, target):
                break
        connection.reset()

    def _forward(self, connection: _Connection, way: Way, chunk: bytes, target: socket.socket) -> bool:
        line = self._line
        if line.delay_s:
            self._hold(connection, line)
        if way in self._line.swallowed:
            connection.lost = True
            return True
        last = False
        if way is Way.REPLY and line.reply_bytes is not None:
            chunk = chunk[: max(0, line.reply_bytes - connection.replied)]
            last = connection.replied + len(chunk) >= line.reply_bytes
        try:
            _send(connection, target, chunk)
        except OSError:
            return False
        if way is Way.REPLY:
            connection.replied += len(chunk)
        if last:
            connection.finish()
        return not last

    def _hold(self, connection: _Connection, line: Line) -> None:
        until = time.monotonic() + line.delay_s
        while self._line is line and not connection.over:
            left = until - time.monotonic()
            if left <= 0 or self._closed.wait(min(left, _POLL_S)):
                return


class _Connection:
    def __init__(self, near: socket.socket) -> None:
        self.near = near
        self.far: socket.socket | None = None
        self.replied = 0
        self.lost = False
        self.over = False

    def ends(self, way: Way) -> tuple[socket.socket, socket.socket]:
        if self.far is None:
            raise ValueError("not connected yet")
        return (self.near, self.far) if way is Way.REQUEST else (self.far, self.near)

    def reset(self) -> None:
        """End it as a lost peer does: no orderly goodbye."""
        self.over = True
        for end in self._sockets():
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def finish(self) -> None:
        """End it after the bytes that were sent: a reset could overtake them."""
        self.over = True
        for end in self._sockets():
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        self.over = True
        for end in self._sockets():
            end.close()

    def _sockets(self) -> list[socket.socket]:
        return [end for end in (self.near, self.far) if end is not None]


def _listener(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    listener.settimeout(_POLL_S)
    return listener


def _send(connection: _Connection, target: socket.socket, chunk: bytes) -> None:
    """Send it all, giving up when the connection is over: a full buffer must not hold a thread for ever."""
    rest = memoryview(chunk)
    target.settimeout(_POLL_S)
    while rest and not connection.over:
        with contextlib.suppress(TimeoutError):
            rest = rest[target.send(rest) :]


def _left(near: socket.socket) -> bool:
    try:
        near.settimeout(0.0)
        return near.recv(_CHUNK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
