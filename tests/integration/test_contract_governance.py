"""§2.12, §2.13, §4.7: policies, templates, the kill switch, logs and metrics, to the letter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onceonly_jobs.domain.governance import TEMPLATES
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import claims
from tests.integration.conftest import Api, NewApi

AGENT = "support_bot"

POLICY = {
    "allowed_tools": ["send_email", "create_ticket"],
    "blocked_tools": ["delete_user"],
    "max_actions_per_hour": 100,
    "max_spend_usd_per_day": 50,
    "max_calls_per_tool": {"send_email": 2},
    "pricing_rules": [{"tool": "send_email", "price_usd": 0.001}],
}


def detail(answer: Any) -> Any:
    return answer.json()["detail"]


def test_a_policy_is_answered_nested_with_the_fields_that_are_set(api: Api) -> None:
    answer = api.post(f"/policies/{AGENT}", agent_id="another", **POLICY)
    assert answer.status_code == 200
    assert answer.json() == {"agent_id": AGENT, "policy": POLICY, "version": 1}
    assert api.get(f"/policies/{AGENT}").json() == answer.json()
    assert api.get("/policies").json() == [answer.json()]


def test_absent_fields_stay_and_null_clears_one(api: Api) -> None:
    api.post(f"/policies/{AGENT}", **POLICY)
    changed = api.post(f"/policies/{AGENT}", max_spend_usd_per_day=75.5, allowed_tools=None).json()
    expected = {**POLICY, "max_spend_usd_per_day": 75.5}
    del expected["allowed_tools"]
    assert changed == {"agent_id": AGENT, "policy": expected, "version": 2}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_each_template_has_its_fields_and_takes_overrides(api: Api, name: str) -> None:
    api.post(f"/policies/{AGENT}", **POLICY)
    body = {"agent_id": AGENT, "template": name, "overrides": {}}
    assert api.post(f"/policies/{AGENT}/from-template", **body).json()["policy"] == TEMPLATES[name]
    body["overrides"] = {"max_actions_per_hour": 7}
    changed = api.post(f"/policies/{AGENT}/from-template", **body).json()["policy"]
    assert changed == {**TEMPLATES[name], "max_actions_per_hour": 7}


@pytest.mark.parametrize(
    "fields",
    [
        {"max_actions_per_hour": -1},
        {"max_actions_per_hour": 1.5},
        {"max_actions_per_hour": "5"},
        {"max_actions_per_hour": True},
        {"max_spend_usd_per_day": -0.01},
        {"max_spend_usd_per_day": 1e300},
        {"max_calls_per_tool": {"send_email": -1}},
        {"max_calls_per_tool": {"": 1}},
        {"allowed_tools": [""]},
        {"allowed_tools": ["   "]},
        {"allowed_tools": "send_email"},
        {"blocked_tools": [1]},
        {"pricing_rules": [{"tool": "x"}]},
        {"pricing_rules": [{"tool": "x", "price_usd": 1, "extra": 1}]},
        {"max_actions_per_hours": 5},
        {"max_spend_per_day": 5},
    ],
)
def test_nonsense_and_misspelt_limits_are_422_and_change_nothing(api: Api, fields: dict[str, Any]) -> None:
    api.post(f"/policies/{AGENT}", **POLICY)
    answer = api.post(f"/policies/{AGENT}", **fields)
    assert answer.status_code == 422
    assert next(iter(fields)) in str(detail(answer))
    template = api.post(f"/policies/{AGENT}/from-template", template="strict", overrides=fields)
    assert template.status_code == 422
    assert api.get(f"/policies/{AGENT}").json()["policy"] == POLICY


def test_not_a_number_is_refused(api: Api) -> None:
    answer = api.request("POST", f"/policies/{AGENT}", content=b'{"max_spend_usd_per_day": NaN}')
    assert answer.status_code == 422


def test_a_policys_history_says_who_did_what_and_when(api: Api) -> None:
    api.post(f"/policies/{AGENT}", max_spend_usd_per_day=0.5)
    api.post(f"/agents/{AGENT}/disable", reason="odd")
    disabled, set_ = api.get(f"/policies/{AGENT}/history").json()
    assert isinstance(set_.pop("ts"), int)
    assert set_ == {
        "actor": api.caller.key_id,
        "change": "upsert",
        "reason": None,
        "version": 1,
        "policy": {"max_spend_usd_per_day": 0.5},
    }
    assert (disabled["change"], disabled["reason"], disabled["policy"]) == ("disabled", "odd", None)
    assert api.get(f"/policies/{AGENT}/history", limit=1, offset=1).json()[0]["change"] == "upsert"
    assert api.get("/policies/nobody/history").json() == []


def test_an_unknown_template_is_422_and_an_unknown_policy_404(api: Api) -> None:
    assert api.post(f"/policies/{AGENT}/from-template", template="lenient").status_code == 422
    missing = api.get(f"/policies/{AGENT}")
    assert missing.status_code == 404
    assert detail(missing)["error"] == "policy_not_found"
    assert api.get("/policies").json() == []


def test_the_kill_switch_answers_in_the_contracts_words(api: Api) -> None:
    off = api.post(f"/agents/{AGENT}/disable", reason="suspicious_activity_detected").json()
    assert off["disabled_at"].endswith("Z")
    assert off == {
        "agent_id": AGENT,
        "is_enabled": False,
        "disabled_reason": "suspicious_activity_detected",
        "disabled_at": off["disabled_at"],
        "stopped_queued": 0,
        "stopping_running": 0,
    }
    again = api.post(f"/agents/{AGENT}/disable", reason="still").json()
    assert (again["disabled_at"], again["disabled_reason"]) == (off["disabled_at"], "still")
    on = api.post(f"/agents/{AGENT}/enable").json()
    assert on == {"agent_id": AGENT, "is_enabled": True, "disabled_reason": None, "disabled_at": None}


@pytest.mark.parametrize("sent", [{}, {"content": b""}, {"json": {}}, {"json": {"reason": None}}])
def test_the_switchs_body_may_be_empty_or_absent(api: Api, sent: dict[str, Any]) -> None:
    for action in ("disable", "enable"):
        assert api.request("POST", f"/agents/{AGENT}/{action}", **sent).status_code == 200


def test_a_governed_run_leaves_its_log_row(api: Api) -> None:
    api.post(f"/policies/{AGENT}", blocked_tools=["echo"])
    run = api.post("/ai/run", key="k", metadata={"agent_id": AGENT, "spend_usd": 0.25}).json()
    assert (run["ok"], run["status"], run["error_code"], run["charged"]) == (
        False,
        "failed",
        "policy_blocked",
        0,
    )
    api.post(f"/policies/{AGENT}", blocked_tools=None)
    api.post("/ai/run", key="k2", metadata={"agent_id": AGENT, "spend_usd": 0.25})
    executed, blocked = api.get(f"/agents/{AGENT}/logs").json()
    assert blocked | {"ts": 0, "actor": ""} == {
        "ts": 0,
        "agent_id": AGENT,
        "tool": "echo",
        "allowed": False,
        "decision": "blocked",
        "policy_reason": "tool_not_allowed",
        "reason": "tool_not_allowed",
        "policy_code": "tool_explicitly_blocked",
        "risk_level": "low",
        "args_hash": None,
        "spend_usd": 0.0,
        "key": "k",
        "outcome": None,
        "policy_version": 1,
        "actor": "",
    }
    assert (executed["allowed"], executed["decision"], executed["spend_usd"]) == (True, "executed", 0.25)
    assert isinstance(executed["ts"], int)
    only = api.get(f"/agents/{AGENT}/logs", decision="blocked").json()
    assert [row["key"] for row in only] == ["k"]
    assert api.get(f"/agents/{AGENT}/logs", limit=1, offset=1).json() == [blocked]
    assert api.get(f"/agents/{AGENT}/logs", tool="other").json() == []


def test_metrics_count_executed_calls_and_blocked_ones_apart(api: Api) -> None:
    missing = api.get("/agents/nobody/metrics")
    assert (missing.status_code, detail(missing)["error"]) == (404, "agent_not_found")
    api.post(f"/policies/{AGENT}", max_actions_per_hour=14)
    for number in range(16):
        api.post("/ai/run", key=f"k{number}", metadata={"agent_id": AGENT, "spend_usd": 0.07})
    for period in ("hour", "day", "week"):
        assert api.get(f"/agents/{AGENT}/metrics", period=period).json() == {
            "agent_id": AGENT,
            "period": period,
            "total_actions": 14,
            "blocked_actions": 2,
            "total_spend_usd": 0.98,
            "top_tools": [{"tool": "echo", "count": 14}],
        }
    assert api.get(f"/agents/{AGENT}/metrics", period="year").status_code == 422


def test_logs_of_an_agent_without_any_are_empty(api: Api) -> None:
    assert api.get("/agents/nobody/logs").json() == []
    assert api.get("/agents/nobody/logs", limit=501).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"/policies/{AGENT}", {"max_actions_per_hour": 1}),
        ("POST", f"/policies/{AGENT}/from-template", {"template": "moderate"}),
        ("GET", "/policies", None),
        ("GET", f"/policies/{AGENT}", None),
        ("GET", f"/policies/{AGENT}/history", None),
        ("POST", f"/agents/{AGENT}/disable", {}),
        ("GET", f"/agents/{AGENT}/logs", None),
        ("GET", f"/agents/{AGENT}/metrics", None),
        ("POST", "/ai/run", {"agent_id": AGENT, "tool": "send_email"}),
    ],
)
def test_free_and_starter_lack_governance(new_tenant: NewApi, method: str, path: str, body: Any) -> None:
    for plan in (Plan.FREE, Plan.STARTER):
        refused = new_tenant(plan).request(method, path, json=body)
        assert refused.status_code == 403
        assert detail(refused)["error"] == "feature_not_available"
        assert detail(refused)["plan"] == plan.value


def test_pro_lacks_the_whitelist_and_the_switch_and_is_told_which(new_tenant: NewApi) -> None:
    pro = new_tenant(Plan.PRO)
    refused = pro.post(f"/policies/{AGENT}", allowed_tools=["a"], max_actions_per_hour=5)
    assert (refused.status_code, detail(refused)["feature"]) == (403, "allowed_tools")
    assert detail(pro.post(f"/agents/{AGENT}/disable"))["feature"] == "kill_switch"
    assert pro.post(f"/policies/{AGENT}", blocked_tools=["a"], max_actions_per_hour=5).status_code == 200
    assert pro.post(f"/policies/{AGENT}/from-template", template="moderate").status_code == 200
    assert pro.post(f"/policies/{AGENT}/from-template", template="strict").status_code == 403


def test_policies_and_agents_are_a_tenants_own(api: Api, new_tenant: NewApi) -> None:
    api.post(f"/policies/{AGENT}", **POLICY)
    api.post(f"/agents/{AGENT}/disable")
    other = new_tenant(Plan.AGENCY)
    assert other.get("/policies").json() == []
    assert other.get(f"/policies/{AGENT}/history").json() == []
    assert other.post("/ai/run", key="k", metadata={"agent_id": AGENT}).json()["status"] == "acquired"


@pytest.mark.parametrize("spend_usd", [1e13, 1e300, -1, "1", True])
def test_a_spend_that_is_no_sum_of_money_is_422(api: Api, spend_usd: Any) -> None:
    assert api.post("/ai/run", agent_id=AGENT, tool="send_email", spend_usd=spend_usd).status_code == 422
    assert (
        api.post("/ai/run", key="k", metadata={"agent_id": AGENT, "spend_usd": spend_usd}).status_code == 422
    )


def test_a_run_id_of_any_length_in_args_is_no_server_error(api: Api) -> None:
    args = {"run_id": "".join(chr(33 + n % 90) for n in range(20_000))}
    answer = api.post("/ai/run", agent_id=AGENT, tool="send_email", args=args)
    assert (answer.status_code, detail(answer)["error"]) == (404, "tool_not_found")


def test_a_strict_server_refuses_policies_that_name_unregistered_tools(serve: Callable[..., Api]) -> None:
    """§2.13: by default they are accepted, as all other tests here show."""
    api = serve(strict_tools=True, secret_key="the key of this server")
    auth = {"type": "hmac_sha256", "secret": "a-long-secret"}
    for name, scope_id in (("own", f"agent:{AGENT}"), ("theirs", "agent:other"), ("all", "global")):
        api.post("/tools", name=name, scope_id=scope_id, url="https://tools.example.com/x", auth=auth)
    api.db.run(claims.announce, [JobSpec(name="report", queue="q")])
    known = {"allowed_tools": ["own", "all", "report"], "max_actions_per_hour": 5}
    assert api.post(f"/policies/{AGENT}", **known).status_code == 200
    fields: dict[str, Any] = {
        "allowed_tools": ["own", "theirs", "a"],
        "blocked_tools": ["a", "b"],
        "max_calls_per_tool": {"c": 1, "all": 1},
        "pricing_rules": [{"tool": "d", "price_usd": 1}],
    }
    for path, body in (
        (f"/policies/{AGENT}", fields),
        (f"/policies/{AGENT}/from-template", {"template": "moderate", "overrides": fields}),
    ):
        answer = api.post(path, **body)
        assert answer.status_code == 400
        assert detail(answer) == {"error": "unknown_tools", "tools": ["theirs", "a", "b", "c", "d"]}
    assert api.get(f"/policies/{AGENT}").json()["policy"] == known
    assert api.post(f"/policies/{AGENT}", blocked_tools=None).status_code == 200
    assert api.post(f"/policies/{AGENT}/from-template", template="moderate").status_code == 200
