"""HTTP/1.1 on the wire: nothing is ever upgraded, and what is no HTTP is refused in the contract's shape."""

from __future__ import annotations

import json
from collections.abc import Sequence

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from onceonly_jobs.api.request_ids import request_id_of

Headers = Sequence[tuple[bytes, bytes]]

MALFORMED = json.dumps({"detail": "the request is not valid HTTP"}).encode()


class Protocol(HttpToolsProtocol):
    """uvicorn's, which reads what offers an upgrade (`h2c`, `websocket`) as if it did not, and refuses in turn."""

    _refusal: bytes | None = None
    """What is said last, when all that was asked for before is answered; then nothing more is read."""

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        left: bytes | memoryview = data
        try:
            while left:
                left = self._read(left)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")

    def _read(self, data: bytes | memoryview) -> bytes | memoryview:
        """What is left to be read: whatever comes behind the head of an offer."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._read_as_plain()
            return memoryview(data)[offer.args[0] :]
        return b""

    def _should_upgrade(self) -> bool:
        return True  # so that uvicorn begins nothing yet

    def _read_as_plain(self) -> None:
        """Read the head again, without the offer: the parser would take no body for one that has it."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("an upgrade by itself")
        head = [b"%s %s HTTP/%s\r\n" % (method, self.url, version)]
        head += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"".join([*head, b"\r\n"]))

    def send_400_response(self, msg: str) -> None:
        """Refuse what was read last, and close. `msg` is uvicorn's text for it."""
        self._refusal = _refusal(self.server_state.default_headers, self.headers)
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            waiting = cycle is not None and not cycle.response_complete
        elif self.pipeline:  # its body is broken, and nobody has begun with it
            self.pipeline.popleft()
            waiting = True
        else:
            waiting = False
            cycle.disconnected = True  # for whoever is at work on it
            cycle.message_event.set()
            if cycle.response_started:
                self._refusal = b""
        if not waiting:
            self._refuse()

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and self._refusal is not None:
            self._refuse()

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self._refusal or b"")
            self.transport.close()


def _refusal(defaults: Headers, sent: Headers) -> bytes:
    request_id = next((value for name, value in sent if name == b"x-request-id"), b"").decode("latin-1")
    headers = [
        *defaults,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(MALFORMED)),
        (b"x-request-id", request_id_of(request_id).encode()),
        (b"connection", b"close"),
    ]
    return b"".join([STATUS_LINE[400], *(b"%s: %s\r\n" % header for header in headers), b"\r\n", MALFORMED])
