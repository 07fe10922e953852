"""HTTP/1.1 on the wire: nothing is ever upgraded."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """uvicorn's, which reads what offers an upgrade (`h2c`, `websocket`) as if it did not."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        left: bytes | memoryview = data
        try:
            while left:
                left = self._read(left)
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

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
