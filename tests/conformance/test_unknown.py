"""A call that may have happened is held until somebody settles it: once, one way, and with what it cost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError
from support.claims import make_context
from support.storms import storm

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.contracts.tools import ToolRequest
from onceonly_jobs.contracts.unknown import SettleRequest
from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.fingerprint import result_hash
from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import Claim, JobSpec, Run
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.errors import NotFound, SettlementConflict
from onceonly_jobs.services import (
    audit,
    calls,
    claims,
    governance,
    insights,
    outbox,
    retention,
    runs,
    tools,
    unknown,
)
from onceonly_jobs.services.calls import Wanted
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import Judged
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.retention import Kept, Kind
from onceonly_jobs.store.rows import CONFIRM_PAUSES_S
from onceonly_jobs.store.unknown import UnknownCall, Verdict
from onceonly_jobs.store.vault import Vault
from onceonly_jobs.testing import Clock
from onceonly_jobs.worker.outcomes import Fail, OutcomeUnknown
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.tool_job import carry_out
from tests.conftest import make_account

AGENT = "bot"
LEASE_S = 15.0
WEEK_S = 604_800
DAY_S = 86_400
KEY = "the key of this server, at least 16 long"
VAULT = Vault(KEY)


class Payments:
    """One tenant with an irreversible tool `pay`, over a real database."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self.db, self.caller = db, caller
        self.register("pay", "irreversible")

    def register(self, name: str, effect: str, **fields: Any) -> None:
        request = {
            "name": name,
            "url": "https://tools.example.com/pay",
            "auth": {"type": "hmac_sha256", "secret": "a-long-shared-secret"},
            "effect": effect,
            **fields,
        }
        if effect == "reconcilable":
            request["confirm_url"] = "https://tools.example.com/confirm"
        self.db.run(tools.put, self.caller, ToolRequest.model_validate(request), VAULT)

    def ask(self, to: str = "a", spend_usd: float = 0.5, tool: str = "pay") -> Judged:
        wanted = Wanted(
            agent_id=AGENT, tool=tool, args={"to": to}, spend_usd=spend_usd, queue="q", publish_grace_s=0
        )
        return self.db.run(calls.judge, self.caller, wanted)

    def claim(self, judged: Judged) -> Claim:
        assert judged.run is not None
        claim = self.db.run(claims.claim, judged.run.id, calls.JOB, LEASE_S, None)
        assert claim is not None
        return claim

    def lose(self, to: str = "a", **asked: Any) -> str:
        """Make a call that gets lost; its key."""
        claim = self.claim(self.ask(to, **asked))
        held = self.db.run(claims.hold_unknown, claim, "no answer", {"error": "tool_error"})
        assert held is Ending.STORED
        return claim.key

    def settle(self, key: str, happened: bool, actor: str = "ann", **fields: Any) -> Verdict:
        request = SettleRequest.model_validate({"key": key, "happened": happened, **fields})
        return self.db.run(unknown.settle, self.caller.tenant_id, actor, request, WEEK_S)

    def list(self, limit: int = 50, offset: int = 0) -> tuple[int, list[UnknownCall]]:
        return self.db.run(unknown.list_calls, self.caller.tenant_id, limit, offset)

    def forget(self, events_s: int) -> int:
        """How many events are deleted of what was silent for so long."""
        return self.db.run(retention.prune, Kind.EVENTS, Kept(actions_s=DAY_S, events_s=events_s), 1000)

    def run(self, key: str) -> Run:
        return self.db.run(runs.find, self.caller.tenant_id, key)

    def counters(self) -> tuple[int, int, dict[str, int]]:
        query = "SELECT hour_actions, day_spend_micro_usd, day_calls FROM agents"
        [(actions, spend, made)] = self.rows(query)
        return actions, spend, {tool: n for tool, n in made.items() if n}

    def rows(self, query: str) -> list[Any]:
        with self.db.engine.connect() as connection:
            return list(connection.execute(sa.text(query)))


@pytest.fixture
def payments(db: Database, caller: Caller) -> Payments:
    return Payments(db, caller)


def refusal(settle: Callable[[], Verdict]) -> dict[str, Any]:
    with pytest.raises(SettlementConflict) as refused:
        settle()
    assert isinstance(refused.value.detail, dict)
    return refused.value.detail


