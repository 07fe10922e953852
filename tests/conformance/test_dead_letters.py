"""Dead letters: listed, replayed once, discarded once, and never charged for twice."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.errors import DeadLetterConflict, NotFound
from onceonly_jobs.services import account, audit, claims, dead, governance, insights, outbox, runs
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.services.dead import Replayed
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.dead import DeadLetter, Fate, Wanted
from onceonly_jobs.testing import Clock

AGENT = "bot"
WEEK_S = 604_800
LEASE_S = 15.0
T = TypeVar("T")
EVERYBODYS = Wanted(tenant_id=None)


class Morgue:
    """One tenant, whose runs of the job `report` die, over a real database."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self.db, self.caller = db, caller
        self.tenant_id = caller.tenant_id

    def ask(self, key: str, job: str = "report", **metadata: Any) -> int:
        spec = JobSpec(name=job, queue="q", max_attempts=3)
        taking = runs.job_taking(self.caller, spec, key=key, ttl_s=None, metadata=metadata)
        taken = self.db.run(runs.taking_operation(self.caller, taking), self.caller, taking)
        return int(taken.run.id)  # type: ignore[union-attr]

    def claim(self, run: int, job: str = "report") -> Claim:
        claim = self.db.run(claims.claim, run, job, LEASE_S, None)
        assert claim is not None
        return claim

    def fail(self, claim: Claim) -> None:
        failed = self.db.run(claims.fail, claim, "handler_error", "no paper", WEEK_S, dead_lettered=True)
        assert failed is Ending.STORED

    def kill(self, key: str, job: str = "report", **metadata: Any) -> int:
        """Ask for a run that becomes a dead letter; its row."""
        run = self.ask(key, job, **metadata)
        self.fail(self.claim(run, job))
        return run

    def replay(self, key: str, actor: str = "ann", decision_id: int | None = None) -> Replayed:
        return self.db.run(dead.replay, self.tenant_id, actor, key, decision_id)

    def discard(self, key: str, actor: str = "ann", reason: str | None = None, **which: Any) -> Fate:
        return self.db.run(dead.discard, self.tenant_id, actor, key, reason, **which)

    def list(self, job: str | None = None, agent_id: str | None = None) -> list[DeadLetter]:
        wanted = Wanted(tenant_id=self.tenant_id, job=job, agent_id=agent_id)
        total, page = self.db.run(dead.letters, wanted, 50, 0)
        assert total == len(page)
        return page

    def keys(self, **wanted: Any) -> list[str]:
        return [letter.key for letter in self.list(**wanted)]

    def row(self, key: str) -> Any:
        [row] = self.rows("SELECT * FROM runs WHERE key = :key", key=key)
        return row

    def counters(self) -> tuple[int, int, dict[str, int]]:
        [(actions, spend, made)] = self.rows(
            "SELECT hour_actions, day_spend_micro_usd, day_calls FROM agents"
        )
        return actions, spend, made

    def rows(self, query: str, **params: Any) -> list[Any]:
        with self.db.engine.connect() as connection:
            return list(connection.execute(sa.text(query), params))


@pytest.fixture
def morgue(db: Database, caller: Caller) -> Morgue:
    return Morgue(db, caller)


def refusal(call: Callable[[], Any]) -> dict[str, Any]:
    with pytest.raises(DeadLetterConflict) as refused:
        call()
    assert isinstance(refused.value.detail, dict)
    return refused.value.detail


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each of these calls gives, each from a thread of its own, all of them starting together."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], T]) -> T:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))


def test_dead_letters_are_listed_oldest_first_and_found_by_job_and_agent(
    morgue: Morgue, clock: Clock
) -> None:
    for key, job, agent in (("b", "report", None), ("a", "mail", "bot"), ("c", "report", "bot")):
        morgue.kill(key, job, **({"agent_id": agent} if agent else {}))
        clock.advance(60)
    morgue.claim(morgue.ask("running"))
    assert morgue.keys() == ["b", "a", "c"]
    assert morgue.keys(job="report") == ["b", "c"]
    assert morgue.keys(agent_id="bot") == ["a", "c"]
    assert morgue.keys(job="report", agent_id="bot") == ["c"]
    letter = morgue.list()[0]
    assert (letter.error_code, letter.message, letter.attempt) == ("handler_error", "no paper", 1)
    assert (letter.max_attempts, letter.queue, letter.decision_id) == (3, "q", morgue.row("b").decision_id)


