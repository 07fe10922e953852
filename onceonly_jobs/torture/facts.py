"""What the database says after a torture, as plain rows for the checker."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.services import audit
from onceonly_jobs.store.database import Database

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Rows of one tenant. Times are Unix seconds by the database's clock."""

    runs: list[Row] = field(default_factory=list)
    starts: list[Row] = field(default_factory=list)
    """Claims by workers, and leases taken by callers (attempt 0), in order."""
    queued: int = 0
    """How often a key was taken for a run by the server."""
    calls: int = 0
    """How often a tool call was let through to be carried out."""
    decisions: list[Row] = field(default_factory=list)
    """Each with what came of it, if anything did."""
    agents: list[Row] = field(default_factory=list)
    changes: list[Row] = field(default_factory=list)
    """What was done to policies and switches, in order."""
    usage: dict[str, Row] = field(default_factory=dict)
    duplicates: int = 0
    """Refused check-locks, as the feed has them."""
    ticks: list[Row] = field(default_factory=list)
    schedules: list[Row] = field(default_factory=list)
    refused_writes: int = 0
    audit_findings: list[str] = field(default_factory=list)
    clock_ahead_s: float = 0.0
    """How far the database's clock is ahead of the clients'."""


_QUERIES = {
    "runs": """SELECT id, key, owner, state, version, fencing_token, attempt, job, agent_id, tool, effect, error_code,
        error_message, result, decision_id, dead_lettered, schedule, lease_id FROM runs
        WHERE tenant_id = :tenant_id ORDER BY id""",
    "starts": """SELECT data->>'key' AS key, (data->>'attempt')::int AS attempt, agent_id, tool,
        extract(epoch FROM at)::double precision AS at FROM run_events
        WHERE tenant_id = :tenant_id AND type = 'run_started' ORDER BY id""",
    "decisions": """SELECT d.id, d.actor, d.agent_id, d.tool, d.run_key, d.decision, d.policy_code,
        coalesce(o.spend_micro_usd, d.spend_micro_usd) AS booked, o.outcome, (d.at AT TIME ZONE 'UTC')::date AS day,
        extract(epoch FROM o.at)::double precision AS concluded_at
        FROM audit_decisions d LEFT JOIN audit_outcomes o ON o.decision_id = d.id
        WHERE d.tenant_id = :tenant_id ORDER BY d.id""",
    "agents": """SELECT agent_id, policy, day_on, day_spend_micro_usd FROM agents
        WHERE tenant_id = :tenant_id ORDER BY agent_id""",
    "changes": """SELECT agent_id, change, policy, extract(epoch FROM at)::double precision AS at FROM policy_versions
        WHERE tenant_id = :tenant_id ORDER BY id""",
    "ticks": """SELECT name, key, state, extract(epoch FROM tick_at)::double precision AS tick_at FROM schedule_ticks
        WHERE tenant_id = :tenant_id ORDER BY name, tick_at""",
    "schedules": """SELECT name, every_s, extract(epoch FROM paused_at)::double precision AS paused_at FROM schedules
        WHERE tenant_id = :tenant_id ORDER BY name""",
}

_USAGE = """SELECT kind, sum(usage)::bigint AS usage, sum(requests_total)::bigint AS requests,
    sum(charged_total)::bigint AS charged, sum(polling_total)::bigint AS polling
    FROM usage_counters WHERE tenant_id = :tenant_id GROUP BY kind"""

_EVENTS = """SELECT type, count(*) AS n FROM run_events WHERE tenant_id = :tenant_id GROUP BY type"""

_DUPLICATES = """SELECT count(*) AS n FROM feed_events
    WHERE tenant_id = :tenant_id AND kind = 'make' AND type = 'duplicate'"""


def read(database: Database, tenant_id: str) -> Facts:
    """Everything the checker asks for."""
    with database.engine.connect() as connection:

        def rows(query: str) -> list[Row]:
            found = connection.execute(sa.text(query), {"tenant_id": tenant_id})
            return [dict(row) for row in found.mappings()]

        tables = {name: rows(query) for name, query in _QUERIES.items()}
        events = {row["type"]: row["n"] for row in rows(_EVENTS)}
        [clock] = rows("SELECT extract(epoch FROM onceonly_now())::double precision AS now")
        ahead_s = clock["now"] - time.time()
        usage = {row.pop("kind"): row for row in rows(_USAGE)}
        [duplicates] = rows(_DUPLICATES)
    return Facts(
        **tables,
        queued=events.get("run_queued", 0),
        calls=events.get("tool_call", 0),
        usage=usage,
        duplicates=duplicates["n"],
        refused_writes=events.get("stale_write_refused", 0),
        audit_findings=[str(found) for found in audit.verify(database)],
        clock_ahead_s=ahead_s,
    )