def test_unknown_calls_are_listed_oldest_first_with_what_a_person_needs(
    payments: Payments, clock: Clock
) -> None:
    keys = []
    for to in "abc":
        keys.append(payments.lose(to))
        clock.advance(60)
    payments.claim(payments.ask("d"))
    total, page = payments.list()
    assert (total, [call.key for call in page]) == (3, keys)
    first = page[0]
    assert (first.agent_id, first.tool, first.effect, first.args) == (
        AGENT,
        "pay",
        "irreversible",
        {"to": "a"},
    )
    assert (first.message, first.reserved_micro_usd) == ("no answer", 500_000)
    [(decision_id,)] = payments.rows(f"SELECT decision_id FROM runs WHERE key = '{keys[0]}'")
    assert first.decision_id == decision_id
    assert [call.started_at for call in page] == sorted(call.started_at for call in page)
    assert (page[1].started_at - first.started_at).total_seconds() >= 60
    assert [call.key for call in payments.list(1, 1)[1]] == [keys[1]]


def test_another_tenants_unknown_calls_can_be_neither_seen_nor_settled(
    db: Database, payments: Payments
) -> None:
    key = payments.lose()
    other = Payments(db, make_account(db, "other").caller)
    assert other.list() == (0, [])
    with pytest.raises(NotFound):
        other.settle(key, True)
    assert payments.run(key).state is RunState.UNKNOWN
    other.lose()
    assert db.run(unknown.list_calls, None, 50, 0)[0] == 2


def test_a_call_that_happened_is_completed_and_its_repeats_get_the_result(payments: Payments) -> None:
    key = payments.lose()
    verdict = payments.settle(key, True, result={"paid": True})
    assert (verdict.happened, verdict.actor, verdict.run.state) == (True, "ann", RunState.COMPLETED)
    run = payments.run(key)
    assert (run.result, run.result_hash, run.error_code) == (
        {"paid": True},
        result_hash({"paid": True}),
        None,
    )
    assert payments.counters() == (1, 500_000, {"pay": 1})
    assert payments.list() == (0, [])
    again = payments.ask()
    assert again.code is Code.IDEMPOTENCY
    assert again.run is not None
    assert again.run.result == {"paid": True}


def test_a_call_that_did_not_happen_costs_nothing_and_may_be_made(payments: Payments) -> None:
    key = payments.lose()
    before = payments.run(key)
    verdict = payments.settle(key, False)
    assert (verdict.run.state, verdict.run.error_code) == (RunState.FAILED, "did_not_happen")
    assert verdict.run.result is None
    assert payments.counters() == (0, 0, {})
    again = payments.ask()
    assert again.code is Code.OK
    assert again.run is not None
    assert again.run.first_seen_at == before.first_seen_at, "to the tool it is still the same call"
    assert payments.counters() == (1, 500_000, {"pay": 1})


@pytest.mark.parametrize(
    ("fields", "booked", "overrun"),
    [
        ({"result": {}}, 500_000, False),
        ({"cost_usd": 0.2}, 200_000, False),
        ({"result": {"cost_usd": 0.3}}, 300_000, False),
        ({"result": {"cost_usd": 0.3}, "cost_usd": 0.9}, 900_000, True),
    ],
)
def test_what_a_settled_call_really_cost_is_booked(
    payments: Payments, fields: dict[str, Any], booked: int, overrun: bool
) -> None:
    payments.settle(payments.lose(), True, **fields)
    assert payments.counters() == (1, booked, {"pay": 1})
    assert payments.rows("SELECT outcome, spend_micro_usd, overrun FROM audit_outcomes") == [
        ("completed", booked, overrun)
    ]


def test_only_open_windows_get_back_what_was_reserved(payments: Payments, clock: Clock) -> None:
    key = payments.lose(spend_usd=0.5)
    clock.advance(DAY_S)
    payments.ask("b", spend_usd=0.1)
    payments.settle(key, False)
    assert payments.counters() == (1, 100_000, {"pay": 1})


def test_the_reservation_stays_until_the_settlement(payments: Payments) -> None:
    request = PolicyRequest(max_spend_usd_per_day=1.0)
    payments.db.run(governance.set_policy, payments.caller, AGENT, request)
    key = payments.lose(spend_usd=0.6)
    assert payments.ask("b", spend_usd=0.5).code is Code.DAILY_SPEND
    payments.settle(key, False)
    assert payments.ask("b", spend_usd=0.5).code is Code.OK