def test_one_tenant_sees_and_moves_nothing_of_another(morgue: Morgue, db: Database) -> None:
    morgue.kill("k")
    db.run(account.ensure_tenant, "other", Plan.AGENCY)
    assert db.run(dead.letters, Wanted(tenant_id="other"), 50, 0) == (0, [])
    for operation in (dead.replay, dead.discard):
        with pytest.raises(NotFound):
            db.run(operation, "other", "eve", "k")
    with pytest.raises(NotFound):
        db.run(dead.show, "other", "k")
    assert morgue.keys() == ["k"]


def test_a_dead_letter_is_shown_with_its_errors_and_its_latest_events(morgue: Morgue) -> None:
    morgue.kill("k", run_id="shared", size=3)
    morgue.kill("neighbour", run_id="shared")
    with morgue.db.engine.begin() as connection:
        connection.execute(sa.text("""UPDATE runs SET errors = '[{"attempt": 1, "kind": "error"}]'"""))
    details, events = morgue.db.run(dead.show, morgue.tenant_id, "k")
    assert details.letter == morgue.list()[0]
    assert details.metadata == {"run_id": "shared", "size": 3}
    assert details.errors == [{"attempt": 1, "kind": "error"}]
    assert [event.type for event in events] == ["run_queued", "run_started", "run_finished"]
    assert {(event.data or {})["key"] for event in events} == {"k"}


def test_no_more_than_the_tail_of_a_long_timeline_is_shown(morgue: Morgue) -> None:
    claim = morgue.claim(morgue.ask("k"))
    for step in range(2 * dead.TAIL):
        morgue.db.run(claims.report_log, claim, str(step), {})
    morgue.fail(claim)
    _, events = morgue.db.run(dead.show, morgue.tenant_id, "k")
    assert len(events) == dead.TAIL
    assert [events[0].message, events[-1].type] == [str(dead.TAIL + 1), "run_finished"]


def test_a_replayed_run_is_queued_again_like_a_new_one_that_keeps_its_identity(
    morgue: Morgue, clock: Clock
) -> None:
    run = morgue.kill("k", size=3)
    before = morgue.row("k")
    clock.advance(60)
    replayed = morgue.replay("k")
    after = morgue.row("k")
    assert replayed.due is not None
    assert (replayed.due.id, replayed.due.key, replayed.due.job, replayed.due.queue) == (
        run,
        "k",
        "report",
        "q",
    )
    assert (after.state, after.version, after.dead_lettered) == ("queued", before.version + 1, False)
    assert (after.failures, after.crashes, after.attempt, after.publications) == (0, 0, 1, 0)
    same = ("decision_id", "first_seen_at", "lease_id", "metadata", "run_id", "fencing_token", "max_attempts")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    gone = "done_at retain_until_at result result_hash error_code error_message error_hash progress deadline_at".split()
    assert {getattr(after, name) for name in gone} == {None}
    [(now,)] = morgue.rows("SELECT onceonly_now()")
    assert (now - after.due_at).total_seconds() < 30
    assert morgue.keys() == []


def test_a_replayed_run_is_published_at_once_and_its_second_life_counts_its_starts_on(
    morgue: Morgue,
) -> None:
    run = morgue.kill("k")
    morgue.replay("k")
    assert [due.id for due in morgue.db.run(outbox.take_due, 10, 2.0, [])] == [run]
    claim = morgue.claim(run)
    assert (claim.attempt, claim.fencing_token) == (2, 2)
    assert morgue.db.run(claims.complete, claim, {"pages": 7}, WEEK_S) is Ending.STORED
    found = morgue.db.run(runs.find, morgue.tenant_id, "k")
    assert (found.state, found.result) == (RunState.COMPLETED, {"pages": 7})


