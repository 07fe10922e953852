"""Stored values in the contract's words."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from fastapi.responses import JSONResponse, Response

from onceonly_jobs.contracts.fields import unix_s, utc_iso
from onceonly_jobs.domain.plans import LIMITS, Kind, Plan
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.services.leases import WIRE_STATES
from onceonly_jobs.store.events import Event, FeedEvent, Timeline
from onceonly_jobs.store.listing import ListedRun
from onceonly_jobs.store.locks import LockAnswer
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.store.usage import Counters

MONTH_HEADER = "X-OnceOnly-Month"


class Quick(Response):
    """A JSON answer with its headers as they are sent: putting them together costs Starlette as much as the answer."""

    def __init__(self, body: dict[str, Any], headers: dict[str, str], *, lock: str | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.body = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        self.lock = lock
        """What check-lock said."""
        self.raw_headers = [
            (b"content-length", str(len(self.body)).encode()),
            (b"content-type", b"application/json"),
            *((name.lower().encode(), value.encode()) for name, value in headers.items()),
        ]


def month_header(at: datetime) -> dict[str, str]:
    utc = at.astimezone(UTC)
    return {MONTH_HEADER: f"{utc.year:04}-{utc.month:02}"}


def lock(key: str, answer: LockAnswer) -> Quick:
    """200 for the first caller and for duplicates alike."""
    locked = answer.status == "locked"
    body = {
        "success": locked,
        "status": answer.status,
        "key": key,
        "ttl": answer.ttl_s,
        "first_seen_at": None if locked else utc_iso(answer.first_seen_at),
    }
    return Quick(body, {"X-OnceOnly-Status": answer.status} | month_header(answer.at), lock=answer.status)


def taken(plan: Plan, answer: Taken) -> Quick:
    """What a lease or run call sees of its key."""
    run = answer.run
    acquired = answer.outcome == "acquired"
    status = "acquired" if acquired else _held_status(run)
    polling = status == "polling"
    body: dict[str, Any] = {
        "ok": status != "failed",
        "status": status,
        "key": run.key,
        "ttl": run.lease_ttl_s,
        "ttl_left": (run.ttl_left_s() or 0) if polling else None,
        "lease_id": run.lease_id if acquired else None,
        "version": run.version,
        "first_seen_at": utc_iso(run.first_seen_at),
        "done_at": None if polling else utc_iso(run.done_at),
        "result_hash": run.result_hash,
        "error_code": run.error_code if status == "failed" else None,
        "retry_after_sec": (run.retry_after_s() or 1) if polling else None,
        "usage": answer.usage,
        "limit": LIMITS[plan].quota(Kind.AI),
        "charged": 1 if acquired else 0,
    }
    if status == "completed":
        body["result"] = run.result
    return Quick(body, month_header(run.read_at))


def _held_status(run: Run) -> str:
    """A cancelled run is only met here while its worker still holds on: that is held, not failed."""
    if run.state in (RunState.COMPLETED, RunState.FAILED):
        return run.state.value
    return "polling"


def status(run: Run) -> JSONResponse:
    wire = WIRE_STATES[run.state]
    body = {
        "ok": wire != "failed",
        "status": wire,
        "key": run.key,
        "ttl_left": run.ttl_left_s(),
        "lease_id": None,
        "version": run.version,
        "first_seen_at": utc_iso(run.first_seen_at),
        "done_at": utc_iso(run.done_at),
        "result_hash": run.result_hash,
        "error_code": run.error_code if wire == "failed" or run.state is RunState.UNKNOWN else None,
        "retry_after_sec": run.retry_after_s(),
    }
    return JSONResponse(body)


def result(run: Run) -> JSONResponse:
    wire = WIRE_STATES[run.state]
    body = {
        "ok": wire == "completed",
        "status": wire,
        "key": run.key,
        "result": run.result,
        "result_hash": run.result_hash,
        "error_code": run.error_code if wire == "failed" else None,
        "done_at": utc_iso(run.done_at),
    }
    return JSONResponse(body)


def month_counters(plan: Plan, kind: Kind, counters: Counters) -> dict[str, int]:
    return {
        "usage": counters.usage,
        "limit": LIMITS[plan].quota(kind),
        "requests_total_month": counters.requests_total,
        "blocked_total_month": counters.blocked_total,
        "charged_total_month": counters.charged_total,
        "polling_total_month": counters.polling_total,
    }


def timeline_event(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "ts": unix_s(event.at),
        "type": event.type,
        "status": event.status,
        "duration_ms": event.duration_ms,
        "step": event.step,
        "tool": event.tool,
        "req_id": event.req_id,
        "lease_id": event.lease_id,
        "agent_id": event.agent_id,
        "message": event.message,
        "data": event.data or {},
    }


def timeline_head(head: Timeline) -> dict[str, Any]:
    return {
        "run_id": head.run_id,
        "last_ts": unix_s(head.last_at),
        "last_type": head.last_type,
        "last_status": head.last_status,
        "events_count": head.events_count,
    }


def listed_run(run: ListedRun) -> dict[str, Any]:
    """A run's timeline head, as above, and the run itself."""
    counted = ("attempt", "max_attempts", "failures", "crashes", "max_crashes")
    shown = ("key", "state", "owner", "job", "agent_id", *counted, "progress", "error_code")
    times = ("first_seen_at", "due_at", "started_at", "done_at")
    return {
        "run_id": run.run_id,
        "last_ts": unix_s(run.last_at or run.first_seen_at),
        "last_type": run.last_type or "",
        "last_status": run.last_status,
        "events_count": run.events_count,
        "run": {name: getattr(run, name) for name in (*shown, "error_message")}
        | {name: utc_iso(getattr(run, name)) for name in times},
    }


def feed_item(event: FeedEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "ts": unix_s(event.at),
        "type": event.type,
        "kind": event.kind,
        "key": event.key,
        "status": event.status,
        "agent_id": event.agent_id,
        "tool": event.tool,
        "message": event.message,
        "data": event.data or {},
    }
