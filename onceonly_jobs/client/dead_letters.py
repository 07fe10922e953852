"""Dead letters: the requests of `client.dead`."""

from __future__ import annotations

from onceonly_jobs.client.wire import Context, Flow, Json, Request, call, segment


def list_all(ctx: Context, limit: int, offset: int, **wanted: str | None) -> Flow[Json]:
    """`wanted`: task and agent_id, None for any."""
    given = {name: value for name, value in wanted.items() if value is not None}
    return call(ctx, Request("GET", "/dead", params={"limit": limit, "offset": offset, **given}))


def read(ctx: Context, key: str) -> Flow[Json]:
    return call(ctx, Request("GET", f"/dead/{segment(key)}"))


def decide(ctx: Context, what: str, key: str, **optional: str | int | None) -> Flow[Json]:
    """`replay` or `discard`."""
    given = {name: value for name, value in optional.items() if value is not None}
    return call(ctx, Request("POST", f"/dead/{what}", {"key": key, **given}))
