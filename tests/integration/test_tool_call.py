"""Calls of tools over real HTTP: what is sent, what is repeated, how long it takes, where it may go."""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from support import tool_server as does
from support.tool_server import ToolServer, refused_url

from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.domain.signatures import verify
from onceonly_jobs.worker import tool_wire
from onceonly_jobs.worker.addresses import Forbidden, check, public_address
from onceonly_jobs.worker.outcomes import Fail
from onceonly_jobs.worker.tool_call import ToolCall, ToolOutcome, ToolSpec, call_tool

SECRET = "supersecret_key"
HERE = Allowed.parse("loopback")
CALL = ToolCall(
    agent_id="support_bot",
    tool="send_email",
    args={"to": "jürgen@example.com", "n": 1.0, "a": [None]},
    spend_usd=0.001,
    run_id=None,
    request_id="req_1",
    idempotency_key="tc_0123abc",
)
REPEATABLE = [Effect.READ, Effect.IDEMPOTENT]
SINGLE = [Effect.RECONCILABLE, Effect.IRREVERSIBLE]


@pytest.fixture
def tool() -> Iterator[ToolServer]:
    with ToolServer() as server:
        yield server


class Pauses(list[float]):
    """Takes the place of sleep, and remembers how long it was asked to."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def run(url: str, call: ToolCall = CALL, *, allowed: Allowed = HERE, **spec: Any) -> ToolOutcome:
    pauses = spec.pop("sleep", Pauses())
    stop = spec.pop("stop", lambda: False)
    return call_tool(
        ToolSpec("send_email", url, SECRET, **{"timeout_ms": 30_000, **spec}),
        call,
        allowed=allowed,
        sleep=pauses,
        stop=stop,
    )


# What is sent


def test_the_tool_gets_the_call_signed_over_the_very_bytes(tool: ToolServer) -> None:
    outcome = run(tool.url)
    (got,) = tool.requests
    verify(SECRET, got.body, got.headers, time.time())
    assert got.path == "/tool"
    assert got.headers["host"] == f"127.0.0.1:{tool.port}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-onceonly-idempotency-key"] == got.headers["webhook-id"] == "tc_0123abc"
    assert got.json == {
        "agent_id": "support_bot",
        "tool": "send_email",
        "args": {"to": "jürgen@example.com", "n": 1.0, "a": [None]},
        "spend_usd": 0.001,
        "run_id": None,
        "request_id": "req_1",
        "idempotency_key": "tc_0123abc",
    }
    assert b": " not in got.body, "compact"
    assert "jürgen".encode() in got.body, "UTF-8"
    assert (outcome.kind, outcome.result, outcome.status, outcome.attempts) == (
        "executed",
        {"ok": True},
        200,
        1,
    )
    assert (outcome.sent, outcome.unknown, outcome.cost_usd) == (True, False, None)


def test_each_attempt_has_a_fresh_timestamp_and_the_same_key(tool: ToolServer) -> None:
    tool.script(does.status(500))
    run(tool.url, sleep=lambda _: time.sleep(1.1))
    first, second = tool.requests
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    assert first.body == second.body
    for got in tool.requests:
        verify(SECRET, got.body, got.headers, got.at)


def test_a_secret_is_never_shown() -> None:
    assert SECRET not in repr(ToolSpec("t", "http://x/", SECRET))


def test_proxies_of_the_environment_are_not_used(tool: ToolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name again, where nobody checks the address."""
    with ToolServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert run(tool.url).kind == "executed"
    assert (len(tool.requests), len(proxy.requests)) == (1, 0)


