"""Whatever is sent, it is answered: never a 5xx, and every refusal says what is wrong and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from onceonly_jobs.config import Settings
    from tests.integration.conftest import Api, NewApi

MAX_BODY = 2_097_152
DEPTH = 10_000
MAX_DEPTH = 64

# Every POST: what it needs, and all its fields by type.
KEYED = {"key": str, "ttl": int, "metadata": dict, "fingerprint": str}
HELD = {"key": str, "lease_id": str}
POSTS: dict[str, tuple[dict[str, Any], dict[str, type]]] = {
    "/check-lock": ({"key": "k"}, KEYED),
    "/ai/lease": ({"key": "k"}, KEYED),
    "/ai/run": ({"key": "k"}, KEYED),
    "/ai/run#tool": (
        {"agent_id": "a", "tool": "t"},
        {"agent_id": str, "tool": str, "args": dict, "spend_usd": float},
    ),
    "/ai/extend": ({"key": "k", "lease_id": "l"}, {**HELD, "ttl": int}),
    "/ai/complete": ({"key": "k", "lease_id": "l"}, {**HELD, "result": dict, "result_hash": str}),
    "/ai/fail": (
        {"key": "k", "lease_id": "l", "error_code": "e"},
        {**HELD, "error_code": str, "error_hash": str},
    ),
    "/ai/cancel": ({"key": "k", "lease_id": "l"}, {**HELD, "reason": str}),
    "/events": (
        {"run_id": "r", "type": "t"},
        {
            **dict.fromkeys(("run_id", "type", "status", "step", "tool", "req_id"), str),
            **dict.fromkeys(("lease_id", "agent_id", "message"), str),
            "ts": int,
            "duration_ms": int,
            "data": dict,
        },
    ),
    "/me/notifications": (
        {"email_notifications_enabled": True},
        {
            "email_notifications_enabled": bool,
            "tool_error_notifications_enabled": bool,
            "run_failure_notifications_enabled": bool,
        },
    ),
    "/schedules": (
        {"name": "s", "every_s": 3600},
        {
            **dict.fromkeys(("name", "task", "cron", "at", "tz", "start_at", "agent_id", "queue"), str),
            **dict.fromkeys(("misfire", "overlap"), str),
            **dict.fromkeys(("every_s", "ttl", "misfire_grace_s", "catch_up_limit", "jitter_s"), int),
            "payload": dict,
            "metadata": dict,
            "paused": bool,
        },
    ),
    "/schedules/s/backfill": (
        {"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z"},
        {"from": str, "to": str},
    ),
}
PATHS = sorted({path.partition("#")[0] for path in POSTS})
FIELDS = [(path, field) for path, (_, fields) in POSTS.items() for field in fields]
TEXT_FIELDS = [(path, field) for path, field in FIELDS if POSTS[path][1][field] is str]
OBJECT_FIELDS = [(path, field) for path, field in FIELDS if POSTS[path][1][field] is dict]

# Every GET, with its parameters.
GETS: dict[str, dict[str, str]] = {
    "/ai/status": {"key": "k", "wait": "0"},
    "/ai/result": {"key": "k", "wait": "0"},
    "/usage": {"kind": "ai"},
    "/metrics": {"from_day": "2026-03-01", "to_day": "2026-03-02"},
    "/events": {"limit": "1", "offset": "0"},
    "/runs": {"limit": "1", "offset": "0", "q": "r"},
    "/runs/x": {"limit": "1", "offset": "0"},
    "/schedules": {"limit": "1", "offset": "0"},
    "/schedules/x/next": {"n": "1"},
    "/schedules/x/ticks": {"limit": "1", "offset": "0"},
}

SAMPLES: dict[type, Any] = {str: "1", int: 1, float: 1.5, bool: True, dict: {}, list: []}


def strict_json(text: bytes) -> Any:
    """What the text says, if it is JSON to the letter: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def told(answer: httpx.Response) -> Any:
    """The `detail` of a refusal, after a look at its form. None for what was accepted."""
    assert answer.status_code < 500, answer.text
    assert not 300 <= answer.status_code < 400, answer.headers
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-Id"]
    body = strict_json(answer.content)
    if answer.status_code < 300:
        return None
    assert set(body) == {"detail"}
    detail = body["detail"]
    assert detail
    assert len(answer.content) < 20_000, "an error must not send everything back"
    if answer.status_code == 422:
        for problem in detail:
            assert set(problem) == {"type", "loc", "msg", "input"}
            assert problem["msg"]
            assert problem["loc"]
    elif isinstance(detail, dict):
        assert detail["error"]
    else:
        assert isinstance(detail, str)
    return detail