def test_a_replayed_run_may_crash_and_fail_as_often_as_a_new_one(morgue: Morgue, clock: Clock) -> None:
    run = morgue.ask("k")
    for life in range(2):
        while morgue.row("k").state == "queued":
            morgue.claim(run)
            clock.advance(LEASE_S + 1)
            morgue.db.run(outbox.reap, 10, WEEK_S)
        row = morgue.row("k")
        assert (row.crashes, row.attempt) == (3, 3 * (life + 1))
        assert [letter.crashes for letter in morgue.list()] == [3]
        morgue.replay("k")
    claim = morgue.claim(run)
    assert (claim.crashes, claim.failures, claim.attempts_left) == (0, 0, 2)
    assert len(morgue.row("k").errors) == 6


def test_the_worker_that_let_a_run_die_can_not_write_to_its_second_life(morgue: Morgue) -> None:
    run = morgue.ask("k")
    first = morgue.claim(run)
    morgue.fail(first)
    morgue.replay("k")
    assert morgue.db.run(claims.complete, first, {"late": True}, WEEK_S) is not Ending.STORED
    morgue.claim(run)
    assert morgue.db.run(claims.complete, first, {"late": True}, WEEK_S) is not Ending.STORED
    assert morgue.row("k").state == "in_progress"


def test_a_replay_is_a_decision_of_its_own_and_gets_the_next_outcome(morgue: Morgue) -> None:
    run = morgue.kill("k")
    first = morgue.row("k").decision_id
    replayed = morgue.replay("k", actor="ann")
    morgue.fail(morgue.claim(run))
    again = morgue.replay("k", actor="bob")
    assert morgue.db.run(claims.complete, morgue.claim(run), {}, WEEK_S) is Ending.STORED
    decisions = morgue.rows(
        "SELECT d.id, d.actor, d.decision, d.allowed, d.tool, d.run_key, o.outcome FROM audit_decisions d"
        " LEFT JOIN audit_outcomes o ON o.decision_id = d.id ORDER BY d.id"
    )
    assert decisions == [
        (first, morgue.caller.key_id, "executed", True, "report", "k", "failed"),
        (replayed.fate.decision_id, "ann", "replayed", True, "report", "k", "failed"),
        (again.fate.decision_id, "bob", "replayed", True, "report", "k", "completed"),
    ]
    assert (replayed.fate.replays, again.fate.replays) == (first, replayed.fate.decision_id)
    assert morgue.row("k").decision_id == first


def test_the_audit_trail_with_replays_verifies(morgue: Morgue) -> None:
    run = morgue.kill("k")
    morgue.replay("k")
    morgue.fail(morgue.claim(run))
    morgue.discard("k")
    while morgue.db.run(audit.seal):
        pass
    assert list(audit.verify(morgue.db)) == []


def test_two_replays_at_once_are_one(morgue: Morgue) -> None:
    def one(key: str, actor: str) -> tuple[str, Replayed]:
        return key, morgue.replay(key, actor)

    keys = [f"k{number}" for number in range(5)]
    for key in keys:
        morgue.kill(key)
    wanted = [(key, actor) for key in keys for actor in ("ann", "bob", "cid")]
    answers = at_once([partial(one, *which) for which in wanted])
    made = Counter(key for key, replayed in answers if replayed.due is not None)
    assert made == dict.fromkeys(keys, 1)
    for key in keys:
        assert len({(r.fate.actor, r.fate.decision_id, r.fate.at) for k, r in answers if k == key}) == 1
    assert len(morgue.rows("SELECT FROM audit_decisions WHERE decision = 'replayed'")) == 5
    assert len(morgue.rows("SELECT FROM run_events WHERE type = 'run_replayed'")) == 5
    assert len(morgue.rows("SELECT FROM feed_events WHERE type = 'run_replayed'")) == 5


def test_a_replay_and_a_discarding_at_once_leave_one_of_them(morgue: Morgue) -> None:
    for number in range(6):
        key = f"k{number}"
        morgue.kill(key)

        def told(call: Callable[[], Any]) -> str:
            try:
                call()
            except DeadLetterConflict:
                return "refused"
            return "done"

        answers = at_once([partial(told, partial(act, key)) for act in (morgue.replay, morgue.discard)])
        assert Counter(answers) == {"done": 1, "refused": 1}
    assert morgue.keys() == []


