"""Decisions and their trail, budgets, the kill switch and policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.services.calls import call_key
from onceonly_jobs.torture.checks.evidence import (
    SLACK_S,
    Evidence,
    Violation,
    acquired,
    by,
    by_key,
)
from onceonly_jobs.torture.facts import Row
from onceonly_jobs.torture.history import Op
from onceonly_jobs.torture.jobs import GOVERNED


def every_decision_is_recorded_once(evidence: Evidence) -> Iterator[Violation]:
    """Each decision that a caller was told of has its audit row, and there are no more than were asked for."""
    rows = by(evidence.facts.decisions, "run_key")
    for ops in by_key(evidence.ops_of("tool")).values():
        sent = ops[0].sent
        run_key = call_key(sent["agent_id"], sent["tool"], args_hash(sent["args"]))
        # A run that was stopped by the switch leaves a row of its own, which no caller has asked for.
        kinds = Counter(row["decision"] for row in rows.get(run_key, []) if row["actor"] is not None)
        told = Counter(op.answer["decision"] for op in ops if op.ok and op.answer.get("ok"))
        answered = sum(op.status is not None and op.status < 500 for op in ops)
        in_doubt = sum(op.tries - (op.status is not None and op.status < 500) for op in ops)
        for decision, times in told.items():
            if kinds[decision] < times:
                yield Violation("audit", ops[0].key, f"{times} told {decision!r}, {kinds[decision]} recorded")
        if not answered <= kinds.total() <= answered + in_doubt:
            text = f"{answered} answered, {in_doubt} in doubt, {kinds.total()} recorded"
            yield Violation("audit", ops[0].key, text)
    for key, ops in by_key(evidence.ops_of("run")).items():
        executed = sum(
            row["decision"] == "executed" and row["actor"] is not None for row in rows.get(key, [])
        )
        won = len(acquired(ops))
        in_doubt = sum(op.tries - op.ok for op in ops)
        if not won <= executed <= won + in_doubt:
            yield Violation("audit", key, f"acquired {won} times, {in_doubt} in doubt, {executed} recorded")


def every_decision_has_its_outcome(evidence: Evidence) -> Iterator[Violation]:
    for row in evidence.facts.decisions:
        if row["decision"] == "executed" and row["outcome"] is None:
            yield Violation("audit", str(row["run_key"]), f"decision {row['id']} has no outcome")


def the_trail_is_whole(evidence: Evidence) -> Iterator[Violation]:
    for found in evidence.facts.audit_findings:
        yield Violation("audit", "seals", found)


def budgets_hold(evidence: Evidence) -> Iterator[Violation]:
    """No agent has spent more than its limit, and its counter is the sum of what its decisions were booked with."""
    decisions = by(evidence.facts.decisions, "agent_id")
    for agent in evidence.facts.agents:
        rows = [row for row in decisions.get(agent["agent_id"], []) if row["decision"] == "executed"]
        if any(row["day"] != agent["day_on"] for row in rows):
            continue  # midnight was in between: the counter is only of the second day
        booked, counted = sum(row["booked"] for row in rows), agent["day_spend_micro_usd"]
        limit = (agent["policy"] or {}).get("max_spend_usd_per_day")
        if limit is not None and max(booked, counted) > limit * 1_000_000:
            text = f"spent {booked} of {limit * 1_000_000:.0f} micro-dollars, counted {counted}"
            yield Violation("budget", agent["agent_id"], text)
        if booked != counted:
            yield Violation("budget", agent["agent_id"], f"decisions say {booked}, the counter {counted}")


def nothing_starts_behind_a_switch(evidence: Evidence) -> Iterator[Violation]:
    """From the answer of a kill switch or of a policy that forbids it, no run of that agent is started."""
    starts = by((row for row in evidence.facts.starts if row["attempt"]), "agent_id")
    for agent, since, until in [*_disabled(evidence), *_forbidden(evidence)]:
        for row in starts.get(agent, []):
            if since < row["at"] < until:
                text = f"started {row['at'] - since:.2f} s after {agent} was stopped"
                yield Violation("kill-switch", row["key"], text)


Window = tuple[str, float, float]


def _disabled(evidence: Evidence) -> Iterator[Window]:
    for op in evidence.ops_of("disable"):
        yield from _window(evidence, op, lambda change: bool(change["change"] == "enabled"))


def _forbidden(evidence: Evidence) -> Iterator[Window]:
    def permits(change: Row) -> bool:
        return change["policy"] is not None and GOVERNED not in change["policy"].get("blocked_tools", [])

    for op in evidence.ops_of("forbid"):
        yield from _window(evidence, op, permits)


def _window(evidence: Evidence, op: Op, lifts: Callable[[Row], bool]) -> Iterator[Window]:
    """From the answer until the next change that lifts it, by the database's clock."""
    if not op.ok or op.tries > 1:
        return
    ahead_s = evidence.facts.clock_ahead_s
    later = [
        change["at"]
        for change in evidence.facts.changes
        if change["agent_id"] == op.key and change["at"] > op.invoked_at + ahead_s and lifts(change)
    ]
    yield op.key, op.ended_at + ahead_s + SLACK_S, min(later, default=float("inf"))