class Barrage:
    """Requests of one tenant, each of which is looked at. Afterwards the server must stand and nothing be left."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.accepted = 0

    def send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        answer = self.api.request(method, path.partition("#")[0], **sent)
        told(answer)
        if method == "POST" and answer.status_code < 300:
            self.accepted += 1
        return answer

    def post(self, path: str, content: bytes | str, **sent: Any) -> httpx.Response:
        return self.send("POST", path, content=content, **sent)

    def post_json(self, path: str, body: Any) -> httpx.Response:
        """Escapes all but ASCII, so that anything can be sent."""
        return self.post(path, json.dumps(body))

    def refused(self, path: str, body: Any, field: str) -> None:
        """422, and the field is named."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        answer = self.post(path, content)
        assert answer.status_code == 422, f"{content[:200]!r}: {answer.text}"
        named = {str(part) for problem in answer.json()["detail"] for part in problem["loc"]}
        assert field in named, answer.text

    def check(self) -> None:
        assert self.api.get("/me").status_code == 200
        left = {table: self.api.rows(table) for table in ("locks", "runs", "run_events", "timelines")}
        assert max(left.values()) <= 2 * self.accepted, left


@pytest.fixture
def barrage(api: Api) -> Iterator[Barrage]:
    barrage = Barrage(api)
    yield barrage
    barrage.check()


# Types


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_every_field_of_another_type_is_refused_by_name(barrage: Barrage, path: str, field: str) -> None:
    needed, fields = POSTS[path]
    fitting = (int, float) if fields[field] is float else (fields[field],)
    for wrong in [value for kind, value in SAMPLES.items() if kind not in fitting]:
        barrage.refused(path, needed | {field: wrong}, field)
    if field in needed and path not in ("/ai/run", "/ai/run#tool", "/me/notifications", "/schedules"):
        barrage.refused(path, needed | {field: None}, field)
        barrage.refused(path, {name: value for name, value in needed.items() if name != field}, field)
    assert barrage.accepted == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"\n\t ",
        b"null",
        b"true",
        b"0",
        b"-1.5e3",
        b'"key"',
        b"[]",
        b'[{"key": "k"}]',
        b"[[[[]]]]",
        b"{",
        b"}",
        b"{}{}",
        b'{"key": "k"',
        b'{"key": "k",}',
        b"{'key': 'k'}",
        b'{key: "k"}',
        b'{"key": "k"} trailing',
        b'{"key": "k"}\x00',
        b"/* comment */ {}",
        b"key=k&ttl=60",
        b"<xml><key>k</key></xml>",
        b"%PDF-1.7",
        b"\x00" * 100,
        b'{"key": "raw \x00 NUL"}',
        b'{"key": "line\nbreak"}',
        gzip.compress(b'{"key": "k"}', mtime=0),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(barrage: Barrage, content: bytes) -> None:
    for path in PATHS:
        assert barrage.post(path, content).status_code == 422
        assert barrage.post(path, content, headers={"Content-Encoding": "gzip"}).status_code == 422


@pytest.mark.parametrize(
    "content",
    [
        b'{"key": "\xff"}',
        b'{"key": "\xc3\x28"}',
        b'{"key": "\xe2\x82"}',
        b'{"key": "\xc0\x80"}',
        b'{"key": "\xed\xa0\x80"}',
        b'{"key": "\xf5\x80\x80\x80"}',
        b'{"k\xffey": "k", "key": "k"}',
        b'{"key": "k", "metadata": {"\xff": 1}}',
        '{"key": "é"}'.encode("latin-1"),
        '{"key": "k"}'.encode("utf-16"),
        '{"key": "k"}'.encode("utf-32-le"),
        b'\xef\xbb\xbf{"key": "k"}',
        b'{"key": "k"}\xff',
    ],
)
def test_what_is_not_utf8_is_refused(barrage: Barrage, content: bytes) -> None:
    for path in PATHS:
        assert barrage.post(path, content).status_code == 422
    charset = {"Content-Type": "application/json; charset=latin-1"}
    assert barrage.post("/check-lock", content, headers=charset).status_code == 422


# NUL and surrogates


@pytest.mark.parametrize(("path", "field"), TEXT_FIELDS)
def test_text_that_cannot_be_stored_is_refused_in_every_field(
    barrage: Barrage, path: str, field: str
) -> None:
    for text in ("\x00", "a\x00b", "\ud800", "a\udfffb", "\udc00\ud800"):
        assert barrage.post_json(path, POSTS[path][0] | {field: text}).status_code == 422
    assert barrage.accepted == 0