@pytest.mark.parametrize("args", [{"x": float("nan")}, {"x": object()}])
def test_arguments_that_are_not_json_are_sent_nowhere(tool: ToolServer, args: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        run(tool.url, replace(CALL, args=args))
    assert tool.requests == []


# What comes back


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (b'{"sent": true, "id": "\xc3\xa9"}', {"sent": True, "id": "é"}),
        (b"[1, 2]", {"data": [1, 2]}),
        (b'"text"', {"data": "text"}),
        (b"null", {"data": None}),
        (b"0", {"data": 0}),
        (b"", {}),
        (b" \r\n", {}),
        (b"<p>done</p>", {"data": "<p>done</p>"}),
        (b"\xff\x00ok", {"data": "\ufffdok"}),
        (b'{"a\\u0000": ["b\\u0000", "\\ud800"], "n": 1}', {"a": ["b", "?"], "n": 1}),
        (b'{"n": NaN}', {"data": '{"n": NaN}'}),
        (b'{"n": 1e999}', {"data": '{"n": 1e999}'}),
        (b"1" * 5000, {"data": "1" * 5000}),
        (b"[" * 70 + b"]" * 70, {"data": "[" * 70 + "]" * 70}),
        (b"[" * 90_000, {"data": "[" * 90_000}),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_whatever_a_tool_answers_becomes_a_result(
    tool: ToolServer, body: bytes, result: dict[str, Any]
) -> None:
    tool.script(does.status(200, body))
    outcome = run(tool.url)
    assert (outcome.kind, outcome.result) == ("executed", result)


def test_no_content_is_success(tool: ToolServer) -> None:
    tool.script(does.status(204))
    assert run(tool.url).result == {}


@pytest.mark.parametrize(
    "behaviour", [does.status(200, b"x" * 1_048_577), does.endless], ids=["a byte", "endless"]
)
def test_an_answer_that_is_too_large_is_success_with_an_excerpt(
    tool: ToolServer, behaviour: does.Behaviour
) -> None:
    """The work was done, so calling again is no remedy. No more than the limit is read."""
    tool.script(behaviour)
    outcome = run(tool.url)
    assert (outcome.kind, outcome.attempts) == ("executed", 1)
    assert outcome.result == {"data": "x" * 4096, "truncated": True}


def test_an_answer_that_grows_as_json_is_cut_as_well(tool: ToolServer) -> None:
    tool.script(does.status(200, b'"' * 1_000_000))
    assert run(tool.url).result == {"data": '"' * 4096, "truncated": True}


def test_a_refusal_is_told_with_its_reason(tool: ToolServer) -> None:
    tool.script(does.status(422, b'{"error": "no such user"}'))
    outcome = run(tool.url)
    assert (outcome.kind, outcome.status, outcome.attempts, outcome.unknown) == ("tool_error", 422, 1, False)
    assert outcome.result == {
        "error": "tool_error",
        "status": 422,
        "message": 'the tool answered 422: {"error": "no such user"}',
    }


def test_a_refusal_whose_text_breaks_off_is_a_refusal_still(tool: ToolServer) -> None:
    tool.script(does.broken_off(403))
    outcome = run(tool.url, effect=Effect.IRREVERSIBLE)
    assert (outcome.status, outcome.attempts, outcome.unknown) == (403, 1, False)


@pytest.mark.parametrize(
    ("behaviour", "cost"),
    [
        (does.ok({"cost_usd": 0.0123}), 0.0123),
        (does.ok({"cost_usd": 0}), 0),
        (does.ok({}, X_OnceOnly_Cost_Usd="1.5"), 1.5),
        (does.ok({"cost_usd": 9}, X_OnceOnly_Cost_Usd="1.5"), 1.5),
        (does.status(200, b"plain", X_OnceOnly_Cost_Usd="0.25"), 0.25),
        (does.status(422, b'{"cost_usd": 0.5}'), 0.5),
        (does.ok({"cost_usd": -1}), None),
        (does.ok({"cost_usd": 1e10}), None),
        (does.ok({"cost_usd": "0.5"}), None),
        (does.ok({"cost_usd": True}), None),
        (does.status(200, b'{"cost_usd": NaN}'), None),
        (does.status(200, b'{"cost_usd": 1' + b"0" * 400 + b"}"), None),
        (does.ok([{"cost_usd": 1}]), None),
        (does.ok({}, X_OnceOnly_Cost_Usd="free"), None),
        (does.ok({}, X_OnceOnly_Cost_Usd="inf"), None),
    ],
)
def test_a_tool_may_say_what_the_call_cost(
    tool: ToolServer, behaviour: does.Behaviour, cost: float | None
) -> None:
    tool.script(behaviour)
    assert run(tool.url).cost_usd == cost


# What is repeated

UNANSWERED = {"500": does.status(500), "reset": does.reset, "broken off": does.broken_off()}


@pytest.mark.parametrize("effect", REPEATABLE)
@pytest.mark.parametrize("trouble", [*UNANSWERED, "429"])
def test_a_repeatable_call_is_tried_again(tool: ToolServer, effect: Effect, trouble: str) -> None:
    tool.script(UNANSWERED.get(trouble, does.status(429)))
    outcome = run(tool.url, effect=effect)
    assert (outcome.kind, outcome.attempts, len(tool.requests)) == ("executed", 2, 2)


@pytest.mark.parametrize("effect", SINGLE)
@pytest.mark.parametrize("trouble", UNANSWERED)
def test_any_other_call_is_sent_once_and_held(tool: ToolServer, effect: Effect, trouble: str) -> None:
    tool.script(UNANSWERED[trouble])
    outcome = run(tool.url, effect=effect, max_retries=10)
    assert (outcome.kind, outcome.sent, outcome.unknown, outcome.attempts) == ("tool_error", True, True, 1)
    assert outcome.status == (500 if trouble == "500" else None)
    assert len(tool.requests) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_there_are_as_many_retries_as_the_tool_has(tool: ToolServer, retries: int) -> None:
    tool.script(*[does.status(503)] * 9)
    outcome = run(tool.url, max_retries=retries)
    assert (outcome.attempts, len(tool.requests)) == (retries + 1, retries + 1)
    assert (outcome.kind, outcome.status, outcome.sent, outcome.unknown) == ("tool_error", 503, True, False)


@pytest.mark.parametrize("code", [400, 401, 404, 409, 422])
@pytest.mark.parametrize("effect", Effect)
def test_a_refused_call_is_not_repeated_and_not_held(tool: ToolServer, code: int, effect: Effect) -> None:
    tool.script(does.status(code))
    outcome = run(tool.url, effect=effect)
    assert (outcome.attempts, outcome.sent, outcome.unknown) == (1, True, False)


@pytest.mark.parametrize("effect", Effect)
def test_a_call_that_finds_nobody_was_not_sent(effect: Effect) -> None:
    outcome = run(refused_url(), effect=effect)
    assert (outcome.kind, outcome.sent, outcome.unknown, outcome.attempts) == ("tool_error", False, False, 3)
    assert outcome.result["status"] is None
    assert "not reached: ConnectError" in outcome.result["message"]


def test_a_name_that_does_not_exist_was_not_sent() -> None:
    outcome = run("http://no-such-host.invalid/", timeout_ms=5000, max_retries=1)
    assert (outcome.kind, outcome.sent, outcome.unknown, outcome.attempts) == ("tool_error", False, False, 2)


def test_one_attempt_that_was_sent_is_enough_to_count_as_sent(tool: ToolServer) -> None:
    """A reservation may be given back only when provably nothing was sent in any attempt."""
    url = tool.url
    tool.script(does.status(500))
    outcome = run(url, sleep=lambda _: tool.__exit__())
    assert (outcome.attempts, outcome.status, outcome.sent) == (3, None, True)


def test_pauses_grow_and_a_tool_may_ask_for_longer_ones(tool: ToolServer) -> None:
    tool.script(
        *[does.status(500)] * 3,
        does.status(429, Retry_After="7"),
        does.status(503, Retry_After="3600"),
        does.status(503, Retry_After="tomorrow"),
        does.status(503, Retry_After="nan"),
    )
    pauses = Pauses()
    assert run(tool.url, sleep=pauses, max_retries=10).kind == "executed"
    for pause, longest in zip(pauses[:3], (0.5, 1, 2), strict=True):
        assert longest / 2 <= pause < longest
    assert pauses[3:5] == [7, 30]
    assert all(7 <= pause < 15 for pause in pauses[5:])
    assert len(pauses) == 7


@pytest.mark.parametrize("calls_before", [0, 1])
def test_there_is_no_retry_after_a_stop(tool: ToolServer, calls_before: int) -> None:
    """Before the pause, and after it: the kill switch may be thrown while this call waits."""
    tool.script(does.status(500))
    asked = iter([False] * calls_before + [True])
    pauses = Pauses()
    outcome = run(tool.url, sleep=pauses, stop=lambda: next(asked))
    assert (outcome.kind, outcome.attempts, len(tool.requests), len(pauses)) == (
        "tool_error",
        1,
        1,
        calls_before,
    )


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(tool: ToolServer, code: int) -> None:
    with ToolServer() as other:
        tool.script(does.redirect(other.url, code))
        outcome = run(tool.url)
        assert other.requests == []
    assert (outcome.kind, outcome.status, outcome.attempts) == ("tool_error", code, 1)


# How long it takes


@pytest.mark.parametrize(
    "behaviour",
    [does.after(60, does.ok()), does.drip(), does.drip_head(), does.drip(500)],
    ids=["silent", "body drips", "headers drip", "error drips"],
)
def test_the_time_is_for_the_whole_attempt(tool: ToolServer, behaviour: does.Behaviour) -> None:
    """A server that sends a byte now and then would keep a time-out per read from ever striking."""
    tool.script(behaviour)
    outcome = run(tool.url, timeout_ms=1000, effect=Effect.IRREVERSIBLE)
    assert (outcome.kind, outcome.unknown, outcome.attempts) == ("tool_error", True, 1)
    assert 950 < outcome.latency_ms < 60_000


def test_a_tool_that_reads_slowly_has_no_more_time(tool: ToolServer) -> None:
    """The request is larger than the buffers between; the other side takes a little of it now and then."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        over = threading.Event()

        def sip() -> None:
            connection, _ = server.accept()
            with connection:
                while not over.wait(0.05):
                    connection.recv(4096)

        threading.Thread(target=sip, daemon=True).start()
        call = replace(CALL, args={"text": "x" * 30_000_000})
        outcome = run(f"http://127.0.0.1:{server.getsockname()[1]}/", call, timeout_ms=1000, max_retries=0)
        over.set()
    assert (outcome.kind, outcome.sent) == ("tool_error", True)


def test_a_connection_that_is_not_accepted_was_not_sent() -> None:
    """A full backlog: the SYN is dropped, as by a firewall."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        time.sleep(0.1)
        started = time.monotonic()
        outcome = run(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_ms=400, max_retries=1)
        for filler in fillers:
            filler.close()
    assert time.monotonic() - started > 0.7
    assert (outcome.sent, outcome.attempts) == (False, 2)
    assert "ConnectTimeout" in outcome.result["message"]


# Where it may go


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "017700000001",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "168.63.129.16",
        "10.0.0.1",
    ],
)
def test_a_tool_is_no_way_into_this_network(tool: ToolServer, host: str) -> None:
    outcome = run(f"http://{host}:{tool.port}/", allowed=Allowed())
    assert (outcome.kind, outcome.sent, outcome.unknown, outcome.attempts) == ("tool_error", False, False, 1)
    assert "is not a public address" in outcome.result["message"]
    assert tool.requests == []


