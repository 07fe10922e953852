"""Reading the audit trail: what was decided, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from onceonly_jobs.store.statement import Statement, many


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A decision and its outcome; the outcome is None while the run goes on."""

    decision_id: int
    at: datetime
    actor: str | None
    agent_id: str | None
    tool: str
    allowed: bool
    decision: str
    policy_reason: str
    risk_level: str
    outcome: str | None
    error_code: str | None
    latency_ms: int | None


_OF_RUN = sa.text("""
SELECT d.id AS decision_id, d.at, d.actor, d.agent_id, d.tool, d.allowed, d.decision, d.policy_reason,
       d.risk_level, o.outcome, o.error_code, o.latency_ms
FROM audit_decisions d LEFT JOIN audit_outcomes o ON o.decision_id = d.id
WHERE d.tenant_id = :tenant_id AND d.run_key = :key
ORDER BY d.id DESC
""")


def of_run(tenant_id: str, key: str) -> Statement[list[AuditEntry]]:
    """Every decision about a run, newest first, each with its outcome."""
    return Statement(
        "audit.of_run", _OF_RUN, many(lambda row: AuditEntry(**row)), {"tenant_id": tenant_id, "key": key}
    )
