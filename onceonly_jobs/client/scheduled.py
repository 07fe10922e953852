"""Schedules: the requests of `client.schedules`."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from onceonly_jobs.client.models import AiRun
from onceonly_jobs.client.wire import Context, Flow, Json, Request, call, segment


def create(ctx: Context, name: str, fields: Json) -> Flow[Json]:
    return call(ctx, Request("POST", "/schedules", {"name": name, **_plain(fields)}))


def list_all(ctx: Context, limit: int, offset: int) -> Flow[Json]:
    return call(ctx, Request("GET", "/schedules", params={"limit": limit, "offset": offset}))


def read(ctx: Context, name: str, part: str = "", **params: int) -> Flow[Json]:
    """A schedule, or its `/next` or `/ticks`."""
    return call(ctx, Request("GET", of(name) + part, params=params or None))


def change(ctx: Context, name: str, fields: Json) -> Flow[Json]:
    return call(ctx, Request("PATCH", of(name), _plain(fields)))


def delete(ctx: Context, name: str) -> Flow[Json]:
    return call(ctx, Request("DELETE", of(name)))


def switch(ctx: Context, name: str, to: str) -> Flow[Json]:
    """`pause` or `resume`."""
    return call(ctx, Request("POST", f"{of(name)}/{to}", {}))


def trigger(ctx: Context, name: str, trigger_id: str | None) -> Flow[AiRun]:
    """Under an id of its own, so that a repeat after a lost answer is the same run."""
    body = {"id": trigger_id or uuid.uuid4().hex}
    return AiRun.from_dict((yield from call(ctx, Request("POST", f"{of(name)}/trigger", body))))


def backfill(
    ctx: Context, name: str, since: datetime | str, until: datetime | str, hold_s: float
) -> Flow[Json]:
    body = _plain({"from": since, "to": until})
    return call(ctx, Request("POST", f"{of(name)}/backfill", body, hold_s=hold_s))


def of(name: str) -> str:
    return f"/schedules/{segment(name)}"


def _plain(fields: Json) -> Json:
    return {name: _text(value) for name, value in fields.items()}


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
