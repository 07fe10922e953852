"""Decisions: as service calls in one process, beside check-lock measured in the same way.

Runs that an agent's policy judges, tool calls, and check-locks are asked for as the API's routes ask for them:
concurrent ones together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import uvloop

from benchmarks.cpu import metered, this_process
from benchmarks.figures import Case, Measured
from benchmarks.servers import Servers
from onceonly_jobs.api.gathering import Gatherer
from onceonly_jobs.api.state import lanes, named
from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import account, calls, claims, governance, locks, runs
from onceonly_jobs.services.calls import FUNCTION, Asked, Wanted
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import Judged
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.governance import NEXT_DECISION
from onceonly_jobs.store.locks import Check, LockAnswer
from onceonly_jobs.store.migrations import upgrade
from onceonly_jobs.store.rowset import to_rows
from onceonly_jobs.store.runs import Taken, Taking
from onceonly_jobs.store.statement import Operation, Statement, autocommit

CALLERS = 32
POOL = 10
"""Connections, as an API process has them by default."""
TOOL = "bench_tool"
JOB = JobSpec(name=TOOL, queue="bench")
COST_USD = 0.001
PLENTY = 10_000_000
HOT_LIMIT = 500
"""So many calls fit into the hot agent's limit, and half of one more."""

_BARE = sa.text(f"""
WITH q AS MATERIALIZED (
    SELECT q.*, '{TOOL}' AS tool, now() AS at, {NEXT_DECISION} AS decision_id
    FROM json_to_recordset(CAST(:rows AS json)) AS q (n integer, tenant_id text, key text, agent_id text)
), run AS (
    INSERT INTO runs (tenant_id, key, owner, state, run_id, agent_id, metadata, lease_id, lease_ttl_s, job, tool, queue,
                      due_at, publish_at, first_seen_at, decision_id, reserved_micro_usd, reserved_at)
    SELECT tenant_id, key, 'server', 'queued', key, agent_id, json_build_object('agent_id', agent_id),
           'lease_' || md5(key), 600, tool, tool, 'bench', at, at, at, decision_id, 1000, at FROM q
), decision AS (
    INSERT INTO audit_decisions (id, tenant_id, actor, agent_id, tool, run_key, allowed, decision, policy_reason,
                                 policy_code, risk_level, spend_micro_usd, policy_version)
    SELECT decision_id, tenant_id, 'key', agent_id, tool, key, true, 'executed', 'within_budget', 'ok', 'low', 1000, 1
    FROM q
), head AS (
    INSERT INTO timelines (tenant_id, run_id, last_at, last_type, last_status)
    SELECT tenant_id, key, at, 'run_queued', 'queued' FROM q
), event AS (
    INSERT INTO run_events (tenant_id, run_id, type, status, tool, agent_id, data)
    SELECT tenant_id, key, 'run_queued', 'queued', tool, agent_id, json_build_object('key', key) FROM q
), fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, tool)
    SELECT tenant_id, 'acquired', 'ai', key, 'queued', agent_id, tool FROM q
)
UPDATE agents a SET day_spend_micro_usd = a.day_spend_micro_usd + 1000
FROM q WHERE a.tenant_id = q.tenant_id AND a.agent_id = q.agent_id
RETURNING q.n
""")


@autocommit
def write_bare(rows: list[dict[str, str]]) -> Operation[list[Code]]:
    """The rows that as many decisions leave behind, of agents that differ."""
    done = yield from Statement(
        "bench.bare", _BARE, lambda result: len(list(result.mappings())), {"rows": to_rows(rows)}
    )
    return [Code.OK] * done


Decide = Callable[[int, int], Awaitable[Code]]
"""One decision: the caller's number and the call's."""


@dataclass(frozen=True)
class Bench:
    """A database of its own, in which nothing carries the allowed calls out."""

    database: Database
    caller: Caller
    prefix: str
    governed: Gatherer[Taking, Taken | None]
    calls: Gatherer[Asked, Judged | None]
    locks: Gatherer[Check, LockAnswer | None]
    rows: Gatherer[dict[str, str], Code]

    @classmethod
    def of(cls, database: Database, caller: Caller, prefix: str) -> Bench:
        return cls(
            database,
            caller,
            prefix,
            Gatherer(lanes(database, runs.take_many), named),
            Gatherer(lanes(database, calls.judge_many), lambda asked: asked.key),
            Gatherer(lanes(database, locks.check_many), named),
            Gatherer(lanes(database, write_bare), lambda row: row["key"]),
        )

    async def decide(self, agent: str, number: int) -> Code:
        """As the route of POST /ai/run by key asks for it: again, where it depends on what others are told."""
        metadata = {"agent_id": agent, "spend_usd": COST_USD}
        key = f"{self.prefix}:{agent}:{number}"
        taking = runs.job_taking(
            self.caller, JOB, key=key, ttl_s=600, metadata=metadata, publish_grace_s=2, vouched=True
        )
        while (taken := await self.governed.ask(taking)) is None:
            pass
        return Code.OK if taken.outcome == "acquired" else Code(taken.run.error_message or "")

    async def judge(self, agent: str, number: int) -> Code:
        """As the route of POST /ai/run by tool asks for it."""
        wanted = Wanted(
            agent_id=agent,
            tool=TOOL,
            args={"n": number, "round": self.prefix},
            spend_usd=COST_USD,
            queue="bench",
            publish_grace_s=2,
        )
        asked = calls.asked(self.caller, wanted)
        while (judged := await self.calls.ask(asked)) is None:
            pass
        return judged.code

    async def write(self, agent: str, number: int) -> Code:
        """What an allowed decision leaves behind, without any rule."""
        row = {"tenant_id": self.caller.tenant_id, "key": f"{self.prefix}:bare:{number}", "agent_id": agent}
        return await self.rows.ask(row)

    async def lock(self, number: int) -> Code:
        """As the route of POST /check-lock asks for it."""
        request = CheckLockRequest(key=f"{self.prefix}:{number}", ttl=3600)
        answer = await self.locks.ask(locks.wanted(self.caller, request, None, vouched=True))
        return Code.OK if answer and answer.status == "locked" else Code.IDEMPOTENCY

    async def permit(self, agent: str, spend_usd: float = 1e6) -> None:
        """A policy with a list of tools and all three limits."""
        policy = PolicyRequest(
            allowed_tools=[TOOL],
            max_actions_per_hour=PLENTY,
            max_spend_usd_per_day=spend_usd,
            max_calls_per_tool={TOOL: PLENTY},
        )
        await self.database.arun(governance.set_policy, self.caller, agent, policy)


