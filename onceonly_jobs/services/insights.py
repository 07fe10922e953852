"""What has happened: timelines of runs, and the recent feed. One source for every front end."""

from __future__ import annotations

from onceonly_jobs.contracts.events import EventRequest
from onceonly_jobs.domain.timelines import Standing
from onceonly_jobs.store import events, listing
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.events import Event, FeedEvent, Timeline
from onceonly_jobs.store.listing import Filter, ListedRun
from onceonly_jobs.store.statement import Operation, autocommit, read_only


@autocommit
def post_event(caller: Caller, request: EventRequest) -> Operation[int]:
    """Add the caller's event to a run's timeline; gives its id."""
    fields = request.model_dump(exclude={"run_id", "type", "data"})
    return (
        yield from events.append(caller.tenant_id, request.run_id, request.type, data=request.data, **fields)
    )


@autocommit
def timeline(caller: Caller, run_id: str, limit: int, offset: int) -> Operation[tuple[int, list[Event]]]:
    """How many events a run has, and a page of them, oldest first."""
    total = yield from events.timeline_length(caller.tenant_id, run_id)
    page = yield from events.timeline(caller.tenant_id, run_id, limit, offset)
    return total, page


@autocommit
def latest_timelines(
    caller: Caller, prefix: str, limit: int, offset: int
) -> Operation[tuple[int, list[Timeline]]]:
    """How many timelines begin with prefix, and a page of them, latest activity first."""
    total = yield from events.latest_total(caller.tenant_id, prefix)
    page = yield from events.latest(caller.tenant_id, prefix, limit, offset)
    return total, page


@autocommit
def feed(caller: Caller, limit: int, offset: int) -> Operation[list[FeedEvent]]:
    """The namespace's recent activity, newest first."""
    return (yield from events.feed(caller.tenant_id, limit, offset))


@read_only
def standing(tenant_id: str, run_id: str, until: int) -> Operation[Standing]:
    """How a timeline stood at the event of that id."""
    standing = Standing()
    if until:
        for type_, key in (yield from events.milestones(tenant_id, run_id, until)):
            standing.see(type_, key)
    return standing


@read_only
def news(
    tenant_id: str, run_id: str, after: int, known: int, limit: int
) -> Operation[tuple[int, list[Event]]]:
    """How many events a run has, and if those are not `known` many, the ones after an id, in order of ids."""
    total = yield from events.timeline_length(tenant_id, run_id)
    if total == known:
        return total, []
    return total, (yield from events.after(tenant_id, run_id, after, limit))


@read_only
def feed_news(tenant_id: str, after: int, seen: list[int], limit: int) -> Operation[list[FeedEvent]]:
    """The namespace's activity after an id and not yet seen, in order of ids."""
    return (yield from events.feed_after(tenant_id, after, seen, limit))


@read_only
def feed_end(tenant_id: str) -> Operation[int]:
    """The id of the namespace's latest activity."""
    return (yield from events.feed_end(tenant_id))


@read_only
def list_runs(wanted: Filter, limit: int, offset: int) -> Operation[tuple[int, list[ListedRun]]]:
    """How many runs match, up to listing.MOST_COUNTED, and a page of them, latest key first."""
    total = yield from listing.total(wanted)
    page = yield from listing.runs(wanted, limit, offset)
    return total, page


@read_only
def run_by_key(tenant_id: str, key: str) -> Operation[ListedRun | None]:
    """The run under a key; None when it was never taken."""
    return (yield from listing.by_key(tenant_id, key))


@read_only
def run_events(tenant_id: str, run_id: str, limit: int, offset: int) -> Operation[list[Event]]:
    """A page of a run's events, oldest first."""
    return (yield from events.timeline(tenant_id, run_id, limit, offset))
