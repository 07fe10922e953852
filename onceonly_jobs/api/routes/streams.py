"""/runs/{run_id}/stream and /events/stream: what happens, as it happens, as Server-Sent Events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.routing import Match
from starlette.types import Scope

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held, bearer
from onceonly_jobs.api.state import State
from onceonly_jobs.api.streaming import PING, RETRY_MS, EventStream, sse
from onceonly_jobs.contracts.fields import RunId
from onceonly_jobs.dispatch.hints import ANYTHING
from onceonly_jobs.domain.timelines import Standing
from onceonly_jobs.errors import Refusal
from onceonly_jobs.services import account, insights
from onceonly_jobs.store.events import Event, FeedEvent

logger = logging.getLogger(__name__)

REREAD_S = 1.0
"""How soon a stream looks again where no hint comes."""
GATHER_S = 0.05
"""How long a hint waits for others: a busy run is read in batches."""
PING_S = 15.0
"""How often a stream shows that it is alive, and its key is asked for again."""
BATCH = 500
SETTLE_S = 2.0
"""How much later than its neighbours an event of the feed may be committed and still be seen."""


class _StreamRoute(ContractRoute):
    """Not for the run whose own id ends with `/stream`: that slash is encoded."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not scope.get("raw_path", b"/stream").endswith(b"/stream"):
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(route_class=_StreamRoute, tags=["events"])

LastEventId = Annotated[
    int | None, Header(ge=0, le=2**63 - 1, description="Go on after this event: its `id`.")
]
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events as they happen.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "Nothing more will come: the run has finished, and all of it was seen."},
}


@router.get(
    "/runs/{run_id:text}/stream", response_class=Response, responses=STREAM, summary="Follow a run's timeline"
)
async def follow_run(
    run_id: RunId,
    request: Request,
    state: Held,
    caller: Asking,
    last_event_id: LastEventId = None,
    follow: Annotated[bool, Query(description="Go on after the run has finished.")] = False,
) -> Response:
    """The whole timeline, or what came after `Last-Event-ID`, and then each event as it happens; `data` is an event
    as in `GET /runs/{run_id}`. Ends when the timeline's runs have finished. A comment shows every 15 seconds that
    the stream is alive."""
    after = last_event_id or 0
    standing = await state.db.arun(insights.standing, caller.tenant_id, run_id, after)
    if standing.over and not follow:
        _, rest = await state.db.arun(insights.news, caller.tenant_id, run_id, after, -1, 1)
        if not rest:
            return Response(status_code=204)
    timeline = _Timeline(state, caller.tenant_id, run_id, after, standing, follow=follow)
    return EventStream(state.streams, _live(state, bearer(request), timeline))


@router.get(
    "/events/stream", response_class=Response, responses={200: STREAM[200]}, summary="Follow the feed"
)
async def follow_feed(
    request: Request, state: Held, caller: Asking, last_event_id: LastEventId = None
) -> Response:
    """What happens from now on, or has happened after `Last-Event-ID`; `data` is an item as in `GET /events`. An item
    may come a moment later than one with a larger id. Never ends by itself."""
    after = last_event_id
    if after is None:
        after = await state.db.arun(insights.feed_end, caller.tenant_id)
    return EventStream(state.streams, _live(state, bearer(request), _Feed(state, caller.tenant_id, after)))


class _Timeline:
    """A run's events from one id on."""

    def __init__(
        self, state: State, tenant_id: str, run_id: str, after: int, standing: Standing, *, follow: bool
    ) -> None:
        self._db = state.db
        self._tenant_id = tenant_id
        self._follow = follow
        self._after = after
        self._known = -1
        self._standing = standing
        self.name = (tenant_id, run_id)

    async def news(self) -> list[bytes]:
        total, events = await self._db.arun(insights.news, *self.name, self._after, self._known, BATCH)
        self._known = total if len(events) < BATCH else -1
        return [self._told(event) for event in events]

    def _told(self, event: Event) -> bytes:
        self._after = event.id
        self._standing.see(event.type, (event.data or {}).get("key"))
        return sse(event.id, answers.timeline_event(event))

    @property
    def more_at_once(self) -> bool:
        return self._known == -1

    @property
    def over(self) -> bool:
        return self._standing.over and not self._follow and not self.more_at_once


class _Feed:
    """A namespace's activity from one id on. Its transactions do not commit in the order of their ids."""

    over = False

    def __init__(self, state: State, tenant_id: str, after: int) -> None:
        self._db = state.db
        self._floor = after
        self._seen: dict[int, float] = {}
        self.more_at_once = False
        self.name = (tenant_id, ANYTHING)

    async def news(self) -> list[bytes]:
        now = asyncio.get_running_loop().time()
        settled = [number for number, at in self._seen.items() if now - at > SETTLE_S]
        if settled:
            self._floor = max(settled)
            self._seen = {number: at for number, at in self._seen.items() if number > self._floor}
        events: list[FeedEvent] = await self._db.arun(
            insights.feed_news, self.name[0], self._floor, list(self._seen), BATCH
        )
        self._seen |= {event.id: now for event in events}
        self.more_at_once = len(events) == BATCH
        return [sse(event.id, answers.feed_item(event)) for event in events]


async def _live(state: State, api_key: str, source: _Timeline | _Feed) -> AsyncIterator[bytes]:
    """The source's news until it is over, its key is refused, or the process ends."""
    clock = asyncio.get_running_loop().time
    yield f"retry: {RETRY_MS}\n\n".encode()
    ping_at = clock() + PING_S
    try:
        async with state.hints.waiting(*source.name) as woken:
            while not state.streams.ended:
                if news := await source.news():
                    yield b"".join(news)
                if source.over:
                    return
                if clock() >= ping_at:
                    await state.db.arun(account.authenticate, api_key)
                    yield PING
                    ping_at = clock() + PING_S
                if not source.more_at_once:
                    await state.streams.woken(woken, min(REREAD_S, max(0.0, ping_at - clock())))
                    await asyncio.sleep(GATHER_S)
    except Refusal as refusal:
        logger.info("a stream ends: %s", refusal)
    except (DBAPIError, PoolTimeout) as error:
        # Too late for a status: the client comes back, and is told then.
        logger.warning("a stream ends, the database does not answer: %s", error.__cause__ or error)
