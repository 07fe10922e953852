"""A deployment of several API processes and workers over one database, of which any may be killed at any moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from support.process_nodes import Process, RedisServer
from support.sdk_parts import answers
from support.sdk_tenants import Tenant, make_tenant
from support.tool_server import ToolServer
from support.worker_fixtures import new_database
from support.worker_system import System, system_over

from onceonly_jobs.config import new_secret
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.testing import Clock

CLI = ("-m", "onceonly_jobs.cli.main")
SECRET = "a shared secret"
SLOTS = 4
"""Calls that the workers carry out at a time."""

# What becomes of the runs, with the transaction that did it: written by Postgres itself, whoever changes them.
WITNESS = """
CREATE TABLE witness (
    id bigserial PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(), agent_id text, run_id bigint,
    decision_id bigint, what text NOT NULL);
GRANT SELECT ON witness TO PUBLIC;
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE before text := CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END;
BEGIN
    INSERT INTO witness (agent_id, run_id, decision_id, what)
    SELECT NEW.agent_id, NEW.id, NEW.decision_id, CASE
        WHEN before IS DISTINCT FROM NEW.state THEN NEW.state
        WHEN before = 'in_progress' AND NEW.lease_until_at > OLD.lease_until_at THEN 'extended'
        ELSE 'touched' END;
    RETURN NULL;
END $$;
CREATE TRIGGER witness AFTER INSERT OR UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION witness();
"""


@dataclass
class Fleet:
    """The processes, a tenant with an API key, and a tool server that all its tools are of."""

    system: System
    clock: Clock
    tenant: Tenant
    tool: ToolServer
    apis: Sequence[Process]
    base_urls: Sequence[str]
    workers: Sequence[Process]
    beat: Process
    http: httpx.Client
    """The first API process, as the tenant sees it."""

    @property
    def processes(self) -> list[Process]:
        return [*self.apis, *self.workers, self.beat]

    def rows(self, query: str, **params: Any) -> list[dict[str, Any]]:
        return self.system.rows(query, tenant_id=self.tenant.id, **params)

    def register(self, name: str, **fields: Any) -> None:
        auth = {"type": "hmac_sha256", "secret": SECRET}
        body = {"name": name, "url": self.tool.url, "scope_id": "global", "auth": auth, **fields}
        self.http.post("/tools", json=body).raise_for_status()

    def policy(self, agent_id: str, **fields: Any) -> None:
        self.http.post(f"/policies/{agent_id}", json=fields).raise_for_status()

    def counters(self, agent_id: str) -> tuple[int, int, dict[str, int]]:
        """Actions of the hour, micro-dollars of the day, calls by tool of the day, as the decisions see them."""
        query = """SELECT hour_actions, day_spend_micro_usd, day_calls FROM agents
            WHERE tenant_id = :tenant_id AND agent_id = :agent_id"""
        [row] = self.rows(query, agent_id=agent_id)
        calls = {tool: count for tool, count in row["day_calls"].items() if count}
        return row["hour_actions"], row["day_spend_micro_usd"], calls

    def decisions(self, agent_id: str) -> list[dict[str, Any]]:
        """The agent's decisions in their order, with what came of them."""
        query = """SELECT d.*, o.outcome, coalesce(o.spend_micro_usd, d.spend_micro_usd) AS booked
            FROM audit_decisions d LEFT JOIN audit_outcomes o ON o.decision_id = d.id
            WHERE d.tenant_id = :tenant_id AND d.agent_id = :agent_id ORDER BY d.id"""
        return self.rows(query, agent_id=agent_id)

    def settle(self) -> None:
        """Wait until nothing is queued or running any more."""
        query = """SELECT count(*) AS open FROM runs
            WHERE tenant_id = :tenant_id AND state IN ('queued', 'in_progress')"""
        self.system.until(lambda: self.rows(query)[0]["open"] == 0, "nothing is under way")

    def serves(self, process: Process) -> bool:
        """Whether a process of ours has started and is there."""
        if process not in self.apis:
            return process.status == "running" and process.is_ready
        origin = self.base_urls[self.apis.index(process)].removesuffix("/v1")
        return answers(f"{origin}/ready")

    def ready(self) -> None:
        """Wait until every process serves."""
        for process in self.processes:
            self.system.until(lambda process=process: self.serves(process), f"{process.name} serves")

    def early_in_the_hour(self) -> None:
        """Move the clock on where the hour is about to end: then no window ends during a test."""
        minute = "SELECT extract(minute FROM onceonly_now())::integer AS minute"
        if self.rows(minute)[0]["minute"] >= 50:
            self.clock.advance(600)


@contextmanager
def fleet(servers: Any, template: str, directory: Path, program: Sequence[str] = CLI) -> Iterator[Fleet]:
    """Two API processes, two workers and a scheduler that serve. program: how Python starts a part."""
    with ExitStack() as stack:
        broker = RedisServer(directory / "redis")
        stack.callback(broker.teardown)
        database_url = stack.enter_context(new_database(servers, template))
        owner_url = servers.database(sa.make_url(database_url).database)
        tool = stack.enter_context(ToolServer())
        env = {
            "ONCEONLY_SECRET_KEY": new_secret(),
            "ONCEONLY_TOOL_ALLOW": "loopback",
            "ONCEONLY_AUDIT_SEAL_S": "0.5",
            "ONCEONLY_TEST_POINTS": str(directory),
        }
        system = stack.enter_context(system_over(database_url, broker.celeryconfig["url"], directory, **env))
        clock = Clock(owner_url)
        _execute(owner_url, WITNESS)
        ports = [free_port() for _ in range(2)]
        apis = [system.started_as("api", *program, "api", "--port", str(port)) for port in ports]
        concurrency = str(SLOTS // 2)
        workers = [
            system.started_as("worker", *program, "worker", "--concurrency", concurrency) for _ in "ab"
        ]
        beat = system.started_as("beat", *program, "beat")
        for process in (*apis, *workers, beat):
            stack.callback(process.teardown)
            process.start()
        tenant = make_tenant(system.db)
        base_urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
        headers = {"Authorization": f"Bearer {tenant.api_key}"}
        http = stack.enter_context(httpx.Client(base_url=base_urls[0], headers=headers, timeout=60))
        running = Fleet(system, clock, tenant, tool, apis, base_urls, workers, beat, http)
        running.ready()
        yield running


def _execute(url: str, statements: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(statements)
