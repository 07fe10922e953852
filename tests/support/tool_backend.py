"""A tool back-end as somebody writes one who knows the public guide alone: `python tool_backend.py SECRET LOG`.

Prints its port. Refuses what is not signed, fresh and of the known algorithm; is busy (503) for the first
`args.busy` attempts of a call; does each call once, by its idempotency key. LOG gets a line per accepted request.
"""

import hashlib
import hmac
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET, LOG = sys.argv[1].encode(), Path(sys.argv[2])
TOLERANCE_S = 300
attempts: dict[str, int] = {}
done: dict[str, dict[str, object]] = {}


class Backend(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.is_signed(body):
            self.reply(401, {"error": "invalid signature"})
            return
        with LOG.open("a") as log:
            headers = {name.lower(): value for name, value in self.headers.items()}
            log.write(json.dumps({"headers": headers, "body": body.decode()}) + "\n")
        call = json.loads(body)
        key = call["idempotency_key"]
        attempts[key] = attempts.get(key, 0) + 1
        if attempts[key] <= call["args"].get("busy", 0):
            self.reply(503, {"error": "busy"}, {"Retry-After": "1.1"})
            return
        self.reply(200, done.setdefault(key, {"sent": True, "number": len(done) + 1}))

    def is_signed(self, body: bytes) -> bool:
        if self.headers.get("X-OnceOnly-Signature-Alg") != "hmac_sha256":
            return False
        timestamp = self.headers.get("X-OnceOnly-Timestamp", "")
        if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
            return False
        expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected, self.headers.get("X-OnceOnly-Signature", ""))

    def reply(self, status: int, document: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
print(server.server_address[1], flush=True)
server.serve_forever()