@pytest.mark.parametrize(("path", "field"), OBJECT_FIELDS)
def test_text_that_cannot_be_stored_is_refused_everywhere_in_objects(
    barrage: Barrage, path: str, field: str
) -> None:
    for text in ("a\x00b", "\ud800"):
        for value in ({"x": text}, {text: "x"}, {"x": [{"y": [text]}]}, {"x": {text: {}}}):
            assert barrage.post_json(path, POSTS[path][0] | {field: value}).status_code == 422
    assert barrage.accepted == 0


def test_unknown_fields_may_hold_what_could_not_be_stored(barrage: Barrage) -> None:
    """They are ignored (§1.1), also in what they hold; but a body must still be JSON."""
    assert barrage.post_json("/check-lock", {"key": "k", "extra": "\x00", "x\x00": 1}).status_code == 200
    assert barrage.post_json("/check-lock", {"key": "l", "extra": "\ud800"}).status_code == 422
    for constant in ("NaN", "Infinity", "-Infinity"):
        assert barrage.post("/check-lock", f'{{"key": "l", "extra": {constant}}}').status_code == 422


@pytest.mark.parametrize("path", GETS)
def test_nul_and_broken_utf8_in_a_query_are_answered(barrage: Barrage, path: str) -> None:
    for name in GETS[path]:
        for text in ("%00", "a%00b", "%ff", "%ED%A0%80", "%C0%80", "%", "%zz", "%u0000", "%25%30%30"):
            others = urlencode({other: value for other, value in GETS[path].items() if other != name})
            answer = barrage.send("GET", f"{path}?{others}&{name}={text}")
            if "%00" in text:
                assert answer.status_code == 422
                assert name in answer.json()["detail"][0]["loc"]
    assert barrage.send("GET", f"{path}?%00=%00&%ff=%ff&=&&&=x&{urlencode(GETS[path])}").status_code in (
        200,
        404,
    )


def test_nul_in_a_path_is_refused(barrage: Barrage) -> None:
    for path in ("/runs/%00", "/runs/a%00b", "/runs/a/%00/b"):
        answer = barrage.send("GET", path)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["path", "run_id"]
    for path in ("/%00", "/me%00", "/check-lock%00", "/ai/status%00?key=k"):
        assert barrage.send("GET", path).status_code == 404


def test_nul_and_other_bytes_in_headers_are_answered(barrage: Barrage) -> None:
    for value in (b"a\x00b", b"\xff\xfe", b"\r", b"x" * 100_000, "é".encode()):
        for name in ("X-Request-Id", "User-Agent", "Content-Type", "Content-Encoding", "Accept", "Cookie"):
            headers = {name: value}
            assert barrage.send("GET", "/me", headers=headers).status_code == 200
            assert barrage.post("/check-lock", b'{"key": ""}', headers=headers).status_code == 422


# Depth


def nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize("path", PATHS)
def test_bottomless_json_is_refused(barrage: Barrage, path: str) -> None:
    for content in (
        nested("[", "]", DEPTH),
        nested('{"a":', "}", DEPTH),
        "[" * DEPTH,
        '{"a":' * DEPTH,
        '{"key":' + nested("[", "]", DEPTH) + "}",
        '{"key":"k","unknown":' + nested("[", "]", DEPTH) + "}",
        "[" * 1_000_000,
    ):
        assert barrage.post(path, content).status_code == 422


@pytest.mark.parametrize(("path", "field"), OBJECT_FIELDS)
def test_objects_may_be_nested_so_deep_and_no_deeper(barrage: Barrage, path: str, field: str) -> None:
    needed = json.dumps(POSTS[path][0])[1:-1]

    def send(depth: int) -> int:
        content = f'{{{needed}, "{field}": {nested(chr(123) + chr(34) + "a" + chr(34) + ":", "}", depth)}}}'
        return barrage.post(path, content).status_code

    # A schedule's payload goes into its runs' metadata.
    deepest = MAX_DEPTH - 1 if (path, field) == ("/schedules", "payload") else MAX_DEPTH
    assert send(deepest) in (200, 404)
    for depth in (MAX_DEPTH + 1, 100, 150, 199, 200, 201, 500, DEPTH):
        assert send(depth) == 422


# Numbers

