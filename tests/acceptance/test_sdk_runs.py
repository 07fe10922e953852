"""The published SDK's runs, executed by the system's own workers, sync and async."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from support.clients import Face, Sdk, connected

from onceonly_jobs.local.subprocess_system import LocalSystem

pytestmark = pytest.mark.anyio


async def types(sdk: Sdk, run_id: str) -> list[str]:
    """The types of a timeline's events, oldest first."""
    timeline = await sdk.get_run_timeline(run_id)
    assert timeline["run_id"] == run_id
    assert timeline["total"] == len(timeline["events"])
    return [event["type"] for event in timeline["events"]]


async def executed_once(sdk: Sdk, run_id: str) -> bool:
    seen = await types(sdk, run_id)
    return (seen.count("run_started"), seen.count("run_finished")) == (1, 1)


async def test_run_and_wait_executes_once_and_answers_again(sdk: Sdk, key: str) -> None:
    first = await sdk.ai.run_and_wait(key, ttl=60, timeout=30)
    assert isinstance(first, sdk.lib.AiResult)
    assert (first.ok, first.status, first.key, first.error_code) == (True, "completed", key, None)
    assert isinstance(first.result, dict)
    assert first.done_at is not None
    assert first.result_hash

    sdk.calls.asked.clear()
    assert await sdk.ai.run_and_wait(key, ttl=60, timeout=30) == first
    asked = ["/ai/run", "/ai/status", "/ai/result"] if sdk.lib.published else ["/ai/run"]
    assert sdk.calls.asked == asked, "a finished key is answered without waiting"
    assert await executed_once(sdk, key)
    usage = await sdk.usage("ai")
    assert (usage["usage"], usage["requests_total_month"]) == (1, 2)


async def test_run_is_acquired_then_attached_to(sdk: Sdk, key: str) -> None:
    run = await sdk.ai.run(key, ttl=60, metadata={"note": "ż"})
    assert isinstance(run, sdk.lib.AiRun)
    assert (run.ok, run.status, run.key, run.ttl, run.charged, run.usage) == (True, "acquired", key, 60, 1, 1)
    assert run.lease_id
    assert run.version == 1
    assert run.limit == 10_000_000
    assert run.first_seen_at

    attached = await sdk.ai.run(key, ttl=60)
    assert attached.status in ("polling", "completed")
    assert (attached.charged, attached.usage, attached.lease_id) == (0, 1, None)

    result = await sdk.ai.wait(key, timeout=30, lease_id=run.lease_id, ttl=60)
    assert result.status == "completed"
    status = await sdk.ai.status(key)
    assert isinstance(status, sdk.lib.AiStatus)
    assert (status.ok, status.status, status.first_seen_at) == (True, "completed", run.first_seen_at)
    assert (status.done_at, status.result_hash) == (result.done_at, result.result_hash)

    finished = await sdk.ai.run(key, ttl=60)
    assert (finished.ok, finished.status, finished.result) == (True, "completed", result.result)
    assert (finished.charged, finished.lease_id, finished.done_at) == (0, None, result.done_at)
    assert await executed_once(sdk, key)


async def test_task_in_metadata_picks_the_job(sdk: Sdk, key: str) -> None:
    result = await sdk.ai.run_and_wait(key, ttl=120, metadata={"task": "daily_summary"}, timeout=30)
    assert (result.ok, result.status) == (True, "completed")
    assert isinstance(result.result, dict)
    again = await sdk.ai.run_and_wait(key, ttl=120, metadata={"task": "daily_summary"}, timeout=30)
    assert again == result
    assert await executed_once(sdk, key)
    events = (await sdk.get_run_timeline(key))["events"]
    assert {event["tool"] for event in events if event["type"].startswith("run_")} == {"daily_summary"}


