"""RESULTS.md: what was measured, on what, with which settings, and which goals were met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Rounds, Spread
from benchmarks.goals import FULL, GOALS, REACH, Goal

COLUMNS = {
    "per_second": "a second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "after_answer_p50_ms": "p50 ms after the answer",
    "rss_mib": "RSS MiB",
    "pss_mib": "PSS MiB",
    "python_us": "CPU: Python µs",
    "postgres_us": "PostgreSQL µs",
    "redis_us": "Redis µs",
    "worker_us": "worker µs",
    "load_us": "load generator µs",
    "cores_busy": "cores busy",
}

SECTIONS = {
    "http": "Over HTTP",
    "enqueue": "One job per call",
    "end to end": "End to end",
    "to start": "From the call to the handler's start, idle system",
    "to result": "From the call to the result, idle system",
    "service": "Governance, as service calls in one process",
    "processes": "One and two processes",
    "memory": "Memory",
    "scale": "Few and many stored keys and runs",
    "soak": "Memory over many runs",
}

EXPLAINED = {
    "http": "32 connections that are kept alive, one API process. Every answer is checked; afterwards exactly what "
    "was acknowledged is found in the database.",
    "enqueue": "One producer process. The peers' producers, and ours with one caller, call one after the other and "
    "wait for each answer.",
    "end to end": "Jobs that do nothing, on one worker node, from a full queue and a worker that stands still until "
    "every job has run and its result is stored, where the queue stores any. Each job adds a line to a file; each has "
    "to be there exactly once. Of ours, each run also has its decision and outcome in the audit trail.",
    "to start": "The handler's clock less the caller's, which is the same clock. The call itself is part of it.",
    "to result": "`run_and_wait` of our client; `.get()` and its like elsewhere.",
    "service": "32 callers, 10 connections. A decision is the policy with its list of tools, three limits, the "
    "reservation, the run and the audit row. At the limit, what was allowed must sum up to it exactly.",
    "processes": "Load generator, API, worker, PostgreSQL and Redis share the machine's cores: once they are all "
    "busy, a second process adds nothing. Of two API processes each gathers half as many requests into a statement, so "
    "that PostgreSQL has more of them.",
    "memory": "At the end of the round's load.",
    "scale": "Each size has a database of its own on the same server, filled beforehand with copies of a real run, its "
    "events, feed and sealed audit rows. Queries go through the API.",
    "soak": "The median of ten readings, one after each tenth of the runs.",
}

BASES = {
    "http": "http: floor",
    "enqueue": "enqueue: Celery on Redis",
    "end to end": "end to end: Celery on Redis",
    "service": "service: check-lock",
}


@dataclass(frozen=True)
class Setting:
    """What the figures are worth nothing without."""

    date: str
    command: str
    took_s: float
    rounds: int
    machine: Mapping[str, str]
    servers: Mapping[str, str]
    settings: Mapping[str, str]
    peers: Sequence[tuple[str, str, str, str]]
    """Label, version, settings of each, and whether what it has accepted outlives a loss of power."""
    failures: Mapping[str, str]
    """Why what was not measured was not."""


def results(rounds: Rounds, setting: Setting) -> str:
    parts = [
        "# Results\n",
        "Written by `python -m benchmarks`; nothing here is edited by hand. Ratios are of one round to itself, so "
        "that what slows the machine for a while is not in them; given are the median of the rounds and their range.\n",
        goals(rounds),
        in_the_way(rounds),
        *(section(rounds, name) for name in SECTIONS),
        circumstances(setting),
    ]
    return "\n".join(part for part in parts if part)


def goals(rounds: Rounds) -> str:
    lines = ["## Goals\n", "| goal | wanted | measured | range | met |", "|---|---|--:|--:|---|"]
    usual = [(goal, "**no**") for goal in GOALS]
    beyond = [(goal, "no (beyond the goal)") for goal in REACH]
    full = [(goal, "**no**") for goal in FULL if goal.figure(rounds) is not None]
    alone = all(goal.figure(rounds) is None for goal in GOALS)
    rows = full if alone else [*usual, *full, *beyond]
    for goal, no in rows:
        lines.append(_goal(goal, rounds, no))
    return "\n".join(lines) + "\n"


def _goal(goal: Goal, rounds: Rounds, no: str) -> str:
    spread = goal.figure(rounds)
    if spread is None:
        return f"| {goal.what} | {goal.wanted} | not measured | | |"
    met = "yes" if goal.met(rounds) else no
    shown = f"{number(spread.median)}{goal.unit}"
    return f"| {goal.what} | {goal.wanted} | {shown} | {extent(spread)} | {met} |"


def in_the_way(rounds: Rounds) -> str:
    """Of each goal that was not met, where the time goes."""
    missed = [goal for goal in (*GOALS, *FULL, *REACH) if goal.met(rounds) is False]
    if not missed:
        return ""
    lines = [
        "## What stands in the way\n",
        "Processor time is of the process itself, in microseconds for each request or job: the columns of the tables "
        "below.\n",
    ]
    lines += [f"**{goal.what}.** {goal.why(rounds) if goal.why else 'Not looked into.'}\n" for goal in missed]
    return "\n".join(lines)


def section(rounds: Rounds, name: str) -> str:
    cases = [case for case in rounds.names() if case.startswith(f"{name}: ")]
    if not cases:
        return ""
    columns = [key for key in COLUMNS if any(rounds.values(case, key) for case in cases)]
    base = BASES.get(name, "")
    head = [
        "case",
        *(COLUMNS[key] for key in columns),
        *([f"beside {_short(base)}", "range"] if base else []),
    ]
    lines = [
        f"## {SECTIONS[name]}\n",
        EXPLAINED[name] + "\n",
        row(head),
        row(["---", *["--:"] * (len(head) - 1)]),
    ]
    for case in cases:
        spreads = [rounds.spread(case, key) for key in columns]
        cells = [_short(case), *("" if spread is None else number(spread.median) for spread in spreads)]
        ratio = rounds.ratio(case, base)
        if base:
            cells += ["", ""] if ratio is None else [number(ratio.median), extent(ratio)]
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def circumstances(setting: Setting) -> str:
    lines = ["## How\n", f"`{setting.command}`, {setting.date}, took {setting.took_s / 60:.1f} minutes.\n"]
    lines += _listed({"rounds": str(setting.rounds)} | dict(setting.machine) | dict(setting.servers))
    lines += [
        "",
        "PostgreSQL's settings: " + ", ".join(f"{k} = {v}" for k, v in setting.settings.items()) + ".",
    ]
    lines += [
        "Redis keeps nothing on disk, as `onceonly-jobs up` runs it: what is on Redis alone is lost with it.",
        "",
        "Ours: every default, so durable commits, audit trail and fencing are on; one API process with 18 connections; "
        "one worker of 2 processes; one scheduler.",
        "",
    ]
    if setting.peers:
        lines += [
            "| peer | version | settings | durable once accepted |",
            "|---|---|---|---|",
            *(row(peer) for peer in setting.peers),
            "",
        ]
    if setting.failures:
        lines += [
            "Not measured:\n",
            *(f"- {what}: {_one_line(why)}" for what, why in setting.failures.items()),
            "",
        ]
    return "\n".join(lines)


def _listed(facts: Mapping[str, str]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items()]


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[0]} ... {lines[-1]}"[:300] if len(lines) > 1 else text.strip()[:300]


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """With as many digits as mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def extent(spread: Spread) -> str:
    return f"{number(spread.low)} to {number(spread.high)}"


def _short(case: str) -> str:
    return case.partition(": ")[2]
