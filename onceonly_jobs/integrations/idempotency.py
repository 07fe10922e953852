"""The rules of an `Idempotency-Key` header, for the adapters of asgi.py, wsgi.py and django.py. No framework in here.

After the IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header): a request
that repeats a key gets the response of the first one. The rules are flows of the client, so that one description
serves sync and async adapters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from onceonly_jobs.client import OnceOnly, runs
from onceonly_jobs.client.exceptions import (
    ApiError,
    LeaseLost,
    OnceOnlyError,
    RateLimitError,
    Unreachable,
    ValidationError,
)
from onceonly_jobs.client.leases import Lease, acquire
from onceonly_jobs.client.models import AiResult
from onceonly_jobs.client.wire import Flow, Json, logger

STORED = frozenset(range(200, 500)) - {401, 403, 408, 425, 429}
"""Statuses that are an outcome. The missing ones, and 5xx, say: not now, or not you; a retry shall run."""
REPLAYED_HEADERS = frozenset(
    {
        *("content-type", "content-language", "content-encoding", "content-disposition", "content-location"),
        *("location", "etag", "last-modified", "link", "vary"),
    }
)
BEAT_EVERY_S = 30.0
STORE_FOR_S = 10.0
"""How long a response is held back to be stored, while the server is away."""
_MIB = 1_048_576
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?:;.*)?')
_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+")
_LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the rules see it. Names of headers are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    native: Any
    """The framework's own: an ASGI scope, a WSGI environ, a Django request."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known.lower() == name), "")


def authorization(incoming: Incoming) -> str:
    """Whose key it is, by default: the credentials in the `Authorization` header."""
    return incoming.headers.get("authorization", "")


