"""An agent does what its policy allows and not one call or micro-dollar more, however many ask at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.locking import held_up_at
from support.policies import policies, tools
from support.storms import storm
from typer.testing import CliRunner

from onceonly_jobs.cli.main import build
from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.leases import CancelRequest, ExtendRequest, LeaseRequest
from onceonly_jobs.contracts.policies import PolicyRequest, TemplateRequest
from onceonly_jobs.contracts.unknown import SettleRequest
from onceonly_jobs.domain.budgets import AgentModel
from onceonly_jobs.domain.governance import REASONS, TEMPLATES, Code, micro_usd, risk_level
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.errors import FeatureNotAvailable, LeaseConflict, UnknownTask
from onceonly_jobs.services import audit, claims, governance, leases, outbox, runs, unknown
from onceonly_jobs.services.claims import Ending, Failure
from onceonly_jobs.store import agents, database, ticks
from onceonly_jobs.store import claims as store
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.claims import Beat
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.governance import REASON, risk
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.testing import Clock
from tests.conftest import make_account

AGENT = "bot"
LEASE_S = 15.0
WEEK_S = 604_800


class Governed:
    """One agent and its runs, over a real database."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self.db = db
        self.caller = caller
        self._keys = iter(range(1_000_000))

    def policy(self, **fields: Any) -> None:
        self.db.run(governance.set_policy, self.caller, AGENT, PolicyRequest(**fields))

    def ask(self, tool: str = "work", spend_usd: float = 0, key: str | None = None) -> Taken:
        taking = runs.job_taking(
            self.caller,
            JobSpec(name=tool, queue="q", max_attempts=2),
            key=key or f"k{next(self._keys)}",
            ttl_s=600,
            metadata={"agent_id": AGENT, "spend_usd": spend_usd},
        )
        taken = self.db.run(runs.taking_operation(self.caller, taking), self.caller, taking)
        assert isinstance(taken, Taken)
        return taken

    def code(self, tool: str = "work", spend_usd: float = 0) -> str:
        taken = self.ask(tool, spend_usd)
        return self.newest(taken.run.key).policy_code

    def newest(self, key: str) -> Any:
        return next(
            e for e in self.db.run(governance.logs, self.caller, AGENT, limit=500) if e.run_key == key
        )

    def claim(self, taken: Taken, tool: str = "work") -> Claim | None:
        return self.db.run(claims.claim, taken.run.id, tool, LEASE_S, None)

    def counters(self) -> tuple[int, int, dict[str, int]]:
        query = sa.text("SELECT hour_actions, day_spend_micro_usd, day_calls FROM agents WHERE agent_id = :a")
        with self.db.engine.connect() as connection:
            actions, spend, calls = connection.execute(query, {"a": AGENT}).one()
        return actions, spend, {tool: n for tool, n in calls.items() if n}

    def disable(self) -> Any:
        return self.db.run(governance.disable, self.caller, AGENT, SwitchRequest(reason="odd"), WEEK_S)

    def enable(self) -> Any:
        return self.db.run(governance.enable, self.caller, AGENT, SwitchRequest())


@pytest.fixture
def governed(db: Database, caller: Caller) -> Governed:
    return Governed(db, caller)


def test_a_dollar_a_day_at_seven_cents_is_exactly_fourteen_calls(governed: Governed) -> None:
    governed.policy(max_spend_usd_per_day=1.0)
    outcomes = Counter(taken.outcome for taken in storm(20, lambda: governed.ask(spend_usd=0.07)))
    assert outcomes == {"acquired": 14, "refused": 6}
    assert governed.counters() == (14, 980_000, {"work": 14})


def test_a_limit_of_five_admits_exactly_five(governed: Governed) -> None:
    governed.policy(max_actions_per_hour=5)
    assert Counter(taken.outcome for taken in storm(20, governed.ask))["acquired"] == 5


def test_the_last_cent_of_the_cap_may_be_spent(governed: Governed) -> None:
    governed.policy(max_spend_usd_per_day=0.3)
    assert [governed.ask(spend_usd=0.1).outcome for _ in range(4)] == ["acquired"] * 3 + ["refused"]


