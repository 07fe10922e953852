"""/events and /runs: what has happened."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.convertors import PathConvertor, register_url_convertor

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.contracts.events import (
    EventAnswer,
    EventRequest,
    FeedItem,
    RunStateName,
    TimelineAnswer,
    TimelinesAnswer,
)
from onceonly_jobs.contracts.fields import RunId, Text
from onceonly_jobs.services import insights
from onceonly_jobs.store.listing import Filter


class AnyText(PathConvertor):
    """A path parameter that reaches to the end, whatever is in it: slashes, and line breaks too."""

    regex = "(?s:.*)"


register_url_convertor("text", AnyText())

router = APIRouter(route_class=ContractRoute, tags=["events"])

Name = Annotated[Text, Field(max_length=1024)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]


@router.post("/events", response_model=EventAnswer, summary="Add an event to a run's timeline")
async def post_event(body: EventRequest, state: Held, caller: Asking) -> JSONResponse:
    """The timeline begins with the event if there is none yet. Not metered."""
    event_id = await state.db.arun(insights.post_event, caller, body)
    state.hints.moved_here(caller.tenant_id, body.run_id)
    return JSONResponse({"ok": True, "event_id": event_id, "run_id": body.run_id})


@router.get("/events", response_model=list[FeedItem], summary="Recent activity")
async def feed(
    state: Held, caller: Asking, limit: Annotated[int, Query(ge=1, le=500)] = 50, offset: Offset = 0
) -> JSONResponse:
    """Duplicates, limit refusals and runs of this account, newest first."""
    items = await state.db.arun(insights.feed, caller, limit, offset)
    return JSONResponse([answers.feed_item(event) for event in items])


@router.get("/runs", response_model=TimelinesAnswer, summary="Latest runs")
async def latest(
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Offset = 0,
    q: Annotated[Text, Query(max_length=256, description="Prefix of the run id.")] = "",
    run_state: Annotated[RunStateName | None, Query(alias="state", description="Runs in this state.")] = None,
    job: Annotated[Name | None, Query(description="Runs of this job, or calls of this tool.")] = None,
    agent_id: Annotated[Name | None, Query(description="Runs of this agent.")] = None,
    key: Annotated[Name | None, Query(description="Prefix of the runs' key.")] = None,
) -> JSONResponse:
    """Runs with a timeline, latest activity first. With `state`, `job`, `agent_id` or `key`: the runs that match,
    each with a `run` that says how it stands, latest key first; `total` counts up to 10000 of them."""
    if (run_state, job, agent_id, key) != (None, None, None, None):
        if q:
            raise invalid(("query", "q"), "q finds timelines by their run id; give key to find runs")
        wanted = Filter(
            tenant_id=caller.tenant_id, state=run_state, job=job, agent_id=agent_id, key_prefix=key or ""
        )
        total, found = await state.db.arun(insights.list_runs, wanted, limit, offset)
        return JSONResponse({"total": total, "items": [answers.listed_run(run) for run in found]})
    total, heads = await state.db.arun(insights.latest_timelines, caller, q, limit, offset)
    return JSONResponse({"total": total, "items": [answers.timeline_head(head) for head in heads]})


@router.get("/runs/{run_id:text}", response_model=TimelineAnswer, summary="One run's timeline")
async def timeline(
    run_id: RunId,
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=2000)] = 200,
    offset: Offset = 0,
) -> JSONResponse:
    """Events, oldest first. A run never heard of has none."""
    total, events = await state.db.arun(insights.timeline, caller, run_id, limit, offset)
    body = {"run_id": run_id, "total": total, "events": [answers.timeline_event(event) for event in events]}
    return JSONResponse(body)
