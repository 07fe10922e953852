"""An HTTP request as a job, with an Idempotency-Key that is the same in every attempt."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onceonly_jobs import tracing
from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.fingerprint import storable
from onceonly_jobs.worker.addresses import public_address
from onceonly_jobs.worker.chat import retry_after_s
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.outcomes import Fail, Retry, printable

MAX_BODY_BYTES = 262_144
SHOWN_HEADERS = ("content-type", "content-length", "date", "etag", "last-modified", "location", "retry-after")
REPEATABLE = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")


class Asked(BaseModel):
    """What the payload says to send."""

    model_config = ConfigDict(extra="ignore", strict=True)

    method: Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: Annotated[str, Field(min_length=1, max_length=8192)]
    headers: dict[str, Annotated[str, Field(pattern=r"^[^\r\n\x00]*$")]] = {}
    body_json: Annotated[Any, Field(alias="json")] = None
    body: str | None = None
    timeout_s: Annotated[float, Field(strict=False, gt=0, le=600)] = 30


def send(ctx: JobContext, *, allowed: Allowed) -> dict[str, Any]:
    """The answer as a result: status, headers, and `json` or `body`. Redirects are answers too.

    A busy or broken other side (429, 5xx, no connection) is tried again. A POST or PATCH that was sent and
    not answered is not: it may have been carried out.
    """
    asked = _asked(ctx)
    try:
        with httpx.Client(follow_redirects=False, trust_env=False) as client:
            request, extensions = _request(client, ctx, asked, allowed)
            with client.stream(**request, extensions=extensions) as response:
                return _result(response)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
        raise Retry(message=f"not reached: {type(error).__name__}: {error}") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError) as error:
        raise Fail("bad_payload", f"not a request: {error}") from error
    except httpx.TransportError as error:
        text = f"sent, but not answered: {type(error).__name__}: {error}"
        if asked.method in REPEATABLE:
            raise Retry(message=text) from error
        raise Fail("outcome_unknown", f"{text}; it may have been carried out") from error


def _asked(ctx: JobContext) -> Asked:
    given = ctx.payload or ctx.metadata
    try:
        return Asked.model_validate(given)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise Fail("bad_payload", "; ".join(lines)) from None


def _request(
    client: httpx.Client, ctx: JobContext, asked: Asked, allowed: Allowed
) -> tuple[dict[str, Any], dict[str, Any]]:
    url = httpx.URL(asked.url)
    if url.scheme not in ("http", "https") or not url.host:
        raise Fail("bad_payload", "url: must start with http:// or https://")
    headers = httpx.Headers(asked.headers)
    headers.setdefault("Idempotency-Key", ctx.idempotency_key("http_request"))
    headers.setdefault("Accept-Encoding", "identity")  # what is read is what was sent, and no larger
    tracing.inject(headers)
    headers["Host"] = url.netloc.decode("ascii")
    extensions: dict[str, Any] = {}
    # The certificate is the name's, the connection the address's.
    extensions["sni_hostname"] = url.raw_host.decode("ascii")
    port = url.port or (443 if url.scheme == "https" else 80)
    url = url.copy_with(host=public_address(url.host, port, allowed))
    timeout = min(asked.timeout_s, max(1.0, ctx.time_left_s))
    body = {"json": asked.body_json} if asked.body_json is not None else {"content": asked.body}
    return {"method": asked.method, "url": url, "headers": headers, "timeout": timeout, **body}, extensions


def _result(response: httpx.Response) -> dict[str, Any]:
    if response.status_code == 429 or response.status_code >= 500:
        raise Retry(retry_after_s(response), f"the other side answered {response.status_code}")
    content, whole = _read(response)
    result: dict[str, Any] = {
        "status": response.status_code,
        "headers": {name: response.headers[name] for name in SHOWN_HEADERS if name in response.headers},
    }
    if whole and "json" in response.headers.get("content-type", ""):
        parsed = _parsed(content)
        if parsed is not None:
            return {**result, "json": parsed}
    text = content.decode(response.encoding or "utf-8", errors="replace")
    return {**result, "body": printable(text, MAX_BODY_BYTES), "truncated": not whole}


def _parsed(content: bytes) -> Any:
    """The JSON value; None for what is no JSON, whatever it says of itself, or can't be kept as such."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if storable(value) is None else None


def _read(response: httpx.Response) -> tuple[bytes, bool]:
    """The body up to the limit, and whether that is all of it."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            return bytes(content[:MAX_BODY_BYTES]), False
    return bytes(content), True
