"""A torture from beginning to end: start, ask and break, heal, wait, check."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from onceonly_jobs.config import Settings
from onceonly_jobs.torture import checker, facts, history
from onceonly_jobs.torture.checker import Evidence, Violation
from onceonly_jobs.torture.clients import TOOLS, Assignment, Survivor, opened
from onceonly_jobs.torture.jobs import TICK
from onceonly_jobs.torture.nemesis import Nemesis
from onceonly_jobs.torture.system import CLI, System, running

SPENDERS = 50
BUDGET_USD = 0.15
SCHEDULES = {"torture-each-second": 1, "torture-every-2-s": 2}
QUIET_S = 8.0
"""Longer than any worker is frozen: what it was about to send, it has sent by then."""
STUCK_S = 45.0
"""When the number of unfinished runs has not shrunk for so long, they are stuck."""
CLAIM_S = 30.0
"""How soon after the last fault every worker claims again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do, and for how long. The seed makes the choices of clients and nemesis repeatable."""

    seconds: float
    seed: int
    faults: Sequence[str]
    clients: int = 12
    pause_s: float = 0.15
    """Each client's pause between two operations, on average."""
    least_operations: int = 0
    """It goes on for longer until so many have been answered."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What was done, what was broken, and what came of it."""

    seed: int
    seconds: float
    operations: int = 0
    in_doubt: int = 0
    """operations whose outcome no answer has told"""
    faults: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """faults that could not be caused here, and why"""
    runs: int = 0
    starts: int = 0
    restarted: int = 0
    """starts of a run beyond its first"""
    tool_calls: int = 0
    decisions: int = 0
    ticks: int = 0
    refused_writes: int = 0
    """writes of workers that had lost their claim"""
    healed_s: float = 0.0
    """from the last fault until nothing was left to do"""
    slowest_drain_s: float = 0.0
    """how long the slowest part took to end when it was asked to"""
    duplicates: int = 0
    lost: int = 0
    violations: list[Violation] = field(default_factory=list)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


DUPLICATES = {"one-winner", "one-holder", "one-answer", "called-twice", "idempotency-key", "fencing"}
LOST = {"lost", "stuck", "dead", "ticks", "witnessed", "failed"}