@pytest.mark.parametrize("happened", [True, False])
def test_a_repeated_settlement_is_answered_like_the_first_and_changes_nothing(
    payments: Payments, happened: bool
) -> None:
    key = payments.lose()
    first = payments.settle(key, happened, **({"result": {"n": 1}} if happened else {}))
    again = payments.settle(key, happened, "bob", **({"result": {"n": 2}} if happened else {}))
    assert (again.actor, again.at, again.decision_id) == ("ann", first.at, first.decision_id)
    assert (again.run.version, again.run.result) == (first.run.version, first.run.result)
    assert len(payments.rows("SELECT FROM audit_outcomes")) == 1
    assert len(payments.rows("SELECT FROM run_events WHERE type = 'settled'")) == 1
    assert payments.counters()[0] == (1 if happened else 0)


@pytest.mark.parametrize("happened", [True, False])
def test_the_opposite_settlement_is_refused_and_told_what_stands(payments: Payments, happened: bool) -> None:
    key = payments.lose()
    payments.settle(key, happened)
    detail = refusal(lambda: payments.settle(key, not happened, "bob"))
    assert detail["error"] == "settlement_conflict"
    assert (detail["reason"], detail["happened"], detail["settled_by"]) == (
        "settled_otherwise",
        happened,
        "ann",
    )
    assert payments.run(key).state is (RunState.COMPLETED if happened else RunState.FAILED)


@pytest.mark.parametrize("round_", range(6))
def test_of_opposite_settlements_at_once_exactly_one_wins(payments: Payments, round_: int) -> None:
    key = payments.lose()
    sides = itertools.cycle((round_ % 2 == 0, round_ % 2 == 1))

    def one() -> tuple[bool, str]:
        happened = next(sides)
        try:
            payments.settle(key, happened)
        except SettlementConflict:
            return happened, "refused"
        return happened, "settled"

    answers = storm(12, one)
    happened = payments.run(key).state is RunState.COMPLETED
    assert Counter(answers) == {(happened, "settled"): 6, (not happened, "refused"): 6}
    assert payments.counters() == ((1, 500_000, {"pay": 1}) if happened else (0, 0, {}))
    assert len(payments.rows("SELECT FROM audit_outcomes")) == 1
    assert len(payments.rows("SELECT FROM run_events WHERE type = 'settled'")) == 1
    assert len(payments.rows("SELECT FROM feed_events WHERE type = 'settled'")) == 1


def test_a_settlement_of_an_earlier_call_does_not_settle_a_later_one(payments: Payments) -> None:
    """A client that repeats its request after a lost answer must not decide on what it knows nothing of."""
    key = payments.lose()
    first = payments.settle(key, False)
    payments.lose()
    detail = refusal(lambda: payments.settle(key, False, decision_id=first.decision_id))
    assert detail["reason"] == "other_call"
    assert payments.run(key).state is RunState.UNKNOWN
    second = payments.list()[1][0].decision_id
    assert payments.settle(key, True, decision_id=second).decision_id == second
    detail = refusal(lambda: payments.settle(key, True, decision_id=first.decision_id))
    assert detail["reason"] == "other_call"


def test_only_an_unknown_call_can_be_settled(payments: Payments) -> None:
    with pytest.raises(NotFound):
        payments.settle("nothing", True)
    judged = payments.ask()
    assert judged.run is not None
    key = judged.run.key
    assert refusal(lambda: payments.settle(key, False))["reason"] == "not_unknown"
    claim = payments.claim(judged)
    assert refusal(lambda: payments.settle(key, True))["reason"] == "not_unknown"
    payments.db.run(claims.complete, claim, {"paid": True}, WEEK_S)
    detail = refusal(lambda: payments.settle(key, True))
    assert (detail["reason"], detail["status"]) == ("not_unknown", "completed")
    assert payments.run(key).result == {"paid": True}


def test_a_settlement_is_told_on_the_timeline_in_the_feed_and_in_the_trail(payments: Payments) -> None:
    key = payments.lose()
    payments.settle(key, False)
    _, events = payments.db.run(insights.timeline, payments.caller, key, 50, 0)
    assert [event.type for event in events][-4:] == [
        "outcome_unknown",
        "tool_result",
        "run_finished",
        "settled",
    ]
    [entry] = payments.db.run(audit.decisions_of, payments.caller.tenant_id, key)
    assert (entry.decision, entry.outcome, entry.error_code) == ("executed", "failed", "did_not_happen")
    data = {"actor": "ann", "happened": False, "decision_id": entry.decision_id}
    assert events[-1].data == {"key": key, **data}
    assert (events[-1].status, events[-1].tool, events[-1].agent_id) == ("failed", "pay", AGENT)
    feed = payments.db.run(insights.feed, payments.caller, 10, 0)
    assert [(told.key, told.data) for told in feed if told.type == "settled"] == [(key, data)]


