"""The account, its usage, its feed and its timelines."""

from __future__ import annotations

from typing import Any

from onceonly_jobs.client.exceptions import OnceOnlyError
from onceonly_jobs.client.wire import Context, Flow, Json, Request, call, exchange, segment


def get(ctx: Context, path: str, **params: str | int | None) -> Flow[Json]:
    """Read a path. Parameters that are None are left out."""
    given = {name: value for name, value in params.items() if value is not None}
    return call(ctx, Request("GET", path, params=given or None))


def update_notifications(ctx: Context, **switches: bool | None) -> Flow[Json]:
    body = {name: bool(value) for name, value in switches.items() if value is not None}
    if not body:
        raise ValueError(f"give at least one of {', '.join(switches)}")
    return call(ctx, Request("POST", "/me/notifications", body))


_WHOLE = ("ts", "duration_ms")


def post_event(ctx: Context, fields: Json, extra: Json) -> Flow[Json]:
    """Write an event. Two of them are two events, so it is repeated only if it was surely not taken."""
    body: Json = {}
    for name, value in fields.items():
        if value is not None:
            body[name] = dict(value) if name == "data" else int(value) if name in _WHOLE else str(value)
    return call(ctx, Request("POST", "/events", {**body, **extra}, repeatable=False))


def get_run_timeline(ctx: Context, run_id: str, limit: int, offset: int) -> Flow[Json]:
    name = str(run_id).strip()
    if not name:
        raise ValueError("run_id must not be empty")
    return get(ctx, f"/runs/{segment(name)}", limit=int(limit), offset=int(offset))


def ready(ctx: Context) -> Flow[bool]:
    """Whether the server answers and can serve. Never raises for one that can't."""
    try:
        response = yield from exchange(ctx, Request("GET", "/ready", at_origin=True))
    except OnceOnlyError:
        return False
    answer: Any = response.is_success
    return bool(answer)