def torture(
    plan: Plan,
    directory: Path,
    *,
    given: Settings | None = None,
    program: Sequence[str] = CLI,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Torture a system and check it. given: the settings of a deployment; else one is started for it.

    program: how Python starts a part. Raises ConfigError where the system does not start.
    """
    report = Report(seed=plan.seed, seconds=plan.seconds)
    say("starting the system")
    with running(directory, given=given, program=program) as system:
        assignment = prepare(system, plan, directory)
        say(f"torturing it for {plan.seconds:.0f} s")
        nemesis = Nemesis(system, plan.seed, plan.faults, say)
        _break(system, assignment, nemesis, plan, directory)
        say("healed; waiting until nothing is left to do")
        found, report.healed_s = recover(system, assignment, directory)
        report.violations += found
        evidence = evidence_of(system, assignment)
    say("checking")
    report.violations += checker.check(evidence)
    _fill(report, evidence, nemesis)
    return report


def evidence_of(system: System, assignment: Assignment) -> Evidence:
    """What clients, witness and database have to say by now."""
    return Evidence(
        ops=history.read_ops(Path(assignment.history)),
        effects=history.read_effects(system.witness_path),
        facts=facts.read(system.database, system.tenant),
    )


def prepare(system: System, plan: Plan, directory: Path) -> Assignment:
    """Make tools, policies and schedules; what the clients have to know."""
    headers = {"Authorization": f"Bearer {system.api_key}"}
    with httpx.Client(base_url=system.base_urls[0], headers=headers, timeout=30, trust_env=False) as http:

        def post(path: str, body: dict[str, Any]) -> None:
            http.post(path, json=body).raise_for_status()

        for tool in TOOLS:
            effect = tool.removeprefix("torture.")
            body: dict[str, Any] = {
                "name": tool,
                "url": f"{system.witness_url}/tool/{tool}",
                "effect": effect,
            }
            body |= {"auth": {"type": "hmac_sha256", "secret": system.tenant}, "timeout_ms": 1500}
            if effect == "reconcilable":
                body["confirm_url"] = f"{system.witness_url}/confirm"
            post("/tools", body)
        for number in range(SPENDERS):
            post(f"/policies/spender-{number}", {"max_spend_usd_per_day": BUDGET_USD})
        for agent in ("switched", "policed", "caller"):
            post(f"/policies/{agent}", {"blocked_tools": []})
        for name, every_s in SCHEDULES.items():
            body = {
                "name": name,
                "every_s": every_s,
                "task": TICK,
                "payload": {"witness": system.witness_url},
            }
            post("/schedules", {**body, "misfire": "catch_up", "catch_up_limit": 1000})
    return Assignment(
        base_urls=system.base_urls,
        api_key=system.api_key,
        witness=system.witness_url,
        seed=plan.seed,
        clients=plan.clients,
        pause_s=plan.pause_s,
        history=str(directory / "history.jsonl"),
        spenders=SPENDERS,
    )


def _break(system: System, assignment: Assignment, nemesis: Nemesis, plan: Plan, directory: Path) -> None:
    """Let the clients ask and the nemesis break, then heal everything."""
    path = directory / "clients.json"
    assignment.write(path)
    argv = [sys.executable, "-m", "onceonly_jobs.torture.clients", str(path)]
    with (directory / "clients.log").open("ab") as log:
        clients = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        nemesis.until(_over(plan, Path(assignment.history)))
        system.heal()
        clients.send_signal(signal.SIGTERM)
        clients.wait(120)
    finally:  # at once where the torture is given up: nobody waits for its answers
        clients.kill()
        clients.wait()
    if clients.returncode != 0:
        words = (directory / "clients.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the clients ended with status {clients.returncode}: {words}")


def _over(plan: Plan, operations: Path) -> Callable[[], bool]:
    """Whether the plan's time is over, and as much done as it wants."""
    end = time.monotonic() + plan.seconds
    return lambda: time.monotonic() >= end and len(history.read_ops(operations)) >= plan.least_operations


def recover(
    system: System, assignment: Assignment, directory: Path, quiet_s: float = QUIET_S
) -> tuple[list[Violation], float]:
    """Wait until everything has ended: what is not well again within its time, and seconds until nothing was left.

    quiet_s: how long after the last fault a worker that was frozen may still send something.
    """
    began = time.monotonic()
    system.until(lambda: all(part.serves() for part in system.parts), "every part serves again")
    found = _end_schedules(system)
    found += _wait_for_runs(system, directory)
    healed_s = round(time.monotonic() - began, 1)
    time.sleep(max(0.0, quiet_s - (time.monotonic() - began)))
    found += asyncio.run(_survive(system, assignment))
    return found + _wait_for_runs(system, directory), healed_s


_OPEN = """SELECT count(*) AS open FROM runs
    WHERE tenant_id = :tenant_id AND owner = 'server' AND state IN ('queued', 'in_progress')"""


def _wait_for_runs(system: System, directory: Path) -> list[Violation]:
    """Until none is unfinished; when their number does not shrink any more, all that is known of them is kept."""
    least, since = sys.maxsize, time.monotonic()
    while open_ := system.rows(_OPEN)[0]["open"]:
        if open_ < least:
            least, since = open_, time.monotonic()
        if time.monotonic() - since > STUCK_S:
            rows = system.rows("SELECT * FROM runs WHERE tenant_id = :tenant_id AND state <> 'completed'")
            path = directory / "stuck.json"
            path.write_text(json.dumps(rows, default=str, indent=1) + "\n" + system.last_words())
            return [Violation("stuck", f"{open_} runs", f"no progress in {STUCK_S:.0f} s, see {path}")]
        system.revive()
        time.sleep(0.2)
    return []


async def _survive(system: System, assignment: Assignment) -> list[Violation]:
    """Settle what is unknown, and see every worker claim."""
    async with opened(assignment) as world:
        survivor = Survivor(world, 0)
        await survivor.act()
        # 402 is an answer too: what the agent may spend in a day can be spent by then.
        failed = [op for op in await survivor.ask_everything() if not op.ok and op.status != 402]
        deadline, probes = time.monotonic() + CLAIM_S, 0
        wanted = {part.pid for part in system.of_kind("worker")}
        claimed: set[int] = set()
        while wanted - claimed and time.monotonic() < deadline:
            keys = [f"probe:{number}" for number in range(probes, probes + 4)]
            probes += len(keys)
            await asyncio.gather(*(survivor.probe(key) for key in keys))
            effects = history.read_effects(system.witness_path)
            claimed = {effect.data["worker"] for effect in effects if effect.key.startswith("probe:")}
    silent = [part.name for part in system.of_kind("worker") if part.pid not in claimed]
    return [
        *(Violation("liveness", op.kind, f"op {op.n}: {op.status} {op.answer}") for op in failed),
        *(Violation("liveness", name, f"has claimed nothing in {CLAIM_S:.0f} s") for name in silent),
    ]


_BEHIND = """SELECT count(*) AS n FROM schedules
    WHERE tenant_id = :tenant_id AND paused_at IS NULL AND next_tick_at <= onceonly_now()"""


def _end_schedules(system: System) -> list[Violation]:
    """Pause the schedules once all their ticks up to now are served."""
    deadline = time.monotonic() + CLAIM_S
    while system.rows(_BEHIND)[0]["n"] and time.monotonic() < deadline:
        time.sleep(0.05)
    behind = system.rows(_BEHIND)[0]["n"]
    headers = {"Authorization": f"Bearer {system.api_key}"}
    with httpx.Client(base_url=system.base_urls[0], headers=headers, timeout=30, trust_env=False) as http:
        for name in SCHEDULES:
            http.post(f"/schedules/{name}/pause").raise_for_status()
    return [Violation("ticks", "schedules", f"{behind} are behind {CLAIM_S:.0f} s after")] if behind else []


def _fill(report: Report, evidence: Evidence, nemesis: Nemesis) -> None:
    known = evidence.facts
    report.operations = len(evidence.ops)
    report.in_doubt = sum(op.outcome is history.Outcome.UNKNOWN for op in evidence.ops)
    report.faults = {name: nemesis.counts[name] for name in sorted(nemesis.counts)}
    report.skipped = nemesis.skipped
    report.runs = sum(row["owner"] == "server" for row in known.runs)
    report.starts = sum(row["attempt"] > 0 for row in known.starts)
    report.restarted = sum(row["attempt"] > 1 for row in known.starts)
    report.tool_calls = sum(effect.kind == "call" for effect in evidence.effects)
    report.decisions = len(known.decisions)
    report.ticks = len(known.ticks)
    report.refused_writes = known.refused_writes
    report.slowest_drain_s = round(max(nemesis.drain_s, default=0.0), 1)
    report.duplicates = sum(violation.check in DUPLICATES for violation in report.violations)
    report.lost = sum(violation.check in LOST for violation in report.violations)