def test_a_callers_own_event_does_not_pass_for_a_settlement(payments: Payments) -> None:
    key = payments.lose()
    payments.db.run(_forged, payments.caller.tenant_id, key)
    assert payments.settle(key, True).run.state is RunState.COMPLETED


def _forged(tenant_id: str, key: str) -> Any:
    from onceonly_jobs.store import events

    data = {"actor": "eve", "happened": "maybe", "decision_id": "x"}
    yield from events.append(tenant_id, key, "settled", data=data)


def test_an_answer_found_late_is_kept_as_long_as_any(payments: Payments, clock: Clock) -> None:
    """Counted from the call, its time would be over already, and a repeat would be sent."""
    key = payments.lose()
    clock.advance(3 * DAY_S)
    payments.settle(key, True, result={"paid": True})
    clock.advance(DAY_S - 60)
    assert payments.ask().code is Code.IDEMPOTENCY
    clock.advance(120)
    assert payments.ask().code is Code.OK


def test_the_timeline_of_a_call_stays_until_it_has_ended(payments: Payments, clock: Clock) -> None:
    judged = payments.ask()
    clock.advance(2 * WEEK_S)
    assert payments.forget(events_s=WEEK_S) == 0, "it waits for a worker"
    payments.db.run(claims.complete, payments.claim(judged), {}, DAY_S)
    clock.advance(2 * WEEK_S)
    assert payments.forget(events_s=WEEK_S) > 0


def test_a_settlement_stands_as_long_as_its_call(payments: Payments, clock: Clock) -> None:
    payments.register("slow", "irreversible", dedup_ttl_s=3 * WEEK_S)
    key = payments.lose(tool="slow")
    first = payments.settle(key, True, result={"n": 1})
    clock.advance(2 * WEEK_S)
    assert payments.forget(events_s=WEEK_S) == 0
    assert payments.ask(tool="slow").code is Code.IDEMPOTENCY
    again = payments.settle(key, True, "bob")
    assert (again.actor, again.at) == ("ann", first.at)
    assert refusal(lambda: payments.settle(key, False))["reason"] == "settled_otherwise"
    clock.advance(WEEK_S)
    assert payments.forget(events_s=WEEK_S) > 0


def test_what_a_dead_worker_left_unknown_is_settled_the_same_way(payments: Payments, clock: Clock) -> None:
    claim = payments.claim(payments.ask())
    clock.advance(LEASE_S + 1)
    payments.db.run(outbox.reap, 10, WEEK_S)
    assert [call.key for call in payments.list()[1]] == [claim.key]
    payments.settle(claim.key, True, result={"paid": True})
    assert payments.db.run(claims.complete, claim, {"late": True}, WEEK_S) is Ending.LOST
    assert payments.run(claim.key).result == {"paid": True}


@pytest.mark.parametrize(
    "fields",
    [
        {"happened": False, "result": {}},
        {"happened": False, "cost_usd": 0.0},
        {"happened": "yes"},
        {"happened": 1},
        {"happened": True, "result": [1]},
        {"happened": True, "cost_usd": -1.0},
        {"happened": True, "resutl": {}},
        {},
    ],
)
def test_a_settlement_that_says_two_things_or_none_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SettleRequest.model_validate({"key": "k", **fields})


def test_a_reconcilable_call_is_confirmed_a_few_times_with_growing_pauses(
    payments: Payments, clock: Clock
) -> None:
    payments.register("ship", "reconcilable")
    payments.lose(tool="pay")
    key = payments.lose(tool="ship")
    asked: list[int] = []
    for pause_s in CONFIRM_PAUSES_S:
        clock.advance(pause_s - 2)
        assert payments.db.run(unknown.take_confirmable, 10) == []
        clock.advance(3)
        [due] = payments.db.run(unknown.take_confirmable, 10)
        assert (due.key, due.job, due.queue) == (key, unknown.CONFIRM, "q")
        asked.append(payments.list()[1][1].confirmations)
    assert asked == list(range(1, len(CONFIRM_PAUSES_S) + 1))
    assert payments.list()[1][1].confirm_at is None
    clock.advance(30 * DAY_S)
    assert payments.db.run(unknown.take_confirmable, 10) == []
    assert payments.list()[0] == 2, "and then it is a person's turn"