HUGE = ["9" * 19, "9" * 40, "9" * 4300, "9" * 4301, "9" * 100_000]
NOT_FINITE = ["NaN", "-Infinity", "1e400", "-1e400", "1e999999999999"]
MALFORMED = ["nan", "+1", "01", "0x10", ".5", "1.", "1e", "-", "1_000", "\u0661"]


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("sign", ["", "-"])
def test_huge_integers_are_answered_wherever_they_are(barrage: Barrage, number: str, sign: str) -> None:
    value = sign + number
    for path, (needed, fields) in POSTS.items():
        start = json.dumps(needed)[:-1]
        for field, kind in fields.items():
            content = (
                f'{start}, "{field}": {value}}}'
                if kind is not dict
                else f'{start}, "{field}": {{"n": {value}}}}}'
            )
            answer = barrage.post(path, content)
            clamped = (field == "ttl" and not sign) or (kind is float and not sign)
            assert answer.status_code == 422 or clamped, f"{path} {field}: {answer.text[:300]}"
    for path, params in GETS.items():
        for name in params:
            if name in ("limit", "offset", "wait") and len(value) < 60_000:  # the client's own limit
                answer = barrage.send("GET", f"{path}?{urlencode(params | {name: value})}")
                assert answer.status_code == 422


def test_integers_at_the_edge_of_64_bits_are_kept_and_beyond_are_refused(barrage: Barrage) -> None:
    for number in (2**63 - 1, -(2**63)):
        assert (
            barrage.post_json("/check-lock", {"key": str(number), "metadata": {"n": number}}).status_code
            == 200
        )
    for number in (2**63, -(2**63) - 1):
        barrage.refused("/check-lock", {"key": "k", "metadata": {"n": [number]}}, "metadata")


@pytest.mark.parametrize("number", NOT_FINITE)
def test_numbers_that_json_does_not_know_are_refused_wherever_they_are(barrage: Barrage, number: str) -> None:
    for path, (needed, fields) in POSTS.items():
        start = json.dumps(needed)[:-1]
        for field in fields:
            for value in (number, f'{{"n": {number}}}', f"[{number}]"):
                content = f'{start}, "{field}": {value}}}'
                assert barrage.post(path, content).status_code == 422, f"{path} {content}"
        assert barrage.post(path, number).status_code == 422
    assert barrage.accepted == 0


@pytest.mark.parametrize("number", MALFORMED)
def test_malformed_numbers_are_refused(barrage: Barrage, number: str) -> None:
    for content in (number, f'{{"key": "k", "ttl": {number}}}', f'{{"key": "k", "metadata": [{number}]}}'):
        assert barrage.post("/check-lock", content).status_code == 422


@pytest.mark.parametrize(
    "value", ["", "1.5", "1e3", "0x1", "one", "--1", " ", "1 2", "\u0661", "true", "null", "[]"]
)
def test_limits_and_offsets_that_are_no_integers_are_refused(barrage: Barrage, value: str) -> None:
    for path in ("/events", "/runs", "/runs/x"):
        for name in ("limit", "offset"):
            assert barrage.send("GET", path, params={name: value}).status_code in (
                422,
                200 if value == "\u0661" else 422,
            )


# Sizes


@pytest.mark.parametrize("path", PATHS)
def test_oversized_bodies_are_refused(barrage: Barrage, path: str) -> None:
    answer = barrage.post(path, b'{"key": "' + b"x" * MAX_BODY + b'"}')
    assert (answer.status_code, answer.json()["detail"]["error"]) == (413, "payload_too_large")


def test_an_endless_chunked_body_is_cut_off(barrage: Barrage) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 65_536

    assert barrage.post("/check-lock", endless()).status_code == 413  # type: ignore[arg-type]
    assert sent <= MAX_BODY // 65_536 + 2


def test_a_chunked_body_within_the_limit_is_read_whole(barrage: Barrage) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in b'{"key": "chunked"}':
            yield bytes([byte])
            yield b""

    assert barrage.post("/check-lock", chunks()).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize("character", ["x", "é", "\u20ac", "😀", "\u0301"])
def test_keys_are_counted_in_code_points(barrage: Barrage, character: str) -> None:
    for path in ("/check-lock", "/ai/lease", "/ai/run"):
        assert barrage.post_json(path, {"key": character * 256, "ttl": 60}).status_code == 200
        barrage.refused(path, {"key": character * 257}, "key")
        barrage.refused(path, {"key": character * 100_000}, "key")
        barrage.refused(path, {"key": ""}, "key")
    for path in ("/ai/status", "/ai/result"):
        assert barrage.send("GET", path, params={"key": character * 256}).status_code == 200
        assert barrage.send("GET", path, params={"key": character * 257}).status_code == 422


@pytest.mark.parametrize(("path", "field"), TEXT_FIELDS)
def test_every_text_has_a_length_that_is_refused(barrage: Barrage, path: str, field: str) -> None:
    """Incompressible, so that an index entry would really have to hold it."""
    text = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(50_000))
    barrage.refused(path, POSTS[path][0] | {field: text}, field)