class Prepared:
    """The database for all rounds."""

    def __init__(self, servers: Servers) -> None:
        self.url = sqlalchemy_url(servers.database("governance"))
        self._servers = servers
        upgrade(self.url)
        database = Database(self.url, pool_size=1)
        database.run(account.ensure_tenant, "bench", Plan.AGENCY)
        key = database.run(account.create_key, "bench").api_key
        self.caller = database.run(account.authenticate, key)
        spec = JobSpec(name=FUNCTION + TOOL, queue="bench", effect="idempotent", time_limit_s=60)
        database.run(claims.announce, [spec])
        database.close()

    def measure(self, prefix: str, seconds: float) -> Measured:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._measure(prefix, seconds))

    async def _measure(self, prefix: str, seconds: float) -> Measured:
        bench = Bench.of(Database(self.url, pool_size=POOL), self.caller, prefix)
        try:
            agents = [f"{prefix}-agent-{n}" for n in range(CALLERS)]
            for agent in [*agents, f"{prefix}-hot"]:
                await bench.permit(agent)
            await bench.permit(f"{prefix}-limited", (HOT_LIMIT + 0.5) * COST_USD)
            await _rate(lambda _, n: bench.lock(-n - 1), 0.3)
            cases: dict[str, Decide] = {
                "check-lock": lambda _, n: bench.lock(n),
                "decision, an agent each": lambda who, n: bench.decide(agents[who], n),
                "decision, one hot agent": lambda _, n: bench.decide(f"{prefix}-hot", n),
                "tool call judged, an agent each": lambda who, n: bench.judge(agents[who], n),
                "the rows of a decision, written bare": lambda who, n: bench.write(agents[who], n),
            }
            measured = {f"service: {name}": await self._metered(ask, seconds) for name, ask in cases.items()}
            limited = await self._limited(bench, f"{prefix}-limited")
            return measured | {"service: one hot agent at its limit": limited}
        finally:
            await bench.database.aclose()

    async def _metered(self, decide: Decide, seconds: float) -> Case:
        meter = metered(self._servers, this_process)
        case = await _rate(decide, seconds)
        return case | meter.each_us(round(case["per_second"] * seconds))

    async def _limited(self, bench: Bench, agent: str) -> Case:
        """Twice as many calls as fit. Raises RuntimeError unless what was allowed is the limit to the micro-dollar."""
        numbers = iter(range(2 * HOT_LIMIT))
        codes: list[Code] = []

        async def ask() -> None:
            for number in numbers:
                codes.append(await bench.decide(agent, number))

        started = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(CALLERS)))
        seconds = time.perf_counter() - started
        allowed = codes.count(Code.OK)
        spent = await _spent(bench.database, agent)
        refused = codes.count(Code.DAILY_SPEND)
        if (allowed, refused, spent) != (HOT_LIMIT, HOT_LIMIT, round(HOT_LIMIT * COST_USD * 1e6)):
            raise RuntimeError(
                f"{allowed} calls were allowed, {refused} refused, and {spent} micro-dollars kept"
            )
        return {"per_second": len(codes) / seconds, "allowed": allowed, "spent_micro_usd": spent}


async def _spent(database: Database, agent: str) -> int:
    """What the trail says that the agent was allowed to spend, and its window too."""
    query = (
        "SELECT (SELECT sum(spend_micro_usd) FROM audit_decisions WHERE agent_id = %(agent)s AND allowed), "
        "(SELECT day_spend_micro_usd FROM agents WHERE agent_id = %(agent)s)"
    )
    async with database.async_engine.connect() as connection:
        row: Any = (await connection.exec_driver_sql(query, {"agent": agent})).one()
    return int(row[0]) if row[0] == row[1] else -1


async def _rate(decide: Decide, seconds: float) -> Case:
    """How many a second, by so many callers at once. Raises RuntimeError where one is not allowed."""
    number, taken = 0, []
    started = time.perf_counter()

    async def ask(who: int) -> None:
        nonlocal number
        while (asked := time.perf_counter()) - started < seconds:
            number += 1
            code = await decide(who, number)
            if code is not Code.OK:
                raise RuntimeError(f"a call was not allowed: {code}")
            taken.append(time.perf_counter() - asked)

    await asyncio.gather(*(ask(who) for who in range(CALLERS)))
    elapsed = time.perf_counter() - started
    taken.sort()
    return {"per_second": len(taken) / elapsed, "p99_ms": taken[int(len(taken) * 0.99)] * 1000}