def test_each_check_has_its_code_in_the_contracts_order(governed: Governed) -> None:
    governed.policy(
        allowed_tools=["a", "b"], blocked_tools=["b"], max_calls_per_tool={"a": 1}, max_spend_usd_per_day=1
    )
    assert governed.code("c") == Code.NOT_IN_ALLOWED_LIST
    assert governed.code("b") == Code.EXPLICITLY_BLOCKED
    assert governed.code("a", 1.01) == Code.DAILY_SPEND
    assert governed.code("a", 1.0) == Code.OK
    assert governed.code("a") == Code.CALLS_PER_TOOL
    governed.policy(max_actions_per_hour=1)
    assert governed.code("a") == Code.HOURLY_ACTIONS
    governed.disable()
    assert governed.code("a") == Code.AGENT_DISABLED


def test_an_empty_whitelist_allows_nothing_and_a_cleared_one_everything(governed: Governed) -> None:
    governed.policy(allowed_tools=[])
    assert governed.code() == Code.NOT_IN_ALLOWED_LIST
    governed.policy(allowed_tools=None)
    assert governed.code() == Code.OK


def test_a_zero_limit_means_none_at_all(governed: Governed) -> None:
    governed.policy(max_actions_per_hour=0)
    assert governed.code() == Code.HOURLY_ACTIONS


def test_an_agent_cannot_declare_less_than_the_price(governed: Governed) -> None:
    governed.policy(pricing_rules=[{"tool": "work", "price_usd": 0.6}], max_spend_usd_per_day=1.0)
    assert governed.code(spend_usd=0.01) == Code.OK
    assert governed.code(spend_usd=0) == Code.DAILY_SPEND
    assert governed.code("other", 0.4) == Code.OK


def test_a_refused_run_is_failed_for_its_readers_and_charged_to_nobody(governed: Governed) -> None:
    governed.policy(blocked_tools=["work"])
    taken = governed.ask(key="k")
    assert (taken.outcome, taken.run.state, taken.run.error_code) == (
        "refused",
        RunState.FAILED,
        "policy_blocked",
    )
    assert taken.usage == 0
    again = governed.ask(key="k")
    assert (again.outcome, again.run.error_code) == ("held", "policy_blocked")
    assert governed.counters() == (0, 0, {})
    [entry] = governed.db.run(audit.decisions_of, governed.caller.tenant_id, "k")
    assert (entry.allowed, entry.decision, entry.policy_reason) == (False, "blocked", "tool_not_allowed")


def test_attaching_to_a_run_decides_and_reserves_nothing(governed: Governed) -> None:
    governed.ask(key="k", spend_usd=0.5)
    assert governed.ask(key="k", spend_usd=0.5).outcome == "held"
    assert governed.counters() == (1, 500_000, {"work": 1})
    assert len(governed.db.run(audit.decisions_of, governed.caller.tenant_id, "k")) == 1


def test_windows_roll_with_the_utc_hour_and_day(governed: Governed, clock: Clock) -> None:
    governed.policy(max_actions_per_hour=1, max_calls_per_tool={"work": 2})
    assert [governed.code(), governed.code()] == [Code.OK, Code.HOURLY_ACTIONS]
    _to_next(governed.db, clock, "hour")
    assert governed.code() in (Code.OK, Code.CALLS_PER_TOOL)
    _to_next(governed.db, clock, "day")
    assert governed.code() == Code.OK


def _to_next(db: Database, clock: Clock, unit: str) -> None:
    left = sa.text(
        f"SELECT extract(epoch FROM date_trunc('{unit}', onceonly_now(), 'UTC') + interval '1 {unit}' - onceonly_now())"
    )
    with db.engine.connect() as connection:
        clock.advance(float(connection.execute(left).scalar_one()) + 1)


@pytest.mark.parametrize(
    ("cost", "booked", "overrun"), [(None, 500_000, False), (0.2, 200_000, False), (0.9, 900_000, True)]
)
def test_settlement_books_what_a_run_really_cost(
    governed: Governed, cost: float | None, booked: int, overrun: bool
) -> None:
    taken = governed.ask(spend_usd=0.5, key="k")
    claim = governed.claim(taken)
    assert claim is not None
    result = {} if cost is None else {"cost_usd": cost}
    assert governed.db.run(claims.complete, claim, result, WEEK_S) is Ending.STORED
    assert governed.db.run(claims.complete, claim, result, WEEK_S) is Ending.STORED
    assert governed.counters() == (1, booked, {"work": 1})
    assert governed.newest("k").spend_micro_usd == booked
    with governed.db.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT overrun FROM audit_outcomes")).scalar_one() is overrun