@pytest.mark.parametrize("field", ["run_id", "agent_id", "task"])
def test_metadata_that_is_indexed_has_a_length_that_is_refused(barrage: Barrage, field: str) -> None:
    text = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(5_000))
    for path in ("/ai/lease", "/ai/run"):
        answer = barrage.post_json(path, {"key": path, "metadata": {field: text}})
        assert answer.status_code == (200 if (path, field) == ("/ai/lease", "task") else 422)


@pytest.mark.parametrize(("path", "field"), OBJECT_FIELDS)
def test_objects_with_a_great_many_members_are_answered(barrage: Barrage, path: str, field: str) -> None:
    for value in ({str(n): n for n in range(10_000)}, {"x": [[]] * 100_000}, {"x" * 1_000_000: 1}):
        assert barrage.post_json(path, POSTS[path][0] | {field: value}).status_code in (404, 413, 422)


# Oddities


def test_of_duplicated_members_the_last_one_counts(barrage: Barrage) -> None:
    answer = barrage.post("/check-lock", b'{"key": "a", "ttl": 20, "key": "b", "ttl": 30}')
    assert (answer.json()["key"], answer.json()["ttl"]) == ("b", 30)
    assert barrage.api.rows("locks") == 1
    assert barrage.post("/check-lock", b'{"key": "c", "key": 5}').status_code == 422


@pytest.mark.parametrize(
    "method", ["PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "BREW", "X" * 500]
)
def test_other_methods_are_not_allowed(barrage: Barrage, method: str) -> None:
    for path in (*PATHS, "/me", "/runs/x"):
        answer = barrage.api.request(method, path)
        assert answer.status_code == 405
        assert method == "HEAD" or answer.json() == {"detail": "Method Not Allowed"}


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        ";",
        "/",
        "application/json; charset=utf-16",
        "application/json; charset=\x01nosuch",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "text/html, application/json",
        "application/json" * 1000,
        "application/octet-stream",
        'application/json; x="',
    ],
)
def test_an_absurd_content_type_changes_nothing(barrage: Barrage, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    for path in ("/check-lock", "/ai/lease", "/events"):
        assert barrage.post(path, b"x", headers=headers).status_code == 422
        body = json.dumps(POSTS[path][0]).encode()
        assert barrage.post(path, body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (b"Bearer \xff\xfe", "Invalid API key"),
        (b"Bearer once_live_\xe9", "Invalid API key"),
        (b"Bearer once_live_\x00", "Invalid API key"),
        (b"Bearer once_live_" + b"x" * 100_000, "Invalid API key"),
        (b"Bearer ' OR 1=1 --", "Invalid API key"),
        (b"Bearer\tonce_live_x", "Missing Authorization Bearer token"),
        (b"\x00", "Missing Authorization Bearer token"),
        (b"\xff" * 1000, "Missing Authorization Bearer token"),
        (b"Bearer, Bearer", "Missing Authorization Bearer token"),
        (b"Digest username=x", "Missing Authorization Bearer token"),
    ],
)
def test_a_broken_authorization_is_401(barrage: Barrage, header: bytes, detail: str) -> None:
    for method, path in (("GET", "/me"), ("POST", "/check-lock")):
        answer = barrage.send(method, path, headers={"Authorization": header}, content=b'{"key": "k"}')
        assert (answer.status_code, answer.json()) == (401, {"detail": detail})


def test_of_two_authorizations_the_first_counts(barrage: Barrage) -> None:
    good, bad = f"Bearer {barrage.api.api_key}", "Bearer once_live_x"
    for values, status in (((good, bad), 200), ((bad, good), 401)):
        headers = [("Authorization", value) for value in values]
        assert barrage.api.app.request("GET", "/v1/me", headers=headers).status_code == status


# Properties

TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
bounded = partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def fuzz(new_tenant: NewApi) -> Iterator[Barrage]:
    """One tenant for all examples: hypothesis makes many per test."""
    barrage = Barrage(new_tenant())
    yield barrage
    barrage.check()


def storable(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


@bounded(max_examples=120)
@given(path=st.sampled_from(PATHS), body=JSON)
def test_any_json_as_a_body_is_answered(fuzz: Barrage, path: str, body: Any) -> None:
    fuzz.post_json(path, body)


@bounded(max_examples=250)
@given(path=st.sampled_from(sorted(POSTS)), data=st.data())
def test_any_values_in_known_fields_are_answered(fuzz: Barrage, path: str, data: st.DataObject) -> None:
    needed, fields = POSTS[path]
    names = data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=3))
    fuzz.post_json(path, needed | {name: data.draw(JSON, label=name) for name in sorted(names)})


