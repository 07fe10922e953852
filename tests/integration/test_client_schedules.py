"""`client.schedules`, sync and async, against the real application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from onceonly_jobs import ApiError, OnceOnly
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import claims

if TYPE_CHECKING:
    from tests.integration.conftest import Api

Call = Callable[..., Any]


class InProcess(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Carries requests to the application of this process."""

    def __init__(self, api: Api) -> None:
        self._app = api.app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        content = request.read()
        answer = self._app.request(request.method, str(request.url), headers=request.headers, content=content)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return await asyncio.to_thread(self.handle_request, request)


@pytest.fixture(params=["sync", "async"])
def call(api: Api, request: pytest.FixtureRequest) -> Call:
    """A method of `client.schedules`, by its name."""
    api.db.run(claims.announce, [JobSpec(name="report", queue="reports")])
    carrier = InProcess(api)
    client = OnceOnly(api.api_key, "http://test/v1", transport=carrier, async_transport=carrier)

    def sync(method: str, *args: Any, **fields: Any) -> Any:
        return getattr(client.schedules, method)(*args, **fields)

    def awaited(method: str, *args: Any, **fields: Any) -> Any:
        return asyncio.run(getattr(client.schedules, f"{method}_async")(*args, **fields))

    return sync if request.param == "sync" else awaited


def test_a_schedule_lives_through_the_client(call: Call) -> None:
    start = datetime(2150, 1, 1, tzinfo=UTC)
    made = call("create", "s", task="report", cron="0 6 * * *", tz="Europe/Kyiv", start_at=start)
    assert (made["name"], made["status"], made["start_at"]) == ("s", "active", "2150-01-01T00:00:00Z")
    assert call("create", "s", task="report", cron="0 6 * * *", tz="Europe/Kyiv", start_at=start) == made
    assert call("list")["items"] == [call("get", "s")]
    assert call("update", "s", overlap="skip", start_at=None)["overlap"] == "skip"
    assert len(call("next", "s", 3)["items"]) == 3
    assert call("pause", "s")["status"] == "paused"
    assert call("resume", "s")["status"] == "active"
    assert call("ticks", "s")["items"] == []
    assert call("delete", "s")["ok"] is True
    with pytest.raises(ApiError) as raised:
        call("get", "s")
    assert raised.value.status_code == 404


def test_a_trigger_is_one_run_per_id(call: Call) -> None:
    call("create", "s", task="report", every_s=3600)
    first, again = call("trigger", "s", "monday"), call("trigger", "s", "monday")
    assert (first.status, again.status) == ("acquired", "polling")
    assert first.key == again.key == "trigger:s:monday"
    assert call("trigger", "s").key != call("trigger", "s").key


def test_a_backfill_makes_up_for_each_tick_once(call: Call) -> None:
    call("create", "s", task="report", cron="0 6 * * *")
    since, until = datetime(2026, 1, 1, tzinfo=UTC), "2026-01-03T23:00:00Z"
    assert call("backfill", "s", since, until)["created"] == 3
    assert call("backfill", "s", since, until)["existing"] == 3
