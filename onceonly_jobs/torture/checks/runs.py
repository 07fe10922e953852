"""Runs by the server, those of schedules included: each started with a token of its own, and each ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onceonly_jobs.torture.checks.evidence import (
    Evidence,
    Violation,
    by,
    by_key,
)
from onceonly_jobs.torture.jobs import NAMES, POISON

EXPECTED_FAILURES = {"refused_by_handler", "policy_blocked"}


def accepted_results_were_made(evidence: Evidence) -> Iterator[Violation]:
    """A completed run's result is that of its latest grant, and of a start that the witness has seen."""
    starts = {effect.seq: effect for effect in evidence.effects if effect.kind == "start"}
    for row in evidence.facts.runs:
        if row["state"] != "completed" or row["job"] not in NAMES:
            continue
        result = row["result"] or {}
        start = starts.get(int(result.get("seq") or 0))
        if start is None or start.key != row["key"] or start.data["token"] != result.get("token"):
            yield Violation("witnessed", row["key"], f"result {result} is of no start that was witnessed")
        elif result["token"] != row["fencing_token"]:
            text = f"accepted from token {result['token']} when {row['fencing_token']} had been granted"
            yield Violation("fencing", row["key"], text)


def fencing_tokens_grow(evidence: Evidence) -> Iterator[Violation]:
    """Each start has a token of its own, and of a run's starts the later has the larger."""
    latest = {row["key"]: row["fencing_token"] for row in evidence.facts.runs}
    starts = by_key(effect for effect in evidence.effects if effect.kind == "start")
    for key, effects in starts.items():
        tokens = Counter(effect.data["token"] for effect in effects)
        for token, times in tokens.items():
            if times > 1:
                yield Violation("fencing", key, f"{times} starts with token {token}")
        if max(tokens) > latest.get(key, 0):
            yield Violation(
                "fencing", key, f"token {max(tokens)} was granted, and {latest.get(key)} is stored"
            )
        for generation in {effect.data["idempotency_key"] for effect in effects}:
            of_it = [e.data for e in effects if e.data["idempotency_key"] == generation]
            in_order = [data["token"] for data in sorted(of_it, key=lambda data: data["attempt"])]
            if in_order != sorted(in_order):
                yield Violation("fencing", key, f"tokens in the order of attempts: {in_order}")


def everything_ends(evidence: Evidence) -> Iterator[Violation]:
    """Each acknowledged run is there and has ended, in a way that its job accounts for."""
    stored = {row["key"]: row for row in evidence.facts.runs}
    for key in {op.key for op in evidence.ops_of("run") if op.ok}:
        if key not in stored:
            yield Violation("lost", key, "acknowledged, and not in the database")
    for row in evidence.facts.runs:
        if row["owner"] == "server" and row["state"] in ("queued", "in_progress", "unknown"):
            yield Violation("stuck", row["key"], f"{row['state']}, attempt {row['attempt']}")
        elif row["job"] == POISON and row["state"] != "cancelled":
            if not row["dead_lettered"]:
                yield Violation("poison", row["key"], f"{row['state']} after {row['attempt']} starts")
        elif row["dead_lettered"] and row["error_code"] not in EXPECTED_FAILURES:
            yield Violation("dead", row["key"], f"{row['error_code']}: {row['error_message']}")
        elif row["state"] == "failed" and row["job"] in NAMES and row["error_code"] not in EXPECTED_FAILURES:
            yield Violation("failed", row["key"], f"{row['error_code']}: {row['error_message']}")


def each_tick_has_its_run(evidence: Evidence) -> Iterator[Violation]:
    """From a schedule's first tick to its pause: one tick per interval, each fired, each with one run."""
    runs = {row["key"] for row in evidence.facts.runs}
    decisions = Counter(row["run_key"] for row in evidence.facts.decisions if row["decision"] == "executed")
    ticks = by(evidence.facts.ticks, "name")
    for schedule in evidence.facts.schedules:
        found, every_s = ticks.get(schedule["name"], []), schedule["every_s"]
        times = [round(tick["tick_at"]) for tick in found]
        expected = list(range(times[0], times[-1] + 1, every_s)) if times else []
        if times != expected:
            missing = sorted(set(expected) - set(times))
            yield Violation("ticks", schedule["name"], f"{len(missing)} missing, first {missing[:3]}")
        if schedule["paused_at"] is not None and (
            not times or times[-1] < schedule["paused_at"] - every_s - 2
        ):
            yield Violation(
                "ticks", schedule["name"], f"the last is {times[-1:]}, paused {schedule['paused_at']}"
            )
        for tick in found:
            if tick["state"] != "fired" or tick["key"] not in runs or decisions[tick["key"]] != 1:
                text = (
                    f"{tick['state']}, has a run: {tick['key'] in runs}, decisions: {decisions[tick['key']]}"
                )
                yield Violation("ticks", tick["key"], text)