def test_an_overrun_blocks_what_follows(governed: Governed) -> None:
    governed.policy(max_spend_usd_per_day=1.0)
    claim = governed.claim(governed.ask(spend_usd=0.1))
    assert claim is not None
    governed.db.run(claims.complete, claim, {"cost_usd": 3.0}, WEEK_S)
    assert governed.code(spend_usd=0.01) == Code.DAILY_SPEND


def test_only_a_call_that_was_never_made_is_given_back(governed: Governed) -> None:
    queued = governed.ask(spend_usd=0.5)
    cancel = CancelRequest(key=queued.run.key, lease_id=queued.run.lease_id)
    governed.db.run(leases.cancel, governed.caller, cancel, WEEK_S)
    assert governed.counters() == (0, 0, {})
    running = governed.ask(spend_usd=0.5)
    governed.claim(running)
    cancel = CancelRequest(key=running.run.key, lease_id=running.run.lease_id)
    governed.db.run(leases.cancel, governed.caller, cancel, WEEK_S)
    assert governed.counters() == (1, 500_000, {"work": 1})


def test_a_settlement_of_yesterday_does_not_touch_today(governed: Governed, clock: Clock) -> None:
    claim = governed.claim(governed.ask(spend_usd=0.5))
    assert claim is not None
    governed.db.run(claims.heartbeat, claim, 200_000.0)
    _to_next(governed.db, clock, "day")
    governed.ask(spend_usd=0.1)
    with governed.db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET deadline_at = onceonly_now() + interval '1 day'"))
    assert governed.db.run(claims.complete, claim, {"cost_usd": 0.0}, WEEK_S) is Ending.STORED
    assert governed.counters() == (1, 100_000, {"work": 1})


def test_a_dead_workers_reservation_stays_once_and_only_once(governed: Governed, clock: Clock) -> None:
    claim = governed.claim(governed.ask(spend_usd=0.5))
    assert claim is not None
    for _ in range(2):
        clock.advance(LEASE_S + 1)
        governed.db.run(outbox.reap, 10, WEEK_S)
        governed.db.run(claims.claim, claim.id, "work", LEASE_S, None)
    assert governed.counters() == (1, 500_000, {"work": 1})


def test_the_switch_ends_what_is_queued_and_running_and_stops_what_comes(governed: Governed) -> None:
    queued, running = governed.ask(spend_usd=0.5), governed.ask(spend_usd=0.25)
    claim = governed.claim(running)
    assert claim is not None
    switch, stopped = governed.disable()
    assert (stopped.queued, stopped.running) == (1, 1)
    assert switch.disabled_reason == "odd"
    for taken in (queued, running):
        run = governed.db.run(runs.find, governed.caller.tenant_id, taken.run.key)
        assert (run.state, run.error_code) == (RunState.FAILED, "policy_blocked")
    assert governed.db.run(claims.heartbeat, claim, LEASE_S) is Ending.LOST
    assert governed.db.run(claims.complete, claim, {"late": 1}, WEEK_S) is Ending.LOST
    assert governed.claim(queued) is None
    assert governed.counters() == (1, 250_000, {"work": 1})
    assert governed.code() == Code.AGENT_DISABLED
    first = switch.disabled_at
    again, _ = governed.disable()
    assert again.disabled_at == first
    governed.enable()
    assert governed.code() == Code.OK


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12])
def test_no_claim_or_decision_commits_after_the_switch_has_answered(
    governed: Governed, delay_s: float
) -> None:
    """Threads submit and claim all the time; the switch is thrown somewhere among them."""
    over = threading.Event()
    claimed: list[Claim] = []

    def work() -> None:
        while not over.is_set():
            taken = governed.ask()
            claim = governed.claim(taken) if taken.outcome == "acquired" else None
            if claim is not None:
                claimed.append(claim)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    over.wait(delay_s)
    governed.disable()
    with governed.db.engine.connect() as connection:
        answered_at = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    over.wait(0.05)
    over.set()
    for thread in threads:
        thread.join()
    with governed.db.engine.connect() as connection:
        alive = sa.text("SELECT count(*) FROM runs WHERE state IN ('queued', 'in_progress')")
        assert connection.execute(alive).scalar_one() == 0
        later = sa.text("SELECT count(*) FROM audit_decisions WHERE allowed AND at > :at")
        assert connection.execute(later, {"at": answered_at}).scalar_one() == 0
    assert all(governed.db.run(claims.heartbeat, claim, LEASE_S) is Ending.LOST for claim in claimed)


