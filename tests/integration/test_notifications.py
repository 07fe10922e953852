"""Notifications: written with their cause, delivered at least once under one id, signed so that anybody can verify."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import standardwebhooks
from support import tool_server as does
from support.tool_server import ToolServer, refused_url

from onceonly_jobs.domain.plans import LIMITS, Kind, Plan
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.services import account, claims, outbox, runs, webhooks
from onceonly_jobs.services.claims import Failure
from onceonly_jobs.store.webhooks import PAUSES_S
from onceonly_jobs.testing import Clock
from onceonly_jobs.worker import courier as courier_module
from onceonly_jobs.worker.courier import LEASE_S, Courier

if TYPE_CHECKING:
    from tests.integration.conftest import Api

PATIENCE_S = 20.0
SECRET = "a-shared-secret"
AUTH = {"type": "hmac_sha256", "secret": SECRET}
SERVER = {"secret_key": "0123456789abcdef0123456789abcdef", "tool_allow": "loopback"}


@pytest.fixture
def receiver() -> Iterator[ToolServer]:
    with ToolServer() as server:
        yield server


@pytest.fixture
def told(serve: Callable[..., Api], receiver: ToolServer) -> Api:
    """A tenant whose notifications go to the receiver."""
    api = serve(**SERVER)
    assert api.post("/me/webhook", url=receiver.url, secret=SECRET).status_code == 200
    return api


@pytest.fixture
def courier(told: Api) -> Iterator[Courier]:
    courier = Courier(told.app.settings)
    yield courier
    courier.close()


def new_tenant_of(api: Api) -> Api:
    """Another tenant of the same application."""
    api.db.run(account.ensure_tenant, "deaf", Plan.AGENCY)
    api_key = api.db.run(account.create_key, "deaf").api_key
    return replace(api, api_key=api_key, caller=api.db.run(account.authenticate, api_key))


def deliveries(api: Api, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get("/me/webhook/deliveries", **params).json()
    return found


def failed(api: Api, key: str = "k", **metadata: Any) -> None:
    api.post("/ai/run", key=key, metadata=metadata)
    api.work(key, error_code="boom")


def tool_run(api: Api, receiver: ToolServer, tool: str = "send_email", effect: str = "idempotent") -> Claim:
    """A governed call of a tool, as a worker has claimed it."""
    api.post("/tools", name=tool, url=receiver.url, auth=AUTH, effect=effect)
    answer = api.request(
        "POST", "/ai/run", json={"agent_id": "bot", "tool": tool}, headers={"Prefer": "wait=0"}
    )
    assert answer.status_code == 409, "still to be carried out"
    key = answer.json()["detail"]["key"]
    run = api.db.run(runs.find, api.tenant_id, key)
    claim = api.db.run(claims.claim, run.id, "onceonly.tool_call", 15.0, None)
    assert claim is not None
    return claim


def test_a_failed_run_is_told_of_once_and_signed(told: Api, receiver: ToolServer, courier: Courier) -> None:
    failed(told, run_id="night")
    assert courier.tick() == 0.0
    assert courier.tick() > 0.0
    (got,) = receiver.requests
    body = standardwebhooks.Webhook(b64encode(SECRET.encode()).decode()).verify(got.body, got.headers)
    (sent,) = deliveries(told)
    assert (body["id"], got.headers["webhook-id"]) == (sent["message_id"], sent["message_id"])
    assert (sent["state"], sent["attempts"], sent["status"], sent["error"]) == ("delivered", 1, 200, None)
    assert (body["type"], body["timestamp"]) == ("run.failed", sent["at"])
    assert body["data"] == {
        "key": "k",
        "run_id": "night",
        "job": "echo",
        "tool": None,
        "agent_id": None,
        "attempt": 1,
        "error_code": "boom",
        "message": None,
        "dead_lettered": False,
        "decision_id": body["data"]["decision_id"],
    }


def test_what_went_well_is_not_told_of(told: Api) -> None:
    told.post("/ai/run", key="done")
    told.work("done")
    lease_id = told.post("/ai/run", key="gone").json()["lease_id"]
    told.post("/ai/cancel", key="gone", lease_id=lease_id)
    told.post("/ai/run", key="again")
    told.db.run(claims.retry, told.claim("again"), 0, "e", "m")
    assert deliveries(told) == []


def test_a_namespace_without_a_webhook_leaves_nothing_in_the_outbox(serve: Callable[..., Api]) -> None:
    api = serve(**SERVER)
    failed(api)
    assert api.rows("notifications") == 0


def test_a_callers_own_failure_and_a_lost_worker_are_told_of(told: Api, clock: Clock) -> None:
    lease_id = told.post("/ai/lease", key="own").json()["lease_id"]
    told.post("/ai/fail", key="own", lease_id=lease_id, error_code="mine")
    told.post("/ai/run", key="lost")
    for _ in range(3):
        told.claim("lost")
        clock.advance(60)
        told.db.run(outbox.reap, 10, 600)
    codes = [item["data"]["error_code"] for item in deliveries(told)]
    assert codes == ["worker_lost", "mine"]
    assert deliveries(told)[0]["data"]["dead_lettered"] is True


def test_tool_errors_and_unknown_outcomes_have_names_of_their_own(told: Api, receiver: ToolServer) -> None:
    claim = tool_run(told, receiver)
    told.db.run(claims.end_as_failed, claim, Failure(error_code="tool_error", message="500"), 600)
    held = tool_run(told, receiver, "pay", effect="irreversible")
    told.db.run(claims.hold_unknown, held, "no answer", None)
    seen = [(item["type"], item["data"]["tool"], item["data"]["message"]) for item in deliveries(told)]
    assert seen == [("tool.outcome_unknown", "pay", "no answer"), ("tool.error", "send_email", "500")]


@pytest.mark.parametrize("by", ["heartbeat", "extension", "claim", "switch"])
def test_a_call_that_somebody_else_puts_on_hold_is_told_of(
    told: Api, receiver: ToolServer, clock: Clock, by: str
) -> None:
    claim = tool_run(told, receiver, "pay", effect="idempotent" if by == "claim" else "irreversible")
    if by == "claim":
        told.db.run(claims.retry, claim, 0, "worker_lost", "stopped")
        told.post("/tools", name="pay", url=receiver.url, auth=AUTH, effect="irreversible")
        assert told.db.run(claims.claim, claim.id, claim.job, 15.0, None) is None
    elif by == "switch":
        told.post("/agents/bot/disable")
    else:
        told.post("/policies/bot", blocked_tools=["pay"])
        if by == "heartbeat":
            told.db.run(claims.heartbeat, claim, 15.0)
        else:
            run = told.db.run(runs.find, told.tenant_id, claim.key)
            told.post("/ai/extend", key=claim.key, lease_id=run.lease_id)
    assert told.db.run(runs.find, told.tenant_id, claim.key).state is RunState.UNKNOWN
    assert [item["type"] for item in deliveries(told)] == ["tool.outcome_unknown"]


@pytest.mark.parametrize(
    ("off", "types"),
    [
        ("run_failure_notifications_enabled", ["tool.error"]),
        ("tool_error_notifications_enabled", ["run.failed"]),
        ("email_notifications_enabled", []),
    ],
)
def test_the_switches_decide(told: Api, receiver: ToolServer, off: str, types: list[str]) -> None:
    told.post("/me/notifications", **{off: False})
    failed(told)
    claim = tool_run(told, receiver)
    told.db.run(claims.end_as_failed, claim, Failure(error_code="tool_error"), 600)
    assert [item["type"] for item in deliveries(told)] == types


def test_a_limit_is_told_of_once_per_agent_limit_and_window(
    told: Api, receiver: ToolServer, clock: Clock
) -> None:
    auth = {"type": "hmac_sha256", "secret": SECRET}
    told.post("/tools", name="send_email", url=receiver.url, auth=auth)
    for agent, policy in (
        ("bot", {"max_actions_per_hour": 0}),
        ("other", {"max_calls_per_tool": {"send_email": 0}}),
        ("third", {"max_spend_usd_per_day": 0.5}),
    ):
        told.post(f"/policies/{agent}", **policy)
        for n in range(3):
            body = {"agent_id": agent, "tool": "send_email", "args": {"n": n}, "spend_usd": 1}
            assert told.request("POST", "/ai/run", json=body).status_code == 402
    seen = {item["data"]["agent_id"]: item["data"] for item in deliveries(told)}
    assert len(deliveries(told)) == len(seen) == 3
    assert {agent: (data["code"], data["limit"]) for agent, data in seen.items()} == {
        "bot": ("max_actions_per_hour_exceeded", 0),
        "other": ("max_calls_per_tool_exceeded", 0),
        "third": ("max_spend_usd_per_day_exceeded", 0.5),
    }
    clock.advance(3600)
    told.request("POST", "/ai/run", json={"agent_id": "bot", "tool": "send_email"})
    assert len([item for item in deliveries(told) if item["data"]["agent_id"] == "bot"]) == 2


def test_a_keyed_run_that_meets_a_limit_is_told_of_once(told: Api) -> None:
    told.post("/policies/bot", max_actions_per_hour=0)
    for key in ("a", "b", "b"):
        assert told.post("/ai/run", key=key, metadata={"agent_id": "bot"}).json()["status"] == "failed"
    (item,) = deliveries(told)
    assert (item["type"], item["data"]["tool"]) == ("limit.reached", "echo")


@pytest.mark.parametrize(("plan", "status"), [(Plan.FREE, 402), (Plan.STARTER, 200)])
def test_a_used_up_quota_is_told_of_once_a_month(
    serve: Callable[..., Api], receiver: ToolServer, plan: Plan, status: int
) -> None:
    api = serve(plan, **SERVER)
    api.post("/me/webhook", url=receiver.url, secret=SECRET)
    quota = LIMITS[plan].quota(Kind.AI)
    api.use_up("ai", quota - 1)
    if plan is Plan.FREE:
        with api.db.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO usage_caps (tenant_id, kind, month, usage) VALUES"
                    " (:tenant_id, 'ai', date_trunc('month', onceonly_now() AT TIME ZONE 'UTC')::date, :usage)"
                ),
                {"tenant_id": api.tenant_id, "usage": quota - 1},
            )
    assert api.post("/ai/lease", key="last").status_code == 200
    assert deliveries(api) == []
    for key in ("more", "and more"):
        assert api.post("/ai/lease", key=key).status_code == status
    (item,) = deliveries(api)
    month = item["at"][:7]
    assert item["type"] == "quota.reached"
    assert item["data"] == {"kind": "ai", "plan": plan.value, "limit": quota, "month": month}


def test_failed_deliveries_pause_longer_and_longer_and_then_stop(
    told: Api, receiver: ToolServer, courier: Courier, clock: Clock
) -> None:
    receiver.script(*[does.status(500) for _ in range(len(PAUSES_S) + 1)])
    failed(told)
    for attempt, pause_s in enumerate(PAUSES_S, 1):
        courier.tick()
        assert len(receiver.requests) == attempt
        clock.advance(pause_s - 1)
        courier.tick()
        assert len(receiver.requests) == attempt, "not before its time"
        clock.advance(2)
    courier.tick()
    (dead,) = deliveries(told, state="dead")
    assert (dead["attempts"], dead["status"], dead["error"]) == (len(PAUSES_S) + 1, 500, "answered 500")
    assert dead["due_at"] is None
    assert told.get("/me/webhook").json()["dead"] == 1
    assert len({got.headers["webhook-id"] for got in receiver.requests}) == 1

    assert told.post("/me/webhook/retry").json() == {"ok": True, "retried": 1}
    courier.tick()
    assert receiver.requests[-1].headers["webhook-id"] == dead["message_id"]
    assert deliveries(told)[0]["state"] == "delivered"


def test_a_courier_that_died_in_mid_delivery_is_followed_by_another(
    told: Api, receiver: ToolServer, courier: Courier, clock: Clock
) -> None:
    failed(told)
    (taken,) = told.db.run(webhooks.take, 10, 10, LEASE_S)
    courier.tick()
    assert receiver.requests == [], "taken by one"
    clock.advance(LEASE_S + 1)
    courier.tick()
    (got,) = receiver.requests
    assert got.headers["webhook-id"] == taken.message_id
    told.db.run(webhooks.record, taken, None, "a late failure")
    assert deliveries(told)[0]["state"] == "delivered", "which changes nothing any more"


def test_one_namespaces_dead_receiver_does_not_hold_up_the_others(
    told: Api, receiver: ToolServer, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "BATCH", 4)
    monkeypatch.setattr(courier_module, "EACH", 2)
    deaf = new_tenant_of(told)
    deaf.post("/me/webhook", url=refused_url(), secret=SECRET)
    for n in range(6):
        failed(deaf, f"k{n}")
    failed(told)
    courier.tick()
    assert len(receiver.requests) == 1
    assert sorted(item["attempts"] for item in deliveries(deaf)) == [0, 0, 0, 0, 1, 1]
    assert "not reached" in deliveries(deaf)[-1]["error"]


WAITING = """
import threading
from onceonly_jobs.config import Settings
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.courier import Courier