def test_opening_loopback_opens_nothing_else() -> None:
    for host in ("169.254.169.254", "10.0.0.1", "192.168.0.1"):
        assert "is not a public address" in run(f"http://{host}/").result["message"]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "http://",
        "/tool",
        "http://a:b/",
        "http://\uff11\uff12\uff17.0.0.1/",
    ],
)
def test_what_is_no_http_url_is_called_nowhere(url: str) -> None:
    outcome = run(url)
    assert (outcome.kind, outcome.sent, outcome.attempts) == ("tool_error", False, 1)


def test_one_private_address_among_public_ones_is_enough_to_refuse_a_name() -> None:
    with pytest.raises(Forbidden):
        check("twofaced.example", ["93.184.216.34", "127.0.0.1"], Allowed())
    check("twofaced.example", ["93.184.216.34", "127.0.0.1"], HERE)


def test_the_http_request_job_is_refused_the_same_addresses() -> None:
    with pytest.raises(Fail, match="forbidden_target"):
        public_address("localhost", 80)


def test_a_name_that_takes_too_long_to_resolve_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """getaddrinfo has no time-out. Stands in for it here: no test can make a machine's DNS slow."""
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) and [])
    outcome = run("http://slow.example/", timeout_ms=300, max_retries=0)
    released.set()
    assert (outcome.kind, outcome.sent) == ("tool_error", False)
    assert "slow.example: the name was not resolved in time" in outcome.result["message"]


