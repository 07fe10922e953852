"""The built-in jobs, against an HTTP server of this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support.claims import Told, make_claim, make_context

from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.store.usage import Counters
from onceonly_jobs.worker.addresses import is_public, public_address
from onceonly_jobs.worker.chat import Llm, ask, cost_usd
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.handlers import summary
from onceonly_jobs.worker.http_request import MAX_BODY_BYTES, send
from onceonly_jobs.worker.outcomes import Fail, Retry

Answer = tuple[int, dict[str, str], bytes]

LOOPBACK = Allowed.parse("loopback")


class Server:
    """Answers what a test lays ready, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answer: Answer = (200, {}, b"")
        self.received: list[tuple[str, str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                sent = {name.lower(): value for name, value in self.headers.items()}
                outer.received.append((self.command, self.path, sent, self.rfile.read(length)))
                status, headers, body = outer.answer
                if status == 0:
                    self.connection.close()
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        content = {"Content-Type": "application/json", **headers}
        self.answer = (status, content, json.dumps(value).encode())

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def context(told: Told | None = None, **metadata: Any) -> JobContext:
    return make_context(make_claim(metadata=metadata), told=told)


# chat

COMPLETION = {
    "model": "m-1",
    "choices": [{"message": {"role": "assistant", "content": "four"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500, "details": {"x": 1}},
}


@pytest.fixture
def llm(server: Server) -> Llm:
    return Llm(f"{server.url}/v1", "sk-1", "m-default")


def test_a_prompt_is_answered_with_tokens_and_cost(server: Server, llm: Llm) -> None:
    server.json(COMPLETION)
    told = Told()
    prices = {"input": 0.15, "output": 0.6}
    asked = context(told, prompt="2+2?", system="be brief", temperature=0, prices_usd_per_million=prices)
    assert ask(asked, llm) == {
        "text": "four",
        "finish_reason": "stop",
        "model": "m-1",
        "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500},
        "cost_usd": 0.00045,
    }
    ((method, path, headers, body),) = server.received
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert headers["authorization"] == "Bearer sk-1"
    assert headers["idempotency-key"] == asked.idempotency_key("chat")
    assert json.loads(body) == {
        "model": "m-default",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}],
        "temperature": 0,
    }
    assert told.notes[0][2]["total_tokens"] == 1500


def test_messages_and_model_are_taken_from_the_payload(server: Server, llm: Llm) -> None:
    server.json(COMPLETION)
    messages = [{"role": "user", "content": "hi"}]
    ask(context(model="wrong", payload={"messages": messages, "model": "m-2"}), llm)
    assert json.loads(server.received[0][3]) == {"model": "m-2", "messages": messages}


@pytest.mark.parametrize(
    ("status", "headers", "delay_s"), [(429, {"Retry-After": "7"}, 7.0), (503, {}, None)]
)
def test_a_busy_model_is_asked_again(
    server: Server, llm: Llm, status: int, headers: dict[str, str], delay_s: float | None
) -> None:
    server.json({}, status, **headers)
    with pytest.raises(Retry) as raised:
        ask(context(prompt="x"), llm)
    assert raised.value.delay_s == delay_s


def test_a_connection_that_breaks_is_tried_again(server: Server, llm: Llm) -> None:
    server.answer = (0, {}, b"")
    with pytest.raises(Retry):
        ask(context(prompt="x"), llm)


def test_a_refused_question_fails_at_once(server: Server, llm: Llm) -> None:
    server.json({"error": {"message": "no such model"}}, 404)
    with pytest.raises(Fail, match="no such model") as raised:
        ask(context(prompt="x"), llm)
    assert raised.value.code == "llm_error"


@pytest.mark.parametrize("answer", [[], {}, {"choices": []}, {"choices": [{"message": None}]}, "text"])
def test_an_answer_without_a_choice_fails(server: Server, llm: Llm, answer: Any) -> None:
    server.json(answer)
    with pytest.raises(Fail) as raised:
        ask(context(prompt="x"), llm)
    assert raised.value.code == "llm_error"


@pytest.mark.parametrize("metadata", [{}, {"prompt": 5}, {"messages": []}, {"messages": "hi"}])
def test_a_chat_needs_something_to_say(llm: Llm, metadata: dict[str, Any]) -> None:
    with pytest.raises(Fail) as raised:
        ask(context(**metadata), llm)
    assert raised.value.code == "bad_payload"


@pytest.mark.parametrize("prices", [None, {}, {"input": 1}, {"input": "x", "output": 1}, "cheap"])
def test_cost_is_unknown_without_prices(prices: Any) -> None:
    assert cost_usd({"prompt_tokens": 1, "completion_tokens": 1}, prices) is None
    assert cost_usd({}, {"input": 1, "output": 1}) is None


# http_request


def request(server: Server, allowed: Allowed = LOOPBACK, **payload: Any) -> dict[str, Any]:
    asked = {"url": f"{server.url}/path?q=1", **payload}
    return send(context(payload=asked), allowed=allowed)


def test_an_answer_is_the_result(server: Server) -> None:
    server.json({"ok": True}, 201, ETag="e1", **{"X-Secret": "s"})
    result = request(server, method="POST", json={"a": 1}, headers={"X-Own": "1"})
    assert (result["status"], result["json"]) == (201, {"ok": True})
    assert result["headers"]["etag"] == "e1"
    assert "x-secret" not in result["headers"]
    ((method, path, headers, body),) = server.received
    assert (method, path, json.loads(body)) == ("POST", "/path?q=1", {"a": 1})
    assert headers["idempotency-key"] == context().idempotency_key("http_request")
    assert headers["x-own"] == "1"


def test_what_the_other_side_refuses_is_an_answer_too(server: Server) -> None:
    server.answer = (404, {"Content-Type": "text/plain"}, b"none\x00")
    result = request(server)
    assert (result["status"], result["body"], result["truncated"]) == (404, "none", False)


def test_a_redirect_is_shown_not_followed(server: Server) -> None:
    server.answer = (302, {"Location": "http://169.254.169.254/"}, b"")
    assert request(server)["headers"]["location"] == "http://169.254.169.254/"
    assert len(server.received) == 1


def test_a_long_body_is_cut(server: Server) -> None:
    server.answer = (200, {"Content-Type": "application/json"}, b"1" * (MAX_BODY_BYTES + 1))
    result = request(server)
    assert (len(result["body"]), result["truncated"]) == (MAX_BODY_BYTES, True)


@pytest.mark.parametrize("body", [b"{", b"NaN", b'{"a": 1e999}', b'"\\ud800"', b"[" * 2000 + b"]" * 2000])
def test_json_that_can_not_be_kept_is_text(server: Server, body: bytes) -> None:
    server.answer = (200, {"Content-Type": "application/json"}, body)
    assert request(server)["body"] == body.decode()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_broken_other_side_is_tried_again(server: Server, status: int) -> None:
    server.answer = (status, {}, b"")
    with pytest.raises(Retry):
        request(server, method="POST")


def test_no_connection_is_tried_again() -> None:
    with pytest.raises(Retry):
        send(context(payload={"url": "http://127.0.0.1:1/"}), allowed=LOOPBACK)


def test_what_may_have_been_carried_out_is_not_repeated(server: Server) -> None:
    server.answer = (0, {}, b"")
    with pytest.raises(Fail) as raised:
        request(server, method="POST")
    assert raised.value.code == "outcome_unknown"
    with pytest.raises(Retry):
        request(server, method="GET")


@pytest.mark.parametrize(
    "payload",
    [
        {"url": "ftp://example.com/"},
        {"url": "example.com"},
        {"url": "http://"},
        {"url": 5},
        {},
        {"url": "http://a/", "method": "TRACE"},
        {"url": "http://a/", "headers": {"A": "b\r\nc: d"}},
        {"url": "http://a/", "headers": {"A": 5}},
        {"url": "http://a/", "timeout_s": 0},
        {"url": "http://[::"},
    ],
)
def test_what_is_no_request_fails_at_once(payload: dict[str, Any]) -> None:
    with pytest.raises(Fail) as raised:
        send(context(payload={"method": "GET", **payload}), allowed=LOOPBACK)
    assert raised.value.code == "bad_payload"


def test_this_network_is_out_of_reach(server: Server) -> None:
    with pytest.raises(Fail) as raised:
        request(server, allowed=Allowed())
    assert raised.value.code == "forbidden_target"
    assert server.received == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.1.2.3",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "224.0.0.1",
        "2130706433",
        "0x7f.1",
    ],
)
def test_an_address_of_this_network_has_many_spellings(host: str) -> None:
    with pytest.raises(Fail):
        public_address(host, 80)


def test_a_public_address_is_one() -> None:
    assert public_address("93.184.215.14", 80) == "93.184.215.14"
    import ipaddress

    assert is_public(ipaddress.ip_address("2606:4700::1"))


# daily_summary


def test_a_day_is_summed_by_kind() -> None:
    used = {Kind.AI: Counters(usage=2, requests_total=5, blocked_total=1, charged_total=2, polling_total=2)}
    result = summary(date(2026, 3, 1), used)
    assert result["totals"]["ai"]["usage"] == 2
    assert result["totals"]["make"]["requests_total"] == 0
    assert result["text"] == (
        "2026-03-01: make: 0 used in 0 requests (0 blocked); ai: 2 used in 5 requests (1 blocked)"
    )