def test_a_repeated_replay_is_answered_like_the_first_whatever_came_of_it(morgue: Morgue) -> None:
    run = morgue.kill("k")
    first = morgue.replay("k", "ann")
    claim = None
    for state in ("queued", "in_progress", "completed"):
        if state == "in_progress":
            claim = morgue.claim(run)
        elif state == "completed":
            assert claim is not None
            morgue.db.run(claims.complete, claim, {}, WEEK_S)
        repeat = morgue.replay("k", "bob")
        assert repeat.due is None
        assert repeat.fate == replace(first.fate, state=RunState(state))


def test_a_repeat_that_names_the_failure_replays_no_later_one(morgue: Morgue) -> None:
    run = morgue.kill("k")
    [letter] = morgue.list()
    first = morgue.replay("k", decision_id=letter.decision_id)
    morgue.fail(morgue.claim(run))
    repeat = morgue.replay("k", decision_id=letter.decision_id)
    assert repeat.due is None
    assert repeat.fate == replace(first.fate, state=RunState.FAILED)
    [later] = morgue.list()
    assert later.decision_id == first.fate.decision_id
    assert morgue.replay("k", decision_id=later.decision_id).due is not None
    refused = refusal(lambda: morgue.replay("k", decision_id=letter.decision_id))
    assert refused["reason"] == "not_a_dead_letter"


def test_what_is_no_dead_letter_is_neither_replayed_nor_discarded(morgue: Morgue) -> None:
    claim = morgue.claim(morgue.ask("running"))
    failed = morgue.claim(morgue.ask("failed"))
    morgue.db.run(claims.fail, failed, "refused", None, WEEK_S)
    for (key, status), act in itertools.product(
        (("running", "in_progress"), ("failed", "failed")), (morgue.replay, morgue.discard)
    ):
        detail = refusal(partial(act, key))
        assert detail.pop("message")
        assert detail == {
            "error": "dead_letter_conflict",
            "reason": "not_a_dead_letter",
            "key": key,
            "status": status,
        }
    assert morgue.db.run(claims.complete, claim, {}, WEEK_S) is Ending.STORED
    for act in (morgue.replay, morgue.discard):
        with pytest.raises(NotFound):
            act("never heard of")


def test_another_failure_than_the_one_that_was_meant_is_told_so(morgue: Morgue) -> None:
    morgue.kill("k")
    for act in (morgue.replay, morgue.discard):
        detail = refusal(partial(act, "k", decision_id=2**40))
        assert (detail["reason"], detail["status"]) == ("other_failure", "failed")
    assert morgue.keys() == ["k"]


def test_past_its_retention_a_dead_letter_is_gone_and_its_key_free(morgue: Morgue, clock: Clock) -> None:
    morgue.kill("k")
    clock.advance(WEEK_S + 1)
    assert morgue.keys() == []
    for act in (morgue.replay, morgue.discard):
        with pytest.raises(NotFound):
            act("k")
    assert morgue.db.run(dead.replay_batch, EVERYBODYS, morgue.db.run(dead.moment), 10, "ann") == []
    run = morgue.ask("k")
    assert (morgue.row("k").state, morgue.row("k").concludes_id) == ("queued", None)
    morgue.fail(morgue.claim(run))


def test_a_key_that_is_taken_again_after_a_replayed_life_starts_with_a_decision_of_its_own(
    morgue: Morgue, clock: Clock
) -> None:
    run = morgue.kill("k")
    morgue.replay("k")
    morgue.db.run(claims.complete, morgue.claim(run), {}, WEEK_S)
    clock.advance(WEEK_S + 1)
    morgue.ask("k")
    assert morgue.row("k").concludes_id is None
    assert refusal(lambda: morgue.replay("k"))["reason"] == "not_a_dead_letter"
    morgue.db.run(claims.complete, morgue.claim(run), {}, WEEK_S)
    [(outcome,)] = morgue.rows(
        "SELECT outcome FROM audit_outcomes WHERE decision_id = :id", id=morgue.row("k").decision_id
    )
    assert outcome == "completed"


