"""Long polls: pushed by a hint, with a slow re-read of Postgres behind it for a hint that got lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from onceonly_jobs.api.state import State
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.services import runs

REREAD_S = 1.0


async def read_or_wait(state: State, tenant_id: str, key: str, wait_s: float) -> Run:
    """The run under a key, as soon as it is finished or wait_s seconds have passed. Raises NotFound.

    A process that is to end waits no longer: the caller asks again, of another one.
    """
    run = await state.db.arun(runs.find, tenant_id, key)
    wait_s = min(wait_s, state.settings.max_wait_s)
    if run.finished or wait_s <= 0:
        return run
    clock = asyncio.get_running_loop().time
    end = clock() + wait_s
    async with state.hints.waiting(tenant_id, key) as finished:
        # Read again only now that a hint can't be missed any more.
        run = await state.db.arun(runs.find, tenant_id, key)
        while not run.finished and (left := end - clock()) > 0 and not state.streams.ended:
            with suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), min(REREAD_S, left))
            finished.clear()
            run = await state.db.arun(runs.find, tenant_id, key)
    return run


async def wait_until_settled(state: State, tenant_id: str, run: Run, wait_s: float) -> Run:
    """The run as it is once it is finished or held as unknown, after wait_s seconds, or when the process ends.

    Of one that was deleted meanwhile, the last that was seen of it: who asks again begins anew.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + wait_s
    async with state.hints.waiting(tenant_id, run.key) as finished:
        while True:
            found = await state.db.arun(runs.find_by_id, tenant_id, run.id)
            run, left = found or run, end - clock()
            over = found is None or left <= 0 or state.streams.ended
            if over or run.finished or run.state is RunState.UNKNOWN:
                return run
            with suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), min(REREAD_S, left))
            finished.clear()