@bounded(max_examples=120)
@given(path=st.sampled_from(PATHS), content=st.binary(max_size=200))
def test_any_bytes_as_a_body_are_answered(fuzz: Barrage, path: str, content: bytes) -> None:
    fuzz.post(path, content)


@bounded(max_examples=200)
@given(path=st.sampled_from(sorted(POSTS)), data=st.data())
def test_a_damaged_body_is_answered(fuzz: Barrage, path: str, data: st.DataObject) -> None:
    """A valid body with bytes overwritten, cut out or put in."""
    example = POSTS[path][0] | {"metadata": {"a": [1.5, "é", None]}, "ttl": 60}
    content = bytearray(json.dumps(example, ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 3))
        content[at : at + cut] = data.draw(st.binary(max_size=3))
    fuzz.post(path, bytes(content))


@bounded(max_examples=120)
@given(key=TEXT)
def test_a_key_is_taken_exactly_if_it_is_text_of_1_to_256_code_points(fuzz: Barrage, key: str) -> None:
    answer = fuzz.post_json("/check-lock", {"key": key, "ttl": 60})
    if 1 <= len(key) <= 256 and storable(key):
        assert answer.json()["key"] == key
        assert fuzz.post_json("/check-lock", {"key": key}).json()["status"] == "duplicate"
    else:
        assert answer.status_code == 422


KEPT = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT.filter(storable),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT.filter(storable), inner, max_size=4),
    max_leaves=12,
)


@bounded(max_examples=80)
@given(result=st.dictionaries(TEXT.filter(storable), KEPT, max_size=4))
def test_a_result_comes_back_exactly(fuzz: Barrage, result: dict[str, Any]) -> None:
    lease = fuzz.post_json("/ai/lease", {"key": "exact"}).json()
    held = {"key": "exact", "lease_id": lease["lease_id"]}
    fuzz.post_json("/ai/complete", held | {"result": result})
    answer = fuzz.send("GET", "/ai/result", params={"key": "exact"})
    assert json.dumps(answer.json()["result"]) == json.dumps(result)
    fuzz.api.forget("exact")


@bounded(max_examples=120)
@given(path=st.sampled_from(sorted(GETS)), data=st.data())
def test_any_query_is_answered(fuzz: Barrage, path: str, data: st.DataObject) -> None:
    params = dict(GETS[path])
    for name in data.draw(st.sets(st.sampled_from(sorted(params)), min_size=1)):
        if name != "wait":
            params[name] = data.draw(TEXT, label=name)
    fuzz.send("GET", f"{path}?{urlencode(params, errors='surrogatepass')}")


@bounded(max_examples=120)
@given(run_id=TEXT)
def test_any_run_id_reaches_its_timeline_or_is_refused(fuzz: Barrage, run_id: str) -> None:
    answer = fuzz.post_json("/events", {"run_id": run_id, "type": "t"})
    if answer.status_code == 422:
        assert not run_id.strip() or len(run_id) > 256 or not storable(run_id)
    if storable(run_id) and run_id not in (".", "..", ""):
        seen = fuzz.send("GET", f"/runs/{quote(run_id, safe='')}")
        assert seen.status_code == answer.status_code
        assert seen.status_code == 422 or seen.json()["run_id"] == run_id


@bounded(max_examples=80)
@given(path=st.binary(max_size=60))
def test_any_path_is_answered(fuzz: Barrage, path: bytes) -> None:
    fuzz.send("GET", "/" + quote(path, safe="/%?=&;:@+.~"))


# Over a socket, to a server of its own: what no HTTP client would send

CLOSING = b"Host: x\r\nConnection: close\r\n"
STARTED_S = 60