def test_a_discarded_run_stays_failed_under_its_key(morgue: Morgue) -> None:
    morgue.kill("k")
    decision_id = morgue.row("k").decision_id
    fate = morgue.discard("k", "ann", "sent by hand")
    assert (fate.actor, fate.reason, fate.decision_id) == ("ann", "sent by hand", decision_id)
    assert morgue.discard("k", "bob", "another reason") == fate
    assert morgue.keys() == []
    found = morgue.db.run(runs.find, morgue.tenant_id, "k")
    assert (found.state, found.error_code) == (RunState.FAILED, "handler_error")
    assert refusal(lambda: morgue.replay("k"))["reason"] == "not_a_dead_letter"
    _, events = morgue.db.run(insights.timeline, morgue.caller, "k", 50, 0)
    last = events[-1]
    assert (last.type, last.status, last.message) == ("run_discarded", "failed", "sent by hand")
    assert last.data == {"key": "k", "attempt": 1, "actor": "ann", "decision_id": decision_id}


def test_after_a_replay_that_failed_and_was_discarded_there_is_nothing_to_replay(morgue: Morgue) -> None:
    run = morgue.kill("k")
    morgue.replay("k")
    morgue.fail(morgue.claim(run))
    morgue.discard("k")
    assert refusal(lambda: morgue.replay("k"))["reason"] == "not_a_dead_letter"


def test_a_timeline_with_a_replayed_run_is_not_over(morgue: Morgue) -> None:
    run = morgue.kill("k")
    fate = morgue.replay("k", "ann").fate
    total, events = morgue.db.run(insights.timeline, morgue.caller, "k", 50, 0)
    assert events[-1].data == {
        "key": "k",
        "attempt": 1,
        "actor": "ann",
        "decision_id": fate.decision_id,
        "replays": fate.replays,
    }
    assert not morgue.db.run(insights.standing, morgue.tenant_id, "k", events[-1].id).over
    morgue.db.run(claims.complete, morgue.claim(run), {}, WEEK_S)
    _, events = morgue.db.run(insights.timeline, morgue.caller, "k", 50, 0)
    assert len(events) == total + 2
    assert morgue.db.run(insights.standing, morgue.tenant_id, "k", events[-1].id).over


def test_a_replay_is_not_metered(morgue: Morgue) -> None:
    morgue.kill("k")
    before = morgue.rows("SELECT kind, sum(usage), sum(requests_total) FROM usage_counters GROUP BY kind")
    morgue.replay("k")
    morgue.replay("k")
    after = morgue.rows("SELECT kind, sum(usage), sum(requests_total) FROM usage_counters GROUP BY kind")
    assert before == after


@pytest.mark.parametrize(
    ("cost_usd", "more_usd"), [(None, 0.0), (0.2, 0.0), (0.5, 0.0), (0.75, 0.25)], ids=str
)
def test_the_second_life_is_charged_only_what_it_cost_above_the_first(
    morgue: Morgue, cost_usd: float | None, more_usd: float
) -> None:
    """What the counters of the agent say is what the audit trail adds up to, to the micro-dollar."""
    govern(morgue)
    run = morgue.kill("k", agent_id=AGENT, spend_usd=0.5)
    assert morgue.counters() == (1, 500_000, {"report": 1})
    morgue.replay("k")
    morgue.fail(morgue.claim(run))
    morgue.replay("k")
    assert morgue.counters() == (1, 500_000, {"report": 1})
    claim = morgue.claim(run)
    result = {} if cost_usd is None else {"cost_usd": cost_usd}
    assert morgue.db.run(claims.complete, claim, result, WEEK_S) is Ending.STORED
    total = 500_000 + round(more_usd * 1_000_000)
    assert morgue.counters() == (1, total, {"report": 1})
    [(audited, overruns)] = morgue.rows(
        "SELECT sum(spend_micro_usd)::bigint, count(*) FILTER (WHERE overrun) FROM audit_outcomes"
    )
    assert (audited, overruns) == (total, int(more_usd > 0))
    activity = morgue.db.run(governance.metrics, morgue.caller, AGENT, "day")
    assert (activity.actions, activity.spend_micro_usd) == (1, total)


