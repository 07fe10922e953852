"""Plans: TTLs, quotas, and the Free plan's hard stop (§1.6, §1.7, §2.1, §2.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.services import account

if TYPE_CHECKING:
    from onceonly_jobs.store.database import Database
    from tests.integration.conftest import Api, NewApi

# plan, make and ai per month, default TTL, maximum TTL: the table of §1.7
TABLE = [
    (Plan.FREE, 1_000, 3_000, 60, 3_600),
    (Plan.STARTER, 20_000, 100_000, 3_600, 86_400),
    (Plan.PRO, 200_000, 1_000_000, 21_600, 604_800),
    (Plan.AGENCY, 2_000_000, 10_000_000, 86_400, 2_592_000),
]
TAKING = ["/check-lock", "/ai/lease", "/ai/run"]


@pytest.mark.parametrize(("plan", "make", "ai", "default", "most"), TABLE)
@pytest.mark.parametrize("path", TAKING)
def test_ttl_is_the_plans_default_or_clamped_into_its_range(
    new_tenant: NewApi, path: str, plan: Plan, make: int, ai: int, default: int, most: int
) -> None:
    """§1.6: clamped, not refused; the response carries the clamped value."""
    api = new_tenant(plan)
    sent = {
        None: default,
        1: 10,
        9: 10,
        10: 10,
        11: 11,
        most - 1: most - 1,
        most: most,
        most + 1: most,
        10**30: most,
    }
    seen = {ttl: api.post(path, key=f"k{ttl}", ttl=ttl).json()["ttl"] for ttl in sent}
    assert seen == sent
    assert api.post(path, key="absent").json()["ttl"] == default


@pytest.mark.parametrize(("plan", "make", "ai", "default", "most"), TABLE)
def test_extend_clamps_too(
    new_tenant: NewApi, plan: Plan, make: int, ai: int, default: int, most: int
) -> None:
    api = new_tenant(plan)
    for path in ("/ai/lease", "/ai/run"):
        lease_id = api.post(path, key=path).json()["lease_id"]
        for ttl, effective in ((1, 10), (most, most), (10**30, most)):
            assert api.post("/ai/extend", key=path, lease_id=lease_id, ttl=ttl).json()["ttl"] == effective


@pytest.mark.parametrize("path", [*TAKING, "/ai/extend"])
@pytest.mark.parametrize("ttl", [0, -1, -(10**30), 1.5, 10.0, "60", True, [], {}])
def test_ttl_below_one_or_not_an_integer_is_invalid(api: Api, path: str, ttl: object) -> None:
    answer = api.post(path, key="k", lease_id="l", ttl=ttl)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "ttl"]
    assert api.rows("locks") == api.rows("runs") == 0


@pytest.mark.parametrize(("plan", "make", "ai", "default", "most"), TABLE)
def test_quotas_and_plan_names_are_those_of_the_table(
    new_tenant: NewApi, plan: Plan, make: int, ai: int, default: int, most: int
) -> None:
    api = new_tenant(plan)
    body = api.get("/usage/all").json()
    assert (body["plan"], body["make"]["limit"], body["ai"]["limit"]) == (plan.value, make, ai)
    assert api.post("/ai/lease", key="k").json()["limit"] == ai


def test_free_admits_exactly_its_quota_of_duplicates_under_concurrency(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.FREE)
    api.post("/check-lock", key="k", ttl=3600)
    api.use_up("make", 990)
    answers = api.at_once(16, lambda _: api.post("/check-lock", key="k"))
    assert Counter(answer.status_code for answer in answers) == {200: 10, 402: 6}
    used = api.usage("make")
    assert (used["usage"], used["blocked_total_month"]) == (1000, 6)
    assert used["requests_total_month"] == 990 + 1 + 16


@pytest.mark.parametrize("path", ["/ai/lease", "/ai/run"])
def test_free_admits_exactly_its_quota_of_acquisitions_under_concurrency(
    new_tenant: NewApi, path: str
) -> None:
    api = new_tenant(Plan.FREE)
    api.use_up("ai", 2990)
    answers = api.at_once(16, lambda n: api.post(path, key=f"k{n}"))
    assert Counter(answer.status_code for answer in answers) == {200: 10, 402: 6}
    assert sorted(a.json()["usage"] for a in answers if a.status_code == 200) == list(range(2991, 3001))
    used = api.usage("ai")
    assert (used["usage"], used["charged_total_month"], used["blocked_total_month"]) == (3000, 10, 6)
    assert api.rows("runs") == 10


def test_beyond_the_make_quota_free_takes_no_lock(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.FREE)
    api.use_up("make", 1000)
    assert api.post("/check-lock", key="new").status_code == 402
    assert api.rows("locks") == 0
    assert api.usage("make")["blocked_total_month"] == 1


def test_beyond_the_ai_quota_attaching_stays_free(new_tenant: NewApi) -> None:
    """§2.2: 402 only for calls that would have acquired."""
    api = new_tenant(Plan.FREE)
    held, done = (api.post("/ai/lease", key=key).json()["lease_id"] for key in ("held", "done"))
    api.post("/ai/run", key="queued")
    api.post("/ai/complete", key="done", lease_id=done, result={"n": 1})
    api.use_up("ai", 2997)
    for path in ("/ai/lease", "/ai/run"):
        assert api.post(path, key="new").status_code == 402
        assert api.post(path, key="held").json()["status"] == "polling"
        assert api.post(path, key="queued").json()["status"] == "polling"
        assert api.post(path, key="done").json()["result"] == {"n": 1}
    assert api.get("/ai/result", key="done").json()["result"] == {"n": 1}
    assert api.post("/ai/extend", key="held", lease_id=held).status_code == 200
    assert api.post("/ai/complete", key="held", lease_id=held).status_code == 200
    used = api.usage("ai")
    assert (used["usage"], used["blocked_total_month"]) == (3000, 2)


def test_a_refusal_is_in_the_feed(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.FREE)
    api.use_up("make", 1000)
    api.use_up("ai", 3000)
    api.post("/check-lock", key="l")
    api.post("/ai/run", key="r")
    entries = [(e["type"], e["kind"], e["key"], e["status"]) for e in api.get("/events").json()]
    assert entries == [("limit", "ai", "r", "blocked"), ("limit", "make", "l", "blocked")]


def test_the_two_quotas_are_separate(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.FREE)
    api.use_up("make", 1000)
    assert api.post("/ai/lease", key="k").json()["status"] == "acquired"
    api = new_tenant(Plan.FREE)
    api.use_up("ai", 3000)
    assert api.post("/check-lock", key="k").json()["status"] == "locked"


@pytest.mark.parametrize(("plan", "make", "ai", "default", "most"), TABLE[1:])
def test_paid_plans_go_on_beyond_their_quota(
    new_tenant: NewApi, plan: Plan, make: int, ai: int, default: int, most: int
) -> None:
    """§1.7"""
    api = new_tenant(plan)
    api.use_up("make", make)
    api.use_up("ai", ai)
    assert [api.post("/check-lock", key="k").json()["status"] for _ in range(2)] == ["locked", "duplicate"]
    assert api.post("/ai/lease", key="k").json()["usage"] == ai + 1
    assert api.post("/ai/run", key="r").json()["usage"] == ai + 2
    assert api.usage("make")["usage"] == make + 1
    assert api.usage("ai")["blocked_total_month"] == 0


def test_a_tenant_moved_to_free_keeps_what_it_used_this_month(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.STARTER)
    for n in range(3):
        api.post("/ai/lease", key=f"k{n}")
    api.use_up("ai", 2996)
    api.db.run(account.set_plan, api.tenant_id, Plan.FREE)
    last = api.post("/ai/lease", key="last").json()
    assert (last["status"], last["usage"]) == ("acquired", 3000)
    assert api.post("/ai/lease", key="over").status_code == 402

    api.db.run(account.set_plan, api.tenant_id, Plan.STARTER)
    assert api.post("/ai/lease", key="over").json()["usage"] == 3001
    api.db.run(account.set_plan, api.tenant_id, Plan.FREE)
    refusal = api.post("/ai/lease", key="more")
    assert (refusal.status_code, refusal.json()["detail"]["usage"]) == (402, 3001)


# §4.7: a gate, and the plans that pass it by the seed's table and by the newer one
GOVERNED = {Plan.PRO, Plan.AGENCY}
PAYING = {Plan.STARTER, *GOVERNED}
EVERY = set(Plan)
GATES: list[tuple[str, str, dict[str, object] | None, set[Plan], set[Plan]]] = [
    ("policies", "GET /policies", None, GOVERNED, EVERY),
    ("policies", "POST /policies/a", {}, GOVERNED, EVERY),
    ("max_actions_per_hour", "POST /policies/a", {"max_actions_per_hour": 1}, GOVERNED, PAYING),
    ("max_spend_usd_per_day", "POST /policies/a", {"max_spend_usd_per_day": 1}, GOVERNED, PAYING),
    ("max_calls_per_tool", "POST /policies/a", {"max_calls_per_tool": {"t": 1}}, GOVERNED, PAYING),
    ("blocked_tools", "POST /policies/a", {"blocked_tools": ["t"]}, GOVERNED, EVERY),
    ("allowed_tools", "POST /policies/a", {"allowed_tools": ["t"]}, {Plan.AGENCY}, EVERY),
    ("pricing_rules", "POST /policies/a", {"pricing_rules": []}, GOVERNED, GOVERNED),
    ("policy_templates", "POST /policies/a/from-template", {"template": "permissive"}, GOVERNED, GOVERNED),
    ("allowed_tools", "POST /policies/a/from-template", {"template": "strict"}, {Plan.AGENCY}, GOVERNED),
    ("audit", "GET /agents/a/logs", None, GOVERNED, GOVERNED),
    ("audit", "GET /agents/a/metrics", None, GOVERNED, GOVERNED),
    ("kill_switch", "POST /agents/a/disable", {}, {Plan.AGENCY}, GOVERNED),
    ("kill_switch", "POST /agents/a/enable", {}, {Plan.AGENCY}, GOVERNED),
    ("tools", "GET /tools", None, GOVERNED, EVERY),
    ("tools", "POST /ai/run", {"agent_id": "a", "tool": "none"}, GOVERNED, EVERY),
]


def _outermost(feature: str, path: str, plan: Plan, table: str) -> str:
    """What is named of a request that several gates refuse: a field stands behind its endpoint."""
    if path.startswith("/policies") and table == "seed" and plan not in GOVERNED:
        return "policies"
    if path.endswith("/from-template") and plan not in GOVERNED:
        return "policy_templates"
    return feature


@pytest.mark.parametrize("table", ["seed", "newer"])
def test_each_gate_opens_for_the_plans_of_its_table_and_names_itself(
    serve: Callable[..., Api], new_tenant: NewApi, table: str
) -> None:
    of_plan = {plan: new_tenant(plan) if table == "seed" else serve(plan, plan_table=table) for plan in Plan}
    for feature, request, body, seed, newer in GATES:
        method, path = request.split()
        for plan, api in of_plan.items():
            answer = api.request(method, path, json=body)
            gate = f"{request} {body} for {plan} by {table}"
            if plan in (seed if table == "seed" else newer):
                assert answer.status_code in (200, 404), gate
            else:
                assert answer.status_code == 403, gate
                detail = answer.json()["detail"]
                assert (detail["error"], detail["plan"]) == ("feature_not_available", plan.value)
                assert detail["feature"] == _outermost(feature, path, plan, table), gate


@pytest.mark.parametrize(
    ("table", "most"),
    [
        ("seed", {Plan.FREE: 0, Plan.STARTER: 0, Plan.PRO: 10, Plan.AGENCY: 500}),
        ("newer", {Plan.FREE: 1, Plan.STARTER: 20, Plan.PRO: 100, Plan.AGENCY: 1000}),
    ],
)
def test_each_table_has_its_number_of_tools(
    serve: Callable[..., Api], db: Database, table: str, most: dict[Plan, int]
) -> None:
    tool = {"url": "https://tools.example.com/x", "auth": {"type": "hmac_sha256", "secret": "a-long-secret"}}
    for plan, number in most.items():
        api = serve(plan, plan_table=table, secret_key="the key of this server")
        with db.engine.begin() as connection:
            connection.execute(MANY_TOOLS, {"tenant_id": api.tenant_id, "many": max(0, number - 1)})
        answers = [api.post("/tools", name=name, **tool) for name in ("last", "one_more", "last")]
        if number == 0:
            assert {answer.json()["detail"]["error"] for answer in answers} == {"feature_not_available"}
            continue
        assert [answer.status_code for answer in answers] == [200, 403, 200]
        assert answers[1].json()["detail"] == {
            "error": "plan_limit",
            "message": f"{plan.value.upper()} plan limit: max {number} tools",
        }


MANY_TOOLS = sa.text("""
INSERT INTO tools (tenant_id, scope_id, name, url, auth_type, secret_id, secret_mask, secret_sealed, timeout_ms,
                   max_retries, enabled, effect)
SELECT :tenant_id, 'global', 't' || n, 'https://tools.example.com/x', 'hmac_sha256', 's', '***', '', 15000, 2, true,
       'idempotent'
FROM generate_series(1, :many) n
""")


def test_a_free_tenants_tool_calls_stop_at_its_quota(serve: Callable[..., Api]) -> None:
    """Only the newer table lets Free call tools at all. Asking again for a call that was made stays free."""
    api = serve(Plan.FREE, plan_table="newer", secret_key="the key of this server", tool_patience_s=0)
    auth = {"type": "hmac_sha256", "secret": "a-long-secret"}
    api.post("/tools", name="send", url="https://tools.example.com/x", auth=auth)
    api.use_up("ai", 2_999)
    first, repeat, second = (api.post("/ai/run", agent_id="a", tool="send", args={"n": n}) for n in (1, 1, 2))
    assert [answer.json()["detail"]["error"] for answer in (first, repeat, second)] == [
        "in_progress",
        "in_progress",
        "payment_required",
    ]
    assert api.usage("ai")["usage"] == 3_000
    assert api.usage("ai")["blocked_total_month"] == 1
