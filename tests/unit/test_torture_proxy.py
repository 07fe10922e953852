"""Each fault of the proxy does to a connection what it says, and a healed line works again."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from onceonly_jobs.torture.proxy import Line, TcpProxy, Way

PATIENCE_S = 60.0


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers what it is asked, and remembers it."""
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while chunk := connection.recv(1024):
                    heard.append(chunk)
                    connection.sendall(chunk)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1], heard
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: tuple[int, list[bytes]]) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", echo[0]) as started:
        yield started


def dial(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)


def ask(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    answer = b""
    while len(answer) < len(words):
        chunk = connection.recv(1024)
        if not chunk:
            break
        answer += chunk
    return answer


def ended(connection: socket.socket) -> None:
    """Raises ConnectionError at the end of the connection, an orderly one included."""
    if connection.recv(10) == b"":
        raise ConnectionResetError


def test_a_good_line_carries_both_ways(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"x" * 300_000) == b"x" * 300_000


def test_cut_resets_open_connections_and_new_ones_work(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"one") == b"one"
        assert proxy.cut() == 1
        connection.settimeout(PATIENCE_S)
        with pytest.raises(ConnectionError):
            ended(connection)
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"three") == b"three"


def test_a_blackhole_accepts_and_answers_nothing(proxy: TcpProxy, echo: tuple[int, list[bytes]]) -> None:
    with closing(dial(proxy)) as old:
        assert ask(old, b"before") == b"before"
        proxy.blackhole()
        with closing(dial(proxy)) as new:
            for connection in (old, new):
                connection.sendall(b"lost")
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(10)
            assert echo[1] == [b"before"]
            proxy.heal()
            for connection in (old, new):
                connection.settimeout(PATIENCE_S)
                with pytest.raises(ConnectionError):
                    ended(connection)
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"after") == b"after"


def test_half_open_delivers_the_request_and_loses_the_answer(
    proxy: TcpProxy, echo: tuple[int, list[bytes]]
) -> None:
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"before") == b"before"
        proxy.half_open(Way.REPLY)
        connection.sendall(b"charge the card")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)
    while b"charge the card" not in echo[1]:  # in vain: until the test has taken too long
        time.sleep(0.01)


def test_a_delay_holds_each_chunk_back_and_healing_lets_it_go(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"before") == b"before"
        proxy.delay(3600)
        connection.sendall(b"slow")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        proxy.heal()
        connection.settimeout(PATIENCE_S)
        assert connection.recv(10) == b"slow"


def test_an_answer_is_cut_at_the_byte_that_was_named(proxy: TcpProxy) -> None:
    proxy.cut_after_reply(7)
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"0123456789") == b"0123456"
    with proxy.broken(Line(reply_bytes=3)), closing(dial(proxy)) as connection:
        assert ask(connection, b"0123456789") == b"012"
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"0123456789") == b"0123456789"


def test_refuse_closes_the_port_until_healed(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as old:
        assert ask(old, b"before") == b"before"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        assert ask(old, b"still") == b"still"
        proxy.heal()
    with closing(dial(proxy)) as connection:
        assert ask(connection, b"after") == b"after"