def test_a_policy_changed_meanwhile_is_judged_again_at_claim(governed: Governed) -> None:
    taken = governed.ask(spend_usd=0.5, key="k")
    governed.policy(blocked_tools=["work"])
    assert governed.claim(taken) is None
    run = governed.db.run(runs.find, governed.caller.tenant_id, "k")
    assert (run.state, run.error_code) == (RunState.FAILED, "policy_blocked")
    assert governed.counters() == (0, 0, {})
    decisions = governed.db.run(audit.decisions_of, governed.caller.tenant_id, "k")
    assert [(entry.allowed, entry.outcome) for entry in decisions] == [(False, None), (True, "failed")]


WITHDRAWN = [{"blocked_tools": ["work"]}, {"allowed_tools": ["other"]}, {"allowed_tools": []}]


@pytest.mark.parametrize("policy", WITHDRAWN)
def test_a_permission_that_is_withdrawn_ends_a_running_run_at_its_next_heartbeat(
    governed: Governed, policy: dict[str, Any]
) -> None:
    claim = governed.claim(governed.ask(spend_usd=0.5, key="k"))
    assert claim is not None
    governed.policy(**policy)
    assert governed.db.run(claims.heartbeat, claim, LEASE_S) is Ending.LOST
    run = governed.db.run(runs.find, governed.caller.tenant_id, "k")
    assert (run.state, run.error_code) == (RunState.FAILED, "policy_blocked")
    assert governed.db.run(claims.complete, claim, {"late": 1}, WEEK_S) is Ending.LOST
    assert governed.counters() == (1, 500_000, {"work": 1})
    refused, allowed = governed.db.run(audit.decisions_of, governed.caller.tenant_id, "k")
    assert (refused.allowed, refused.policy_reason, refused.outcome) == (False, "tool_not_allowed", None)
    assert (allowed.allowed, allowed.outcome) == (True, "failed")
    assert governed.newest("k").policy_version == 1


def test_a_lower_limit_stops_nothing_that_it_let_in(governed: Governed) -> None:
    claim = governed.claim(governed.ask(spend_usd=0.5))
    assert claim is not None
    governed.policy(max_actions_per_hour=0, max_spend_usd_per_day=0, max_calls_per_tool={"work": 0})
    assert isinstance(governed.db.run(claims.heartbeat, claim, LEASE_S), Beat)


def test_a_run_without_an_agent_does_not_pay_for_policies(governed: Governed) -> None:
    claim = governed.claim(governed.ask())
    assert claim is not None
    assert "agents" in str(store.heartbeat(claim, LEASE_S, WEEK_S).query)
    assert "agents" not in str(store.heartbeat(replace(claim, agent_id=None), LEASE_S, WEEK_S).query)


def _blocked_by(
    governed: Governed, change: Callable[[sa.Connection], object], keep: Callable[[], Any]
) -> Any:
    """What `keep` was answered that was asked while `change` was made, but not committed."""
    with ThreadPoolExecutor(1) as pool, governed.db.engine.connect() as connection:
        with connection.begin():
            change(connection)
            asked = pool.submit(keep)
            waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            with governed.db.engine.connect() as watcher:
                while not asked.done() and not watcher.execute(waiting).scalar_one():
                    watcher.rollback()
        return asked.result()


def test_no_heartbeat_or_extension_commits_after_a_policy_change_has_answered(governed: Governed) -> None:
    """What is asked while the change is being made waits for it, and is refused by it."""
    taken = [governed.ask(), governed.ask()]
    claim = governed.claim(taken[0])
    assert claim is not None

    def block(connection: sa.Connection) -> None:
        request = PolicyRequest(blocked_tools=["work"])
        on(connection, governance.set_policy(governed.caller, AGENT, request))

    heartbeat = lambda: governed.db.run(claims.heartbeat, claim, LEASE_S)  # noqa: E731
    assert _blocked_by(governed, block, heartbeat) is Ending.LOST
    governed.policy(blocked_tools=None)
    request = ExtendRequest(key=taken[1].run.key, lease_id=taken[1].run.lease_id)

    def extend() -> Any:
        with pytest.raises(LeaseConflict) as conflict:
            governed.db.run(leases.extend, governed.caller, request)
        return conflict.value.detail

    assert _blocked_by(governed, block, extend)["reason"] == "finished"