def raw_request(incoming: Incoming) -> bytes:
    """What must be the same in a repeat, by default: method, path, query and every byte of the body."""
    head = f"{incoming.method} {quote(incoming.path)}?{incoming.query}\n"
    return head.encode() + incoming.body


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """What to guard, and how.

    methods, applies: which requests are looked at; applies is asked after methods.
    required: refuse such a request without a key. header: the key's name.
    ttl: seconds until a crashed server's key can be taken over by a retry; extended while the handler runs.
    scope: names the caller, so that nobody gets another one's response; by default the credentials.
    fingerprint: what of a request a repeat must have in common with it.
    stored: statuses whose responses are kept and replayed; after any other, and after an exception, a retry runs.
    replay_headers: headers that are kept, by lower-case names.
    max_body_bytes: larger requests with a key are refused. max_response_bytes: larger responses are not kept.
    fail_open: let requests through unguarded while OnceOnly does not answer, instead of refusing them with 503.
    """

    client: OnceOnly
    methods: Collection[str] = ("POST", "PATCH")
    applies: Callable[[Incoming], bool] | None = None
    required: bool = False
    header: str = "Idempotency-Key"
    ttl: int = 60
    scope: Callable[[Incoming], str] = authorization
    fingerprint: Callable[[Incoming], bytes | str] = raw_request
    stored: Collection[int] = STORED
    replay_headers: Collection[str] = field(default=REPLAYED_HEADERS)
    max_body_bytes: int = _MIB
    max_response_bytes: int = _MIB // 2
    fail_open: bool = False
    key_prefix: str = "http"

    def key(self, incoming: Incoming) -> str | Answer | None:
        """The key of a request; None where it has none, an answer where that is wrong."""
        if incoming.method not in self.methods or (self.applies is not None and not self.applies(incoming)):
            return None
        given = incoming.headers.get(self.header.lower())
        if given is None:
            if not self.required:
                return None
            detail = f"This request needs the header {self.header}: a value that is new for each operation."
            return problem(400, "key-missing", f"{self.header} is missing", detail)
        key = parsed_key(given)
        if key is None:
            detail = (
                f"A key is a string of 1 to {_LONGEST_KEY} visible ASCII characters, in quotes or without."
            )
            return problem(400, "key-invalid", f"{self.header} is not usable", detail)
        return key

    def too_large(self) -> Answer:
        """For a request whose body is larger than max_body_bytes."""
        detail = f"A request with {self.header} may have {self.max_body_bytes} bytes."
        return problem(413, "request-too-large", "The request is too large", detail)

    def admit(self, incoming: Incoming, key: str) -> Flow[Lease | Answer | None]:
        """The right to run the handler; or what to answer instead; or None, to run it unguarded."""
        printed = self.fingerprint(incoming)
        printed = printed.encode() if isinstance(printed, str) else printed
        metadata = {"method": incoming.method, "path": quote(incoming.path)[:1024]}
        try:
            lease = yield from acquire(
                self.client.driver.context,
                self._name(incoming, key),
                self.ttl,
                metadata,
                fingerprint=hashlib.sha256(printed).hexdigest(),
            )
        except OnceOnlyError as error:
            return self._without_server(error)
        if lease.acquired:
            return lease
        return self._replay(lease.outcome) if lease.outcome is not None else in_flight(lease)

    def keep(self, lease: Lease, answer: Answer) -> Flow[Answer]:
        """Store what the handler answered, or let the key go; gives what the caller is to get."""
        if answer.status not in self.stored:
            yield from self.release(lease, f"status {answer.status}")
            return answer
        whole = self._stored(answer) if len(answer.body) <= self.max_response_bytes else None
        return (yield from self._finish(lease, answer, whole))

    def pass_through(self, lease: Lease, status: int) -> Flow[None]:
        """The end of the guard for a response that is sent as it comes: done, or let go, but not kept."""
        if status not in self.stored:
            yield from self.release(lease, f"status {status}")
        else:
            yield from self._finish(lease, Answer(status, (), b""), None)

    def release(self, lease: Lease, why: str) -> Flow[None]:
        """Let the next request with this key run the handler. Where that fails, the lease runs out."""
        lease.working = False
        if lease.lost:
            return
        try:
            yield from runs.cancel(self.client.driver.context, lease.key, lease.lease_id, why)
        except OnceOnlyError as error:
            logger.warning(
                "%r was not released, and stays taken for up to %d s: %s", lease.key, lease.ttl, error
            )

    def is_stream(self, answer: Answer) -> bool:
        """Whether a response that has begun can't be waited for."""
        return answer.header("content-type").partition(";")[0].strip().lower() == "text/event-stream"

    def _name(self, incoming: Incoming, key: str) -> str:
        """Under which the response is kept: it tells nobody the caller's credentials or key."""
        told = json.dumps([self.scope(incoming), key], ensure_ascii=False)
        return f"{self.key_prefix}:{hashlib.sha256(told.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def _without_server(self, error: OnceOnlyError) -> Answer | None:
        """Refuse, unless it is the server's silence that the user wants to be let through."""
        code = getattr(error, "code", None)
        if code == "fingerprint_mismatch":
            detail = "The key was used for another request. Use a new key, or repeat that request as it was."
            return problem(422, "key-reused", f"{self.header} was used before", detail)
        silent = isinstance(error, Unreachable) or (getattr(error, "status_code", None) or 0) >= 500
        if silent and self.fail_open:
            logger.warning("a request goes on unguarded (fail_open): %s", error)
            return None
        logger.error("a request was refused, for it could not be guarded: %s", error)
        wait = error.retry_after_sec if isinstance(error, RateLimitError) else None
        detail = "Whether this request was handled before can't be told now. It is safe to repeat it."
        return problem(503, "unavailable", "Try again later", detail, retry_after=wait or 1)

    def _finish(self, lease: Lease, answer: Answer, whole: Json | None) -> Flow[Answer]:
        lease.working = False
        marker: Json = {"status": answer.status, "kept": False}
        try:
            try:
                yield from self._complete(lease, marker if whole is None else whole)
            except (ValidationError, ApiError) as error:
                if whole is None or getattr(error, "status_code", None) not in (413, 422):
                    raise
                yield from self._complete(lease, marker)
        except LeaseLost as why:
            lease.lose(why)
            return in_flight(lease)
        except OnceOnlyError as error:
            # The caller gets the truth, and has no reason to ask again.
            logger.error("the response of %r was not stored: %s", lease.key, error)
        return answer

    def _complete(self, lease: Lease, result: Json) -> Flow[Json]:
        ctx = self.client.driver.context
        until = ctx.clock() + min(lease.ttl, STORE_FOR_S)
        return runs.complete(ctx, lease.key, lease.lease_id, result, None, give_up_at=until, persist=True)

    def _stored(self, answer: Answer) -> Json:
        headers = [[name, value] for name, value in answer.headers if name.lower() in self.replay_headers]
        return {"status": answer.status, "headers": headers, **_as_json(answer.body)}

    def _replay(self, outcome: AiResult) -> Answer:
        result = outcome.result if isinstance(outcome.result, dict) else {}
        try:
            headers = tuple((str(name), str(value)) for name, value in result["headers"])
            body = _as_bytes(result)
            return Answer(int(result["status"]), (*headers, ("Idempotency-Replayed", "true")), body)
        except (KeyError, TypeError, ValueError, binascii.Error):
            status = result.get("status")
        detail = "The request was handled, and is not handled again; its response was not kept."
        return problem(409, "response-not-kept", "Done before", detail, original_status=status)


def parsed_key(given: str) -> str | None:
    """The key in a header's value: a structured string as in the draft, or a bare word. None for anything else."""
    text = given.strip(" \t")
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _BARE.fullmatch(text):
        key = text
    else:
        return None
    return key if 0 < len(key) <= _LONGEST_KEY else None


def in_flight(lease: Lease) -> Answer:
    """For a request whose key somebody else is at work on."""
    wait = 1 if lease.acquired else lease.raw.get("retry_after_sec") or 1
    detail = "A request with this key is being handled. Repeat this one later to get its response."
    return problem(409, "in-flight", "Not finished yet", detail, retry_after=wait)


def problem(
    status: int, kind: str, title: str, detail: str, *, retry_after: float | None = None, **more: Any
) -> Answer:
    """A refusal as RFC 9457 has it."""
    told = {
        "type": f"urn:onceonly-jobs:idempotency:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
    }
    body = json.dumps({**told, **{name: value for name, value in more.items() if value is not None}}).encode()
    headers = [("Content-Type", "application/problem+json")]
    if retry_after is not None:
        headers.append(("Retry-After", str(max(1, round(retry_after)))))
    return Answer(status, tuple(headers), body)


def _as_json(body: bytes) -> Json:
    """Text where it is any, for people to read."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"base64": base64.b64encode(body).decode()} if "\0" in text else {"text": text}


def _as_bytes(result: Json) -> bytes:
    if "base64" in result:
        return base64.b64decode(result["base64"], validate=True)
    return str(result["text"]).encode()
