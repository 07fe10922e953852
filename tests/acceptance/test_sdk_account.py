"""The published SDK's account, usage, feed, metrics and timeline calls against a running system, sync and async."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import pytest
from support.clients import Sdk

pytestmark = pytest.mark.anyio

COUNTERS = {
    *("usage", "limit", "requests_total_month", "blocked_total_month"),
    *("charged_total_month", "polling_total_month"),
}
SWITCHES = (
    "email_notifications_enabled",
    "tool_error_notifications_enabled",
    "run_failure_notifications_enabled",
)


async def use(sdk: Sdk, key: str) -> None:
    """Three check-locks on two keys; a lease, an attempt at it, and its completion."""
    for name in ("a", "b", "a"):
        await sdk.check_lock(f"{key}:{name}", ttl=60)
    lease = await sdk.ai.lease(key, ttl=60)
    await sdk.ai.lease(key, ttl=60)
    await sdk.ai.complete(key, lease["lease_id"], result={})


async def test_me(sdk: Sdk, key: str) -> None:
    fresh = await sdk.me()
    assert fresh["plan"] == "agency"
    assert fresh["is_active"] is True
    assert re.fullmatch(r"once_live_\.\.\..{4}", fresh["key_preview"])
    assert sdk.client.api_key.endswith(fresh["key_preview"][-4:])
    assert (fresh["requests_total_all_time"], fresh["blocked_total_all_time"]) == (0, 0)
    assert [fresh[switch] for switch in SWITCHES] == [True, True, True]
    await use(sdk, key)
    assert (await sdk.me())["requests_total_all_time"] == 5


async def test_notifications_change_one_at_a_time(sdk: Sdk) -> None:
    changed = await sdk.update_notifications(tool_error_notifications_enabled=False)
    assert changed == dict(zip(SWITCHES, (True, False, True), strict=True))
    changed = await sdk.update_notifications(
        email_notifications_enabled=False, tool_error_notifications_enabled=True
    )
    assert changed == dict(zip(SWITCHES, (False, True, True), strict=True))
    assert changed.items() <= (await sdk.me()).items()
    with pytest.raises(ValueError, match="at least one"):
        await sdk.update_notifications()


async def test_usage_counts_every_call_once(sdk: Sdk, key: str) -> None:
    await use(sdk, key)
    everything = await sdk.usage_all()
    month = everything["month"]
    assert re.fullmatch(r"\d{4}-\d\d", month)
    assert everything["plan"] == "agency"
    assert set(everything["make"]) == set(everything["ai"]) == COUNTERS
    assert everything["make"] == {
        "usage": 1,
        "limit": 2_000_000,
        "requests_total_month": 3,
        "blocked_total_month": 0,
        "charged_total_month": 0,
        "polling_total_month": 0,
    }
    assert everything["ai"] == {
        "usage": 1,
        "limit": 10_000_000,
        "requests_total_month": 2,
        "blocked_total_month": 0,
        "charged_total_month": 1,
        "polling_total_month": 1,
    }
    for kind, usage in (("make", await sdk.usage()), ("ai", await sdk.usage("ai"))):
        assert (usage["plan"], usage["month"]) == ("agency", month)
        assert {name: usage[name] for name in COUNTERS & set(usage)}.items() <= everything[kind].items()


async def test_feed_shows_duplicates_newest_first(sdk: Sdk, key: str) -> None:
    assert await sdk.events() == {"data": []}
    await use(sdk, key)
    await sdk.check_lock(f"{key}:b", ttl=60)
    feed = (await sdk.events())["data"]
    duplicates = [item for item in feed if item["type"] == "duplicate"]
    assert [item["key"] for item in duplicates] == [f"{key}:b", f"{key}:a"]
    assert {(item["kind"], item["status"]) for item in duplicates} == {("make", "duplicate")}
    assert all(isinstance(item["ts"], int) and isinstance(item["id"], int) for item in feed)
    assert any(item["kind"] == "ai" and item["key"] == key for item in feed)
    assert (await sdk.events(limit=1))["data"] == feed[:1]
    assert (await sdk.events(limit=500, offset=1))["data"] == feed[1:]


async def test_metrics_are_counted_per_day(sdk: Sdk, key: str) -> None:
    await use(sdk, key)
    today = datetime.now(UTC).date()
    first, last = today - timedelta(days=1), today + timedelta(days=1)
    metrics = await sdk.metrics(first.isoformat(), last.isoformat())
    assert (metrics["from_day"], metrics["to_day"]) == (first.isoformat(), last.isoformat())
    assert all(first <= date.fromisoformat(item["day"]) <= last for item in metrics["items"])

    def total(kind: str, counter: str) -> int:
        return sum(item[kind][counter] for item in metrics["items"])

    counters = ("usage", "requests_total", "blocked_total", "charged_total", "polling_total")
    assert [total("make", counter) for counter in counters] == [1, 3, 0, 0, 0]
    assert [total("ai", counter) for counter in counters] == [1, 2, 0, 1, 1]
    assert (await sdk.metrics("2020-01-01", "2020-01-31"))["items"] == []


@pytest.mark.parametrize("suffix", ["", " with space", "/with/slash", " x/y", ":ż?a=b#c", "%2F"])
async def test_posted_events_are_on_their_timeline(sdk: Sdk, key: str, suffix: str) -> None:
    run_id = key + suffix
    empty = await sdk.get_run_timeline(run_id)
    assert (empty["run_id"], empty["total"], empty["events"]) == (run_id, 0, [])

    details = {
        "status": "ok",
        "step": "fetch",
        "tool": "http",
        "req_id": "r1",
        "lease_id": "l1",
        "agent_id": "a1",
        "message": "żółw",
        "duration_ms": 12,
    }
    posted = await sdk.post_event(
        run_id=run_id, type="note", ts=1_711_871_390, data={"n": 1}, shade="grey", **details
    )
    assert (posted["ok"], posted["run_id"]) == (True, run_id)
    assert isinstance(posted["event_id"], int)
    second = await sdk.post_event(run_id=run_id, type="sdk_debug")

    timeline = await sdk.get_run_timeline(run_id)
    assert (timeline["run_id"], timeline["total"]) == (run_id, 2)
    note, debug = timeline["events"]
    assert details.items() <= note.items()
    assert (note["id"], note["ts"], note["type"]) == (posted["event_id"], 1_711_871_390, "note")
    assert note["data"].items() >= {"n": 1}.items()
    assert (debug["id"], debug["type"], debug["status"]) == (second["event_id"], "sdk_debug", None)

    page = await sdk.get_run_timeline(run_id, limit=1, offset=1)
    assert (page["total"], page["events"]) == (2, [debug])


async def test_timeline_of_a_lease_has_its_marker_and_its_end(sdk: Sdk, key: str) -> None:
    await sdk.post_event(run_id=key, type="sdk_debug", message="about to start")
    lease = await sdk.ai.lease(key, ttl=60)
    await sdk.ai.complete(key, lease["lease_id"], result={})
    events = (await sdk.get_run_timeline(key))["events"]
    assert events[0]["type"] == "sdk_debug"
    assert [(event["type"], event["status"]) for event in events[-1:]] == [("run_finished", "completed")]
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert lease["lease_id"] not in str(events)