@pytest.mark.parametrize("running", [True, False])
def test_the_requester_cannot_extend_what_the_agent_may_not_do_any_more(
    governed: Governed, running: bool
) -> None:
    taken = governed.ask(spend_usd=0.5, key="k")
    claim = governed.claim(taken) if running else None
    request = ExtendRequest(key="k", lease_id=taken.run.lease_id, ttl=900)
    assert governed.db.run(leases.extend, governed.caller, request).lease_ttl_s == 900
    governed.policy(blocked_tools=["work"])
    with pytest.raises(LeaseConflict):
        governed.db.run(leases.extend, governed.caller, request)
    run = governed.db.run(runs.find, governed.caller.tenant_id, "k")
    assert (run.state, run.error_code) == (RunState.FAILED, "policy_blocked")
    assert governed.counters() == ((1, 500_000, {"work": 1}) if claim else (0, 0, {}))


@pytest.mark.parametrize("extended", [False, True])
def test_runs_that_a_policy_refuses_together_do_not_wait_for_each_other_in_a_circle(
    governed: Governed, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    """Each gives back what was reserved, so each writes the agent's row; here both have found their run busy."""
    taken = [governed.ask(spend_usd=0.5), governed.ask(spend_usd=0.5)]
    governed.policy(blocked_tools=["work"])
    monkeypatch.setattr(database, "DEADLOCK_RETRIES", 0)

    def refuse(each: Taken) -> object:
        if not extended:
            return governed.claim(each)
        request = ExtendRequest(key=each.run.key, lease_id=each.run.lease_id)
        with pytest.raises(LeaseConflict):
            governed.db.run(leases.extend, governed.caller, request)
        return None

    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with ThreadPoolExecutor(2) as pool, governed.db.engine.connect() as busy:
        busy.execute(sa.text("SELECT FROM runs FOR UPDATE"))
        asked = [pool.submit(refuse, each) for each in taken]
        with governed.db.engine.connect() as watcher:
            while watcher.execute(waiting).scalar_one() < len(taken):
                watcher.rollback()
        busy.rollback()
        assert [each.result() for each in asked] == [None, None]
    assert governed.counters() == (0, 0, {})


def test_the_switch_and_a_wiped_broker_do_not_wait_for_each_other_in_a_circle(
    governed: Governed, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both write all that is queued, and here what was asked for first is published last."""
    first = governed.ask(key="first")
    governed.ask(key="second")
    with governed.db.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE runs SET publish_at = publish_at + interval '5 s' WHERE id = :id"),
            {"id": first.run.id},
        )
    monkeypatch.setattr(database, "DEADLOCK_RETRIES", 0)
    (_, stopped), again = held_up_at(
        governed.db, "first", governed.disable, lambda: governed.db.run(outbox.republish_all)
    )
    assert (stopped.queued, again) == (2, 0)


def _cancelled(governed: Governed, taken: Taken) -> object:
    request = CancelRequest(key=taken.run.key, lease_id=taken.run.lease_id)
    return governed.db.run(leases.cancel, governed.caller, request, WEEK_S)


def _cancelled_by_its_schedule(governed: Governed, _: Taken) -> object:
    return governed.db.run(lambda: iter(ticks.cancel_active("t", "s", "other", "x", WEEK_S)))


def _completed(governed: Governed, claim: Claim) -> object:
    return governed.db.run(claims.complete, claim, {}, WEEK_S, cost_usd=0)


def _failed(governed: Governed, claim: Claim) -> object:
    return governed.db.run(claims.end_as_failed, claim, Failure(error_code="x", never_made=True), WEEK_S)


def _settled(governed: Governed, claim: Claim) -> object:
    return governed.db.run(unknown.settle, "t", "ann", SettleRequest(key=claim.key, happened=False), WEEK_S)


@pytest.mark.parametrize("end", [_cancelled, _cancelled_by_its_schedule, _completed, _failed, _settled])
def test_an_end_and_a_decision_do_not_wait_for_each_other_in_a_circle(
    governed: Governed, monkeypatch: pytest.MonkeyPatch, end: Callable[[Governed, Any], object]
) -> None:
    """Each writes the agent and the run: the end to book what was reserved, the decision to take the key again."""
    taken = governed.ask(key="k", spend_usd=0.5)
    run: Taken | Claim | None = taken
    with governed.db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET schedule = 's'"))
    if end in (_completed, _failed, _settled):
        run = governed.claim(taken)
        assert isinstance(run, Claim)
        if end is _settled:
            governed.db.run(claims.hold_unknown, run, "x", None)
    monkeypatch.setattr(database, "DEADLOCK_RETRIES", 0)
    held_up_at(governed.db, "k", lambda: end(governed, run), lambda: governed.ask(key="k"))
    assert governed.counters()[1] == 0


def test_a_lease_of_the_callers_own_is_not_the_policys_business(governed: Governed) -> None:
    governed.policy(allowed_tools=[])
    lease = LeaseRequest(key="own", metadata={"agent_id": AGENT})
    taken = governed.db.run(runs.take, governed.caller, runs.lease_taking(governed.caller, lease))
    request = ExtendRequest(key="own", lease_id=taken.run.lease_id, ttl=900)
    assert governed.db.run(leases.extend, governed.caller, request).lease_ttl_s == 900


def test_every_version_of_a_policy_is_kept_with_who_and_when(governed: Governed) -> None:
    governed.policy(max_actions_per_hour=5)
    governed.policy(max_spend_usd_per_day=2.5)
    template = TemplateRequest(template="strict", overrides={"max_actions_per_hour": 3})
    governed.db.run(governance.set_policy_from_template, governed.caller, AGENT, template)
    with governed.db.engine.connect() as connection:
        kept = connection.execute(
            sa.text("SELECT version, change, actor, policy FROM policy_versions ORDER BY version")
        ).all()
    assert [(row.version, row.change) for row in kept] == [
        (1, "upsert"),
        (2, "upsert"),
        (3, "template:strict"),
    ]
    assert {row.actor for row in kept} == {governed.caller.key_id}
    assert kept[1].policy == {"max_actions_per_hour": 5, "max_spend_usd_per_day": 2.5}
    assert kept[2].policy == {**TEMPLATES["strict"], "max_actions_per_hour": 3}


def test_every_change_of_policy_or_switch_is_in_the_history_newest_first(
    governed: Governed, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    governed.policy(max_actions_per_hour=5)
    governed.disable()
    governed.disable()
    governed.enable()
    governed.policy(max_actions_per_hour=None)
    history = governed.db.run(governance.history, governed.caller, AGENT, 10, 0)
    assert [(change.change, change.reason, change.version, change.policy) for change in history] == [
        ("upsert", None, 2, {}),
        ("enabled", None, 1, None),
        ("disabled", "odd", 1, None),
        ("disabled", "odd", 1, None),
        ("upsert", None, 1, {"max_actions_per_hour": 5}),
    ]
    assert {change.actor for change in history} == {governed.caller.key_id}
    assert governed.db.run(governance.history, governed.caller, AGENT, 2, 1) == history[1:3]
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", database_url)
    words = ["policies", "history", AGENT, "--tenant", governed.caller.tenant_id]
    shown = CliRunner().invoke(build(words), words).output.splitlines()
    assert len(shown) == 1 + len(history)
    assert governed.caller.key_id in shown[1]
    assert "disabled" in shown[3]


@pytest.mark.parametrize("plan", [Plan.FREE, Plan.STARTER, Plan.PRO])
def test_a_field_that_the_plan_lacks_is_refused_not_dropped(db: Database, plan: Plan) -> None:
    caller = make_account(db, f"x{plan}", plan).caller
    with pytest.raises(FeatureNotAvailable):
        db.run(governance.set_policy, caller, AGENT, PolicyRequest(allowed_tools=["a"]))
    with pytest.raises(FeatureNotAvailable):
        db.run(governance.disable, caller, AGENT, SwitchRequest(), WEEK_S)
    if plan is Plan.PRO:
        db.run(governance.set_policy, caller, AGENT, PolicyRequest(blocked_tools=["a"]))


def test_the_wires_reasons_are_the_domains(db: Database) -> None:
    query = sa.text(f"SELECT code, {REASON} AS reason FROM unnest(CAST(:codes AS text[])) AS codes (code)")
    with db.engine.connect() as connection:
        found = {row.code: row.reason for row in connection.execute(query, {"codes": list(REASONS)})}
    assert found == {code.value: reason for code, reason in REASONS.items()}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), tools, st.sampled_from([0.0, 0.03, 0.07, 0.1, 0.0000001])),
        st.tuples(st.just("policy"), policies),
        st.tuples(st.just("switch"), st.booleans()),
        st.tuples(st.just("advance"), st.sampled_from([60.0, 3600.0, 86_400.0])),
    ),
    max_size=25,
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(program=steps)
def test_the_service_decides_as_the_model_does(governed: Governed, clock: Clock, program: list[Any]) -> None:
    with governed.db.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE agents SET policy = NULL, disabled_at = NULL, hour_at = NULL, day_on = NULL")
        )
    model = AgentModel()
    for step in program:
        match step:
            case ("policy", fields):
                governed.db.run(_replace, governed.caller.tenant_id, fields)
                model.policy = fields
            case ("switch", disabled):
                governed.disable() if disabled else governed.enable()
                model.disabled = disabled
            case ("advance", seconds):
                clock.advance(seconds)
            case ("call", tool, spend_usd):
                taken = governed.ask(tool, spend_usd)
                decided = governed.newest(taken.run.key)
                assert decided.policy_code == model.decide(tool, spend_usd, decided.at.astimezone(UTC))
                if decided.allowed:
                    assert decided.spend_micro_usd == model.cost_micro_usd(tool, spend_usd)


def _replace(tenant_id: str, fields: dict[str, Any]) -> Any:
    return (yield from agents.set_policy(tenant_id, AGENT, fields, replaces=True, actor="x", change="x"))


def test_costs_are_rounded_up_and_never_understated() -> None:
    assert [micro_usd(usd) for usd in (0.0000001, 0.07, 0.1 + 0.2, 1)] == [1, 70_000, 300_001, 1_000_000]


def test_what_an_earlier_attempt_may_have_spent_is_not_given_back(governed: Governed, clock: Clock) -> None:
    """Attempt 1 was killed after its call; attempt 2 could not even connect."""
    first = governed.claim(governed.ask(spend_usd=0.5))
    assert first is not None
    clock.advance(LEASE_S + 1)
    governed.db.run(outbox.reap, 10, WEEK_S)
    second = governed.db.run(claims.claim, first.id, "work", LEASE_S, None)
    failure = claims.Failure(error_code="tool_error", repeatable=True, never_made=True)
    assert governed.db.run(claims.end_as_failed, second, failure, WEEK_S) is Ending.STORED
    assert governed.counters() == (1, 500_000, {"work": 1})


def test_a_call_that_was_never_made_is_given_back_and_its_key_is_free(governed: Governed) -> None:
    claim = governed.claim(governed.ask(spend_usd=0.5, key="k"))
    failure = claims.Failure(error_code="tool_error", repeatable=True, never_made=True)
    assert governed.db.run(claims.end_as_failed, claim, failure, WEEK_S) is Ending.STORED
    assert governed.counters() == (0, 0, {})
    assert governed.ask(key="k").outcome == "acquired"


def test_an_internal_job_is_not_for_runs_to_ask_for(governed: Governed) -> None:
    spec = JobSpec(name="onceonly.tool_call", queue="q")
    with pytest.raises(UnknownTask):
        runs.job_taking(governed.caller, spec, key="k", ttl_s=None, metadata={"agent_id": AGENT})


def test_sql_and_domain_agree_on_risk(db: Database) -> None:
    names = ["delete_user", "stripe.charge", "Refund_All", "refund", "send_email", "update", "DROP"]
    query = sa.text(
        f"SELECT name, {risk('name')} AS risk FROM unnest(CAST(:names AS text[])) AS names (name)"
    )
    with db.engine.connect() as connection:
        found = {row.name: row.risk for row in connection.execute(query, {"names": names})}
    assert found == {name: risk_level(name) for name in names}