async def test_unknown_task_is_refused_and_takes_no_key(sdk: Sdk, key: str) -> None:
    with pytest.raises(sdk.lib.ApiError) as caught:
        await sdk.ai.run(key, metadata={"task": "no_such_job"})
    assert (caught.value.status_code, caught.value.detail["error"]) == (400, "unknown_task")
    assert (await sdk.usage("ai"))["usage"] == 0
    assert (await sdk.ai.run(key)).status == "acquired"


async def test_of_16_concurrent_runs_one_is_executed(sdk: Sdk, key: str) -> None:
    results = await asyncio.gather(*(sdk.ai.run_and_wait(key, ttl=60, timeout=30) for _ in range(16)))
    assert {result.status for result in results} == {"completed"}
    assert len({str(result) for result in results}) == 1
    assert await executed_once(sdk, key)
    usage = await sdk.usage("ai")
    assert (usage["usage"], usage["requests_total_month"]) == (1, 16)


async def test_run_id_names_the_timeline(sdk: Sdk, key: str) -> None:
    run_id = f"{key} with space/and slash"
    assert (await sdk.ai.run_and_wait(key, run_id=run_id, metadata={"a": 1}, timeout=30)).ok
    assert await executed_once(sdk, run_id)
    assert await types(sdk, key) == []


class Brief(BaseModel):
    topic: str


async def test_any_metadata_is_taken(sdk: Sdk, key: str) -> None:
    kinds: list[Any] = [{"nested": {"a": [1, None]}}, Brief(topic="ż"), "text", 7, {"text": "x" * 60_000}]
    results = await asyncio.gather(
        *(sdk.ai.run_and_wait(f"{key}:{n}", metadata=kind, timeout=30) for n, kind in enumerate(kinds))
    )
    assert [result.status for result in results] == ["completed"] * len(kinds)


async def test_unknown_key_is_not_found(sdk: Sdk, key: str) -> None:
    for ask in (sdk.ai.status, sdk.ai.result, sdk.ai.wait):
        with pytest.raises(sdk.lib.ApiError) as caught:
            await ask(key)
        assert caught.value.status_code == 404
        assert caught.value.detail == {"error": "not_found", "key": key} | caught.value.detail


async def test_the_requesters_handle_is_no_right_to_the_outcome(sdk: Sdk, key: str) -> None:
    """The worker's lease is its own and never disclosed: nobody else completes or fails its run."""
    run = await sdk.ai.run(key, ttl=60)
    for method, options in (("complete", {"result": {"forged": True}}), ("fail", {"error_code": "forged"})):
        with pytest.raises(sdk.lib.ApiError) as caught:
            await getattr(sdk.ai, method)(key, run.lease_id, **options)
        assert (caught.value.status_code, caught.value.detail["reason"]) == (409, "not_owner")
    result = await sdk.ai.wait(key, timeout=30)
    assert result.status == "completed"
    assert "forged" not in result.result


async def test_short_names_on_the_client(sdk: Sdk, key: str) -> None:
    assert (await sdk.ai_run(key, ttl=60)).status == "acquired"
    assert (await sdk.ai_run_and_wait(key, ttl=60, timeout=30)).status == "completed"


async def test_locks_and_runs_are_separate_key_spaces(sdk: Sdk, key: str) -> None:
    assert (await sdk.check_lock(key, ttl=60)).locked
    assert (await sdk.ai.run_and_wait(key, timeout=30)).ok
    assert (await sdk.check_lock(key, ttl=60)).duplicate


async def test_tenants_do_not_see_each_others_keys(system: LocalSystem, sdk: Sdk, key: str) -> None:
    mine = await sdk.ai.run_and_wait(key, run_id=key, timeout=30)
    assert (await sdk.check_lock(key, ttl=60)).locked
    async with connected(system.base_url, system.api_key, Face("async")) as other:
        with pytest.raises(other.lib.ApiError):
            await other.ai.status(key)
        assert (await other.get_run_timeline(key))["total"] == 0
        assert (await other.check_lock(key, ttl=60)).locked
        assert (await other.ai.lease(key, ttl=60))["status"] == "acquired"
    assert await sdk.ai.result(key) == mine