delivering = threading.Event()

def wait_for_an_answer(*_):
    delivering.set()
    threading.Event().wait()

Database.run = lambda *_: ["one", "two"]
Courier._deliver = wait_for_an_answer
Courier(Settings.load(database_url="postgresql://nobody@127.0.0.1:1/nothing")).start()
delivering.wait()
"""


def test_a_process_that_ends_waits_for_no_receiver() -> None:
    subprocess.run([sys.executable, "-c", WAITING], check=True, timeout=PATIENCE_S)


def test_what_cannot_be_recorded_is_left_for_its_lease_to_run_out(
    told: Api, receiver: ToolServer, courier: Courier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(told)
    with monkeypatch.context() as broken:
        broken.setattr(courier_module.webhooks, "record", lambda *_: 1 / 0)
        assert courier.tick() > 0.0
    assert len(receiver.requests) == 1
    clock.advance(LEASE_S + 1)
    courier.tick()
    assert len(receiver.requests) == 2
    assert deliveries(told)[0]["state"] == "delivered"


def test_a_webhook_may_not_be_inside_this_network(serve: Callable[..., Api], receiver: ToolServer) -> None:
    api = serve(**{**SERVER, "tool_allow": ""})
    api.post("/me/webhook", url=receiver.url, secret=SECRET)
    failed(api)
    courier = Courier(api.app.settings)
    courier.tick()
    courier.close()
    assert receiver.requests == []
    assert "not a public address" in deliveries(api)[0]["error"]


def test_a_redirect_is_not_followed(told: Api, receiver: ToolServer, courier: Courier) -> None:
    with ToolServer() as elsewhere:
        receiver.script(does.redirect(elsewhere.url))
        failed(told)
        courier.tick()
        assert elsewhere.requests == []
    assert deliveries(told)[0]["error"] == "answered 307"


def test_a_removed_webhook_gives_up_what_was_not_delivered(told: Api, courier: Courier) -> None:
    failed(told)
    url = told.get("/me/webhook").json()["url"]
    assert told.request("DELETE", "/me/webhook").json() == {"ok": True, "deleted": url}
    (dead,) = deliveries(told)
    assert (dead["state"], dead["error"]) == ("dead", "the webhook was removed")
    failed(told, "later")
    assert len(deliveries(told)) == 1
    assert told.get("/me/webhook").status_code == 404
    assert told.request("DELETE", "/me/webhook").status_code == 404
    assert told.post("/me/webhook/test").status_code == 404
    assert told.post("/me/webhook/retry").json()["retried"] == 0


def test_a_webhook_is_set_and_changed_and_its_secret_never_shown(told: Api, receiver: ToolServer) -> None:
    first = told.get("/me/webhook").json()
    assert (first["url"], first["secret_mask"]) == (receiver.url, "***ret")
    changed = told.post("/me/webhook", url="https://example.com/hook").json()
    assert (changed["url"], changed["secret_id"]) == ("https://example.com/hook", first["secret_id"])
    other = told.post("/me/webhook", url="https://example.com/hook", secret="another-secret")
    assert other.json()["secret_id"] != first["secret_id"]
    assert "another-secret" not in other.text + told.get("/me/webhook").text
    with told.db.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT webhooks::text || feed_events::text FROM webhooks, feed_events"
        )
        assert all("another-secret" not in row[0] for row in rows)


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"secret": SECRET}, ["body", "url"]),
        ({"url": "ftp://x/", "secret": SECRET}, ["body", "url"]),
        ({"url": "https://example.com/", "secret": "short"}, ["body", "secret"]),
        ({"url": "https://example.com/"}, ["body", "secret"]),
    ],
)
def test_a_webhook_that_cannot_be(serve: Callable[..., Api], body: dict[str, Any], loc: list[str]) -> None:
    answer = serve(**SERVER).request("POST", "/me/webhook", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == loc
    assert "short" not in answer.text.replace("too_short", "").replace("string_too_short", "")


def test_a_server_without_a_key_keeps_no_secret(serve: Callable[..., Api]) -> None:
    answer = serve().post("/me/webhook", url="https://example.com/", secret=SECRET)
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "unsupported")


def test_a_webhook_can_be_tried(told: Api, receiver: ToolServer, courier: Courier) -> None:
    made = told.post("/me/webhook/test").json()
    courier.tick()
    (got,) = receiver.requests
    assert (got.json["type"], got.json["id"]) == ("webhook.test", made["message_id"])


def test_old_notifications_are_forgotten_and_pending_ones_are_not(told: Api, clock: Clock) -> None:
    failed(told)
    clock.advance(33 * 86_400)
    assert told.db.run(webhooks.forget, 10) == 0
    told.request("DELETE", "/me/webhook")
    assert told.db.run(webhooks.forget, 10) == 1