def test_what_a_dead_worker_left_of_a_reconcilable_call_is_confirmed_too(
    payments: Payments, clock: Clock
) -> None:
    payments.register("ship", "reconcilable")
    claim = payments.claim(payments.ask(tool="ship"))
    clock.advance(LEASE_S + 1)
    payments.db.run(outbox.reap, 10, WEEK_S)
    clock.advance(CONFIRM_PAUSES_S[0] + 1)
    assert [due.id for due in payments.db.run(unknown.take_confirmable, 10)] == [claim.id]
    held = payments.db.run(unknown.confirmable, claim.id)
    assert held is not None
    assert (held[0].key, held[1].confirm_url) == (claim.key, "https://tools.example.com/confirm")


def test_a_settled_call_is_not_asked_about(payments: Payments, clock: Clock) -> None:
    payments.register("ship", "reconcilable")
    payments.settle(payments.lose(tool="ship"), True)
    clock.advance(60)
    assert payments.db.run(unknown.take_confirmable, 10) == []


def test_many_relays_ask_about_a_call_once(payments: Payments, clock: Clock) -> None:
    payments.register("ship", "reconcilable")
    for n in range(20):
        payments.lose(f"to{n}", tool="ship")
    clock.advance(CONFIRM_PAUSES_S[0] + 1)

    def relay() -> list[int]:
        return [due.id for _ in range(10) for due in payments.db.run(unknown.take_confirmable, 3)]

    taken = [id_ for ids in storm(8, relay) for id_ in ids]
    assert len(taken) == len(set(taken)) == 20


def test_a_tool_that_became_stricter_after_the_decision_is_called_by_its_stricter_rules(
    payments: Payments, clock: Clock
) -> None:
    payments.register("mail", "idempotent")
    judged = payments.ask(tool="mail")
    payments.register("mail", "reconcilable")
    claim = payments.claim(judged)
    assert (claim.effect, claim.repeatable) == ("reconcilable", False)
    clock.advance(LEASE_S + 1)
    payments.db.run(outbox.reap, 10, WEEK_S)
    assert payments.run(claim.key).state is RunState.UNKNOWN, "its worker died, and nobody calls it again"
    [call] = payments.list()[1]
    assert (call.effect, call.confirm_at is not None) == ("reconcilable", True)


@pytest.mark.parametrize("now", ["read", "idempotent", "reconcilable"])
def test_a_tool_that_became_more_harmless_after_the_decision_is_called_as_it_was(
    payments: Payments, now: str
) -> None:
    judged = payments.ask()
    payments.register("pay", now)
    assert payments.claim(judged).effect == "irreversible"


def test_an_agents_own_tool_counts_more_than_the_global_one(payments: Payments) -> None:
    payments.register("mail", "irreversible")
    own = {
        "name": "mail",
        "scope_id": f"agent:{AGENT}",
        "url": "https://tools.example.com/own",
        "effect": "read",
    }
    auth = {"type": "hmac_sha256", "secret": "a-long-shared-secret"}
    payments.db.run(tools.put, payments.caller, ToolRequest.model_validate({**own, "auth": auth}), VAULT)
    assert payments.claim(payments.ask(tool="mail")).effect == "read"


def test_a_function_that_became_stricter_is_called_by_its_stricter_rules(
    payments: Payments, clock: Clock
) -> None:
    """What counts is the code that is about to run: other workers may still have, and announce, the older one."""
    job = f"{calls.FUNCTION}mail"
    spec = JobSpec(name=job, queue="q", max_attempts=5, time_limit_s=15, effect="idempotent")
    payments.db.run(claims.announce, [spec])

    def claimed(call: Judged, effect: str) -> Claim | None:
        assert call.run is not None
        return payments.db.run(claims.claim, call.run.id, job, LEASE_S, None, effect=effect)

    first, second = payments.ask("a", tool="mail"), payments.ask("b", tool="mail")
    strict = claimed(first, "irreversible")
    assert strict is not None
    assert (strict.effect, strict.repeatable) == ("irreversible", False)
    assert claimed(second, "read") is not None
    clock.advance(LEASE_S + 1)
    payments.db.run(outbox.reap, 10, WEEK_S)
    assert claimed(second, "irreversible") is None
    assert [call.effect for call in payments.list()[1]] == ["irreversible", "irreversible"]