def test_a_replayed_run_that_its_agent_may_not_do_any_more_gives_nothing_back(morgue: Morgue) -> None:
    """What its first life has used is used; and the policy is asked at the claim, so the replay is accepted."""
    govern(morgue)
    run = morgue.kill("k", agent_id=AGENT, spend_usd=0.5)
    morgue.db.run(governance.set_policy, morgue.caller, AGENT, PolicyRequest(blocked_tools=["report"]))
    assert morgue.replay("k").due is not None
    assert morgue.db.run(claims.claim, run, "report", LEASE_S, None) is None
    row = morgue.row("k")
    assert (row.state, row.error_code, row.dead_lettered) == ("failed", "policy_blocked", False)
    assert morgue.counters() == (1, 500_000, {"report": 1})


def test_a_batch_replays_what_was_dead_when_it_began_and_nothing_twice(morgue: Morgue, clock: Clock) -> None:
    ids = {key: morgue.kill(key) for key in "abcde"}
    morgue.kill("m", "mail")
    until = morgue.db.run(dead.moment)
    wanted = Wanted(tenant_id=None, job="report")
    clock.advance(1)
    seen: list[str] = []
    while batch := morgue.db.run(dead.replay_batch, wanted, until, 2, "ann"):
        seen += [due.key for due in batch]
        for due in batch:
            morgue.fail(morgue.claim(ids[due.key]))
    assert sorted(seen) == list("abcde")
    assert sorted(morgue.keys()) == list("abcdem")
    replays = morgue.rows("SELECT actor FROM audit_decisions WHERE decision = 'replayed'")
    assert [row.actor for row in replays] == ["ann"] * 5


def test_batches_at_once_share_the_work(morgue: Morgue) -> None:
    for number in range(20):
        morgue.kill(f"k{number}")
    until = morgue.db.run(dead.moment)

    def all_of_it() -> list[int]:
        taken: list[int] = []
        while batch := morgue.db.run(dead.replay_batch, EVERYBODYS, until, 3, "ann"):
            taken += [due.id for due in batch]
        return taken

    taken = [run for part in at_once([all_of_it] * 4) for run in part]
    assert len(taken) == len(set(taken)) == 20


def test_a_batch_discards_with_its_reason(morgue: Morgue) -> None:
    for key in "abc":
        morgue.kill(key)
    until = morgue.db.run(dead.moment)
    counts = [morgue.db.run(dead.discard_batch, EVERYBODYS, until, 2, "ann", "stale") for _ in range(3)]
    assert counts == [2, 1, 0]
    assert morgue.keys() == []
    assert morgue.discard("b").reason == "stale"


def govern(morgue: Morgue) -> None:
    policy = PolicyRequest(max_spend_usd_per_day=10.0, max_actions_per_hour=100)
    morgue.db.run(governance.set_policy, morgue.caller, AGENT, policy)


def test_a_replay_that_an_older_version_left_on_the_row_says_nothing_of_the_next_run(
    morgue: Morgue, clock: Clock
) -> None:
    morgue.kill("k", agent_id=AGENT)
    morgue.replay("k")
    replay = morgue.row("k").concludes_id
    morgue.fail(morgue.claim(morgue.row("k").id))
    clock.advance(WEEK_S + 1)
    spec = PolicyRequest(pricing_rules=[{"tool": "report", "price_usd": 0.5}])  # type: ignore[list-item]
    morgue.db.run(governance.set_policy, morgue.caller, AGENT, spec)
    run = morgue.ask("k", agent_id=AGENT)
    with morgue.db.engine.begin() as connection:
        # Version 0.1.0 takes a key again without a look at this column, which it does not know.
        connection.execute(sa.text("UPDATE runs SET concludes_id = :replay"), {"replay": replay})
    morgue.fail(morgue.claim(run))
    decision = morgue.row("k").decision_id
    assert morgue.rows("SELECT spend_micro_usd FROM audit_outcomes WHERE decision_id = :id", id=decision) == [
        (500_000,)
    ]
    assert [letter.decision_id for letter in morgue.list()] == [decision]
