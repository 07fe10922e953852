"""HTTP/1.1 on the wire, said in bytes to a server of this process: offers to upgrade, and what is no HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from onceonly_jobs.api.protocol import Protocol

PATIENCE_S = 20.0
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: "
BODY = b'{"key": "order-1"}'


async def shown(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was sent; `/early` answers first, `/half` begins to."""
    if scope["type"] != "http":
        return
    body, more = b"", scope["path"] not in ("/early", "/half")
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message["body"]
        more = message["more_body"]
    told = {
        "path": scope["path"],
        "body": body.decode(),
        "names": [name.decode() for name, _ in scope["headers"]],
    }
    answer = json.dumps(told).encode()
    length = (b"content-length", b"%d" % len(answer))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": answer[:1], "more_body": True})
    if scope["path"] == "/half":
        await receive()
    await send({"type": "http.response.body", "body": answer[1:]})


class Server:
    """uvicorn in a thread, with our protocol."""

    def __init__(self) -> None:
        config = uvicorn.Config(shown, port=0, log_config=None, http=Protocol, ws="none", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + PATIENCE_S
        while not self._server.started:
            assert time.monotonic() < end, "the server never started"
            time.sleep(0.01)
        self.address = self._server.servers[0].sockets[0].getsockname()

    def stop(self) -> None:
        """Returns once nothing is open any more."""
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


class Connection:
    """A connection, on which answers are read one by one."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(server.address, PATIENCE_S)
        self._file = self._socket.makefile("rb")

    def say(self, *parts: bytes) -> None:
        """Each part in a packet of its own, which the server has read before the next one is sent."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            self._socket.sendall(part)
            time.sleep(0.02 if len(parts) > 1 else 0)

    def hear(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the next answer."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers, json.loads(self._file.read(int(headers["content-length"])))

    def body(self) -> str:
        """What the server says that it was sent."""
        status, _, told = self.hear()
        assert status == 200
        return str(told["body"])

    def rest(self) -> bytes:
        """What is sent until the server closes."""
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def connection(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Connection]:
    connected = Connection(server)
    yield connected
    connected.close()
    assert not [record for record in caplog.records if record.exc_info], "no traceback for anybody's input"


def post(*headers: bytes, body: bytes = BODY, path: bytes = b"/x") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*headers: bytes) -> bytes:
    lines = [b"POST /x HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked", *headers]
    half = len(BODY) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:]))
    return b"\r\n".join(lines) + b"\r\n\r\n" + chunks + b"0\r\n\r\n"


PLAIN = post()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, HTTP/1.1"])
@pytest.mark.parametrize("request_of", [post, chunked])
def test_a_request_that_offers_an_upgrade_is_a_request(
    connection: Connection, request_of: Any, protocol: bytes
) -> None:
    connection.say(request_of(OFFER + protocol))
    status, _, told = connection.hear()
    assert (status, told["path"], told["body"]) == (200, "/x", BODY.decode())
    assert "upgrade" not in told["names"]
    assert "http2-settings" in told["names"]
    connection.say(PLAIN)
    assert connection.body() == BODY.decode(), "the connection is as good as before"


@pytest.mark.parametrize("request_of", [post, chunked])
@pytest.mark.parametrize("cut", [10, 60, -len(BODY) - 1, -len(BODY), -7, -1])
def test_its_head_and_body_may_come_in_packets(connection: Connection, request_of: Any, cut: int) -> None:
    whole = request_of(OFFER + b"h2c")
    connection.say(whole[:cut], whole[cut:])
    assert connection.body() == BODY.decode()


def test_it_may_have_no_body_and_be_of_an_older_http(connection: Connection) -> None:
    connection.say(b"GET /x?y HTTP/1.1\r\nHost: x\r\n" + OFFER + b"websocket\r\n\r\n")
    assert connection.body() == ""
    connection.say(PLAIN.replace(b"1.1", b"1.0").replace(b"Host: x", OFFER + b"h2c"))
    assert connection.body() == BODY.decode()
    assert connection.rest() == b""


def test_it_is_told_to_go_on_with_its_body(connection: Connection) -> None:
    head = post(OFFER + b"h2c", b"Expect: 100-continue")[: -len(BODY)]
    connection.say(head)
    assert connection._file.readline() + connection._file.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.say(BODY)
    assert connection.body() == BODY.decode()


def test_offers_among_requests_sent_at_once_are_answered_in_order(connection: Connection) -> None:
    bodies = [b'{"n": %d}' % n for n in range(60)]
    offer = (OFFER + b"h2c",)
    connection.say(b"".join(post(*offer * (n % 3 > 0), body=body) for n, body in enumerate(bodies)))
    assert [connection.body() for _ in bodies] == [body.decode() for body in bodies]


def test_thousands_of_offers_in_one_packet_are_nothing_special(connection: Connection) -> None:
    many = 2000
    connection.say(b"GET / HTTP/1.1\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n" * many)
    assert [connection.body() for _ in range(many)] == [""] * many


BROKEN = [
    b"GARBAGE\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + OFFER + b"h2c\r\n\r\nzz\r\n",
    b"GET http://[::1/x HTTP/1.1\r\n" + OFFER + b"h2c\r\n\r\n",
]


def assert_refused(connection: Connection, request_id: str = "req_") -> None:
    status, headers, told = connection.hear()
    assert (status, told) == (400, {"detail": "the request is not valid HTTP"})
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")
    assert headers["x-request-id"].startswith(request_id)
    assert connection.rest() == b""


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_http_is_refused_in_the_contracts_shape(connection: Connection, broken: bytes) -> None:
    """§1.3, §1.5"""
    connection.say(broken)
    assert_refused(connection)


def test_a_request_id_that_was_read_is_said_back(connection: Connection) -> None:
    connection.say(b"POST /x HTTP/1.1\r\nX-Request-Id: mine\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert_refused(connection, "mine")


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("before", [1, 2, 5])
def test_what_was_asked_for_before_is_answered_first(
    connection: Connection, broken: bytes, before: int
) -> None:
    connection.say(post(b"X-Request-Id: other") * before + broken + b"more\r\n" * 9)
    assert [connection.body() for _ in range(before)] == [BODY.decode()] * before
    assert_refused(connection)


@pytest.mark.parametrize("path", [b"/half", b"/early"])
def test_an_answer_that_has_begun_is_not_followed_by_another(connection: Connection, path: bytes) -> None:
    connection.say(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    begun = connection._file.readline()
    connection.say(b"zz\r\n")
    assert begun == b"HTTP/1.1 200 OK\r\n"
    assert b"HTTP/1.1" not in connection.rest()


def test_a_server_with_offers_and_garbage_behind_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    running = Server()
    held = [Connection(running) for _ in range(3)]
    for connection, said in zip(held, (OFFER + b"websocket", OFFER + b"h2c", b"X: y"), strict=True):
        connection.say(b"GET /x HTTP/1.1\r\nHost: x\r\n" + said + b"\r\n\r\n")
        assert connection.body() == ""
    running.stop()
    assert [connection.rest() for connection in held] == [b""] * 3
    for connection in held:
        connection.close()
    assert not [record for record in caplog.records if record.exc_info]