@pytest.mark.parametrize(("now", "asked_later"), [("irreversible", False), ("reconcilable", True)])
def test_a_begun_call_whose_tool_became_stricter_is_held_not_made_again(
    payments: Payments, clock: Clock, now: str, asked_later: bool
) -> None:
    """Its first attempt may have come through: under the old rules a repeat was harmless, under the new it is not."""
    payments.register("mail", "idempotent")
    first = payments.claim(payments.ask(tool="mail"))
    clock.advance(LEASE_S + 1)
    payments.db.run(outbox.reap, 10, WEEK_S)
    payments.register("mail", now)
    assert payments.db.run(claims.claim, first.id, calls.JOB, LEASE_S, None) is None
    [call] = payments.list()[1]
    assert (call.key, call.effect, call.confirm_at is not None) == (first.key, now, asked_later)
    assert payments.counters() == (1, 500_000, {"mail": 1})
    assert payments.settle(first.key, happened=False).run.state is RunState.FAILED
    assert payments.ask(tool="mail").code is Code.OK


@pytest.mark.parametrize(("attempt", "ending"), [(1, Fail), (2, OutcomeUnknown)])
def test_a_tool_that_becomes_stricter_after_the_claim_is_not_called(
    payments: Payments, settings: Settings, attempt: int, ending: type[Exception]
) -> None:
    """Should its worker die, the claim's effect would let another one repeat the call."""
    payments.register("mail", "idempotent")
    claim = replace(payments.claim(payments.ask(tool="mail")), attempt=attempt)
    payments.register("mail", "irreversible")
    runtime = Runtime.of(settings.model_copy(update={"secret_key": KEY}))
    with pytest.raises(ending) as ended:
        carry_out(make_context(claim), runtime, Allowed.parse(""))
    runtime.database.close()
    assert attempt == 2 or (ended.value.never_made and ended.value.repeatable)  # type: ignore[attr-defined]


def test_a_call_on_its_way_that_the_policy_stops_is_held_where_it_cannot_be_repeated(
    payments: Payments,
) -> None:
    claim = payments.claim(payments.ask())
    payments.db.run(governance.set_policy, payments.caller, AGENT, PolicyRequest(blocked_tools=["pay"]))
    assert payments.db.run(claims.heartbeat, claim, LEASE_S) is Ending.LOST
    assert payments.run(claim.key).state is RunState.UNKNOWN
    assert payments.counters() == (1, 500_000, {"pay": 1})


@pytest.mark.parametrize("claimed", [False, True])
def test_a_call_blocked_after_its_decision_says_so_in_the_trail_and_on_the_timeline(
    payments: Payments, claimed: bool
) -> None:
    payments.register("mail", "idempotent")
    judged = payments.ask(tool="mail")
    assert judged.run is not None
    claim = payments.claim(judged) if claimed else None
    payments.db.run(governance.set_policy, payments.caller, AGENT, PolicyRequest(allowed_tools=["pay"]))
    if claim is None:
        assert payments.db.run(claims.claim, judged.run.id, calls.JOB, LEASE_S, None) is None
    else:
        payments.db.run(claims.heartbeat, claim, LEASE_S)
    blocked, executed = payments.db.run(governance.logs, payments.caller, AGENT, limit=10)
    assert (blocked.decision, blocked.policy_code) == ("blocked", Code.NOT_IN_ALLOWED_LIST)
    assert blocked.args_hash == executed.args_hash is not None
    _, timeline = payments.db.run(insights.timeline, payments.caller, judged.run.run_id, 10, 0)
    [result] = [event for event in timeline if event.type == "tool_result"]
    assert (result.status, result.message) == ("blocked", "tool_not_allowed")


def test_a_call_answers_its_repeats_for_as_long_as_its_tool_says(payments: Payments, clock: Clock) -> None:
    payments.register("mail", "idempotent", dedup_ttl_s=60)
    claim = payments.claim(payments.ask(tool="mail"))
    payments.db.run(claims.complete, claim, {"sent": True}, WEEK_S)
    clock.advance(59)
    assert payments.ask(tool="mail").code is Code.IDEMPOTENCY
    clock.advance(2)
    assert payments.ask(tool="mail").code is Code.OK


@pytest.mark.parametrize(("plan", "kept_s"), [(Plan.PRO, 604_800), (Plan.AGENCY, 2_592_000)])
def test_no_tool_keeps_its_answers_for_longer_than_the_plan_lets_it(
    db: Database, plan: Plan, kept_s: int
) -> None:
    payments = Payments(db, make_account(db, plan.value, plan).caller)
    payments.register("mail", "idempotent", dedup_ttl_s=2_592_000)
    payments.ask(tool="mail")
    assert payments.rows("SELECT retention_s FROM runs") == [(kept_s,)]