class Server:
    """`onceonly-jobs api`, spoken to in bytes."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = port
        self.process = process
        self.log = log

    def say(self, *parts: bytes, timeout: float = 60) -> bytes:
        """Everything that is answered until the server closes, or is silent for a moment."""
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout)) as connection:
            connection.settimeout(timeout)
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:
                pass  # refused while it was still being sent
            answer = b""
            try:
                while chunk := connection.recv(65_536):
                    answer += chunk
                    connection.settimeout(0.3)
            except OSError:
                pass
        return answer

    def ask(self, *parts: bytes) -> int:
        """The status of what must be answered, after a look at its form."""
        answer = self.say(*parts)
        assert b"\r\nX-Injected" not in answer
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 "), f"{b''.join(parts)[:200]!r} -> {answer[:200]!r}"
        status = int(lines[0].split()[1])
        assert 200 <= status < 300 or 400 <= status < 500, answer[:500]
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        assert headers[b"content-type"] == b"application/json", answer[:500]
        assert headers[b"x-request-id"]
        detail = strict_json(body[: int(headers[b"content-length"])])
        assert status < 300 or detail["detail"]
        return status


@pytest.fixture(scope="module")
def server(shared_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONCEONLY_")} | {
        "ONCEONLY_DATABASE_URL": shared_settings.require_database_url(),
        "ONCEONLY_BROKER_URL": shared_settings.require_broker_url(),
    }
    command = [sys.executable, "-m", "onceonly_jobs.cli.main", "api"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + STARTED_S
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield Server(port, process, log)
        assert process.poll() is None, "it still stands"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert "Traceback" not in log.read_text(), "nobody's input is worth a traceback in the log"


@pytest.fixture
def bearer(api: Api) -> bytes:
    return f"Authorization: Bearer {api.api_key}".encode()


@pytest.fixture
def spoken_to(server: Server, api: Api, bearer: bytes) -> Iterator[Server]:
    """The server, which must answer as ever afterwards and hold nothing of the tenant's."""
    yield server
    assert server.ask(b"GET /v1/me HTTP/1.1\r\n", CLOSING, bearer, b"\r\n\r\n") == 200
    assert api.rows("locks") == api.rows("runs") == 0


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET",
        b"GET /v1/me",
        b"GET /v1/me HTTP/9.9",
        b"GET /v1/me HTTP/1.1 HTTP/1.1",
        b"/v1/me GET HTTP/1.1",
        b"BREW /v1/me HTTP/1.1",
        b"GET v1/me HTTP/1.1",
        b"GET http://[::1/v1/me HTTP/1.1",
        b"GET /v1/\xff\xfe HTTP/1.1",
        b"GET /v1/me\x00 HTTP/1.1",
        b"GET /v1/" + b"x" * 200_000 + b" HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT example.org:443 HTTP/1.1",
        b"{}",
        b"\xff" * 100,
    ],
)
def test_a_broken_request_line_is_answered(spoken_to: Server, bearer: bytes, request_line: bytes) -> None:
    spoken_to.ask(request_line, b"\r\nHost: x\r\n", bearer, b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/v1/runs/%", 200),
        (b"/v1/runs/%zz", 200),
        (b"/v1/runs/%2", 200),
        (b"/v1/runs/%ff%fe", 200),
        (b"/v1/runs/%C0%AF", 200),
        (b"/v1/runs/%ED%A0%80", 200),
        (b"/v1/runs/%00", 422),
        (b"/v1/runs/%25%30%30", 200),
        (b"/v1/runs/..%2f..%2fetc%2fpasswd", 200),
        (b"/v1/runs/../me", 200),
        (b"/v1/runs/.", 200),
        (b"/v1/runs/..", 200),
        (b"/v1/runs/a%0D%0AX-Injected:%20yes", 200),
        (b"/v1/runs/a;b=c", 200),
        (b"/v1/runs/a\\b|c^d`e", 200),
        (b"/v1/runs/?", 422),
        (b"/v1/runs/%20", 422),
        (b"/v1/runs/x#fragment", 200),
        (b"/v1/../v1/me", 404),
        (b"//v1/me", 404),
        (b"/v1//me", 404),
        (b"/v1/%6de", 200),
        (b"/v1/me%2F", 404),
        (b"/v1/me%3Fkind=ai", 404),
        (b"/v1/usage?kind=%61%69", 200),
        (b"/v1/usage?kind=ai&kind=make", 200),
        (b"/v1/usage?kind=ai&kind=x", 422),
        (b"/v1/usage?kind[]=ai", 200),
        (b"/v1/usage?" + b"x=1&" * 10_000, 200),
        (b"/v1/ai/status?key=%", 404),
        (b"/v1/ai/status?key=%00", 422),
        (b"/v1/ai/status?key=a%0D%0Ab", 404),
        (b"/v1/ai/status?key", 422),
        (b"/v1/ai/status?key=", 422),
        (b"/v1/ai/status??key=a", 422),
        (b"http://elsewhere/v1/me", 200),
    ],
)
def test_percent_encoding_oddities_are_answered(
    spoken_to: Server, bearer: bytes, path: bytes, status: int
) -> None:
    assert spoken_to.ask(b"GET ", path, b" HTTP/1.1\r\n", CLOSING, bearer, b"\r\n\r\n") == status


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: -1",
        b"Content-Length: abc",
        b"Content-Length: 1e3",
        b"Content-Length: " + b"9" * 40,
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: nosuch",
        b"Transfer-Encoding: chunked, chunked",
        b"No-Colon-Here",
        b": no name",
        b"Space : x",
        b"X-Y: a\x00b",
        b"X-Request-Id: a\x00b",
        b"X-\xff: x",
        b"X-Long: " + b"x" * 200_000,
        b"\r\n".join(b"X-%d: %d" % (n, n) for n in range(20_000)),
    ],
)
def test_broken_headers_are_answered(spoken_to: Server, bearer: bytes, headers: bytes) -> None:
    """A status, or, where a request may not have ended yet, no answer; never a 5xx."""
    answer = spoken_to.say(
        b"POST /v1/check-lock HTTP/1.1\r\nHost: x\r\n",
        bearer,
        b"\r\n",
        headers,
        b"\r\n\r\n",
        b"{}",
        timeout=0.5,
    )
    assert not answer or 400 <= int(answer.split()[1]) < 500, answer[:300]