def test_each_address_of_a_name_is_tried(tool: ToolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where localhost is ::1 as well, and nobody listens there; not every machine has such a name."""
    both = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: both if host == "both.example" else real(host, *a, **k)
    )
    assert run(f"http://both.example:{tool.port}/x").kind == "executed"
    assert tool.requests[0].headers["host"] == f"both.example:{tool.port}"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for the name localhost, and for no address."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "localhost.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_has_to_be_the_name_s(
    certificate: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to an address that was checked; TLS asks for, and checks, the name."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tool_wire._tls.cache_clear()
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with ToolServer(tls=context) as tool:
        outcome = run(f"https://localhost:{tool.port}/x", max_retries=0)
        by_address = run(tool.url, max_retries=0)
    tool_wire._tls.cache_clear()
    assert "localhost" in names
    assert (outcome.kind, outcome.sent) == (("executed", True) if trusted else ("tool_error", False))
    assert (by_address.kind, by_address.sent) == ("tool_error", False)


# The guide

GUIDE = Path(__file__).parents[2] / "docs/TOOL_BACKENDS.md"


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has who types all Python of the guide into one file."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "guide"}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)
    return names


@pytest.fixture
def guided_tool(guide: dict[str, Any]) -> Iterator[str]:
    server = guide["server"](port=0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_a_tool_written_after_the_guide_accepts_our_calls(guide: dict[str, Any], guided_tool: str) -> None:
    sent = guide["SENT"]
    first, repeat = run(guided_tool), run(guided_tool)
    assert first.kind == "executed"
    assert first.result == repeat.result == {"sent": True, "to": "jürgen@example.com", "cost_usd": 0.001}
    assert first.cost_usd == 0.001
    assert sent == ["jürgen@example.com"], "the repeat had no effect of its own"
    other = run(guided_tool, replace(CALL, idempotency_key="tc_other"))
    assert (other.kind, len(sent)) == ("executed", 2)


def test_a_tool_written_after_the_guide_refuses_strangers(guide: dict[str, Any], guided_tool: str) -> None:
    outcome = call_tool(ToolSpec("send_email", guided_tool, "not the secret"), CALL, allowed=HERE)
    assert (outcome.kind, outcome.status, outcome.attempts) == ("tool_error", 401, 1)
    assert guide["SENT"] == []


def test_a_tool_written_after_the_guide_says_what_is_wrong(guided_tool: str) -> None:
    outcome = run(guided_tool, replace(CALL, args={}))
    assert (outcome.kind, outcome.status) == ("tool_error", 422)
    assert "args.to" in outcome.result["message"]


def test_both_ways_of_the_guide_to_verify_agree(guide: dict[str, Any], tool: ToolServer) -> None:
    run(tool.url)
    (got,) = tool.requests
    verified = [guide["verify"], guide["verify_with_library"]]
    for check_it in verified:
        check_it(SECRET, got.headers, got.body)
        with pytest.raises((PermissionError, standardwebhooks.WebhookVerificationError)):
            check_it(SECRET, got.headers, got.body + b" ")
        with pytest.raises((PermissionError, standardwebhooks.WebhookVerificationError)):
            check_it("another_secret", got.headers, got.body)
    old = {**got.headers, "x-onceonly-timestamp": str(int(got.at) - 301)}
    with pytest.raises(PermissionError):
        guide["verify"](SECRET, old, got.body)


def test_the_guide_s_example_of_a_request_is_what_is_sent(tool: ToolServer) -> None:
    shown = re.search(r"^```http\n(.*?)\n\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert shown is not None
    run(tool.url)
    (got,) = tool.requests
    names = {line.split(":")[0].lower() for line in shown[1].splitlines()[1:]}
    assert names == set(got.headers)
    assert set(json.loads(shown[2])) == set(got.json)


def test_nothing_of_a_call_is_logged(tool: ToolServer, caplog: pytest.LogCaptureFixture) -> None:
    """Arguments and signatures are the tenant's own."""
    with caplog.at_level(logging.INFO):
        run(tool.url)
    assert caplog.text == ""
