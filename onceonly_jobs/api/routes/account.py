"""/me, /usage and /metrics: who the caller is, and what it has used."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.contracts.account import (
    MeAnswer,
    MetricsAnswer,
    NotificationsAnswer,
    NotificationsRequest,
    UsageAllAnswer,
    UsageAnswer,
    UsageKind,
)
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.services import account
from onceonly_jobs.store.account import Notifications
from onceonly_jobs.store.usage import Counters

router = APIRouter(route_class=ContractRoute, tags=["account"])


@router.get("/me", response_model=MeAnswer, summary="Who am I?")
async def me(state: Held, caller: Asking) -> JSONResponse:
    """The plan and state of the API key's account, its all-time counters and its notification switches."""
    counters, switches = await state.db.arun(account.profile, caller)
    return JSONResponse(
        {
            "plan": caller.plan.value,
            "is_active": True,
            "key_preview": caller.key_preview,
            "current_period_end": None,
            "requests_total_all_time": counters.requests_total,
            "blocked_total_all_time": counters.blocked_total,
            **_switches(switches),
        }
    )


@router.post("/me/notifications", response_model=NotificationsAnswer, summary="Switch notifications")
async def notifications(body: NotificationsRequest, state: Held, caller: Asking) -> JSONResponse:
    """Changes the given switches and answers with all three."""
    return JSONResponse(_switches(await state.db.arun(account.update_notifications, caller, body)))


def _switches(switches: Notifications) -> dict[str, bool]:
    return {
        "email_notifications_enabled": switches.email_notifications_enabled,
        "tool_error_notifications_enabled": switches.tool_error_notifications_enabled,
        "run_failure_notifications_enabled": switches.run_failure_notifications_enabled,
    }


@router.get("/usage", response_model=UsageAnswer, summary="This month's usage of one kind")
async def usage(state: Held, caller: Asking, kind: UsageKind = "make") -> JSONResponse:
    """`make` counts check-lock calls, `ai` leases and runs. Months are UTC."""
    month, counters = await state.db.arun(account.month_usage, caller)
    all_of_it = answers.month_counters(caller.plan, Kind(kind), counters[Kind(kind)])
    shown = ("usage", "limit", "requests_total_month", "blocked_total_month")
    body = {"plan": caller.plan.value, "month": month, **{name: all_of_it[name] for name in shown}}
    return JSONResponse(body, headers={answers.MONTH_HEADER: month})


@router.get("/usage/all", response_model=UsageAllAnswer, summary="This month's usage")
async def usage_all(state: Held, caller: Asking) -> JSONResponse:
    """Both kinds with every counter."""
    month, counters = await state.db.arun(account.month_usage, caller)
    kinds = {kind.value: answers.month_counters(caller.plan, kind, counters[kind]) for kind in Kind}
    body = {"plan": caller.plan.value, "month": month, **kinds}
    return JSONResponse(body, headers={answers.MONTH_HEADER: month})


Day = Annotated[str, Query(pattern=r"^\d{4}-\d{2}-\d{2}$", description="YYYY-MM-DD, UTC, included.")]


@router.get("/metrics", response_model=MetricsAnswer, summary="Usage per day")
async def metrics(from_day: Day, to_day: Day, state: Held, caller: Asking) -> JSONResponse:
    """Counters of each UTC day in the range that has any."""
    first, last = _day("from_day", from_day), _day("to_day", to_day)
    if first > last:
        raise invalid(("query", "from_day"), "from_day is after to_day")
    rows = await state.db.arun(account.daily_usage, caller, first, last)
    by_day: dict[date, dict[Kind, Counters]] = {}
    for day, kind, counters in rows:
        by_day.setdefault(day, {})[kind] = counters
    items = [
        {"day": day.isoformat()} | {kind.value: _counted(kinds.get(kind, Counters())) for kind in Kind}
        for day, kinds in sorted(by_day.items())
    ]
    return JSONResponse({"from_day": from_day, "to_day": to_day, "items": items})


def _day(name: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise invalid(("query", name), f"not a day: {error}") from None


def _counted(counters: Counters) -> dict[str, Any]:
    return {
        "usage": counters.usage,
        "requests_total": counters.requests_total,
        "blocked_total": counters.blocked_total,
        "charged_total": counters.charged_total,
        "polling_total": counters.polling_total,
    }