@pytest.mark.parametrize(
    "authorization",
    [
        b"Authorization:",
        b"Authorization: Bearer",
        b"Authorization: Bearer \xff\xfe\xfd",
        b"Authorization: Bearer once_live_\xc3\xa9",
        b"Authorization: Bearer once_live_" + b"x" * 30_000,
        b"Authorization: Bearer once_live_x\r\nAuthorization: Bearer once_live_y",
        b"Authorization: bEaReR once_live_",
        b"authorization: Basic " + b"=" * 100,
        b"X-Api-Key: once_live_x",
    ],
)
def test_broken_authorization_headers_are_401(spoken_to: Server, authorization: bytes) -> None:
    assert spoken_to.ask(b"GET /v1/me HTTP/1.1\r\n", CLOSING, authorization, b"\r\n\r\n") == 401


def post_of(bearer: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v1/check-lock HTTP/1.1", b"Host: x", bearer, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def test_an_oversized_body_is_refused_before_it_is_sent_whole(spoken_to: Server, bearer: bytes) -> None:
    head = post_of(bearer, b"Content-Length: 1000000000")
    assert spoken_to.ask(head, b" " * (MAX_BODY + 65_536)) == 413


def test_an_oversized_chunked_body_is_refused(spoken_to: Server, bearer: bytes) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert spoken_to.ask(post_of(bearer, b"Transfer-Encoding: chunked"), chunk * 40) == 413


def test_an_oversized_body_under_a_wrong_key_is_401(spoken_to: Server) -> None:
    head = post_of(b"Authorization: Bearer once_live_x", b"Content-Length: 1000000000")
    assert spoken_to.ask(head) == 401


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"-5\r\n", b"5\r\nab", b"FFFFFFFFFFFFFFFFFF\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n"]
)
def test_broken_chunks_take_no_lock(spoken_to: Server, bearer: bytes, chunks: bytes) -> None:
    answer = spoken_to.say(post_of(bearer, b"Transfer-Encoding: chunked"), chunks, timeout=0.5)
    assert not answer or 400 <= int(answer.split()[1]) < 500, answer[:300]


def test_a_caller_that_goes_away_in_mid_request_takes_no_lock(spoken_to: Server, bearer: bytes) -> None:
    for sent in (b"", b'{"key": "k"', b'{"key": "k"}'):
        with closing(socket.create_connection(("127.0.0.1", spoken_to.port))) as connection:
            connection.sendall(post_of(bearer, b"Content-Length: 100") + sent)
    with closing(socket.create_connection(("127.0.0.1", spoken_to.port))) as connection:
        connection.sendall(b"POST /v1/check-l")


def test_requests_one_after_another_on_one_connection_are_each_answered(
    spoken_to: Server, bearer: bytes
) -> None:
    bad = post_of(bearer, b"Content-Length: 2") + b"{}"
    answer = spoken_to.say(bad, bad, b"GET /v1/me HTTP/1.1\r\nHost: x\r\n", bearer, b"\r\n\r\n")
    statuses = [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [422, 422, 200]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_a_request_that_offers_an_upgrade_is_answered_as_without(
    server: Server, api: Api, bearer: bytes, protocol: bytes
) -> None:
    body = b'{"key": "offered"}'
    length, offer = b"Content-Length: %d" % len(body), b"Connection: Upgrade\r\nUpgrade: " + protocol
    answer = server.say(post_of(bearer, length, offer) + body)
    assert (answer[:12], b'"status":"locked"' in answer) == (b"HTTP/1.1 200", True)
    assert api.rows("locks") == 1


def test_what_is_no_http_is_refused_after_the_answers_before_it(spoken_to: Server, bearer: bytes) -> None:
    bad = post_of(bearer, b"Content-Length: 2") + b"{}"
    answer = spoken_to.say(bad + bad + b"GARBAGE\r\n\r\n")
    statuses = [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [422, 422, 400]
