"""What was decided, and what came of it."""

from __future__ import annotations

from onceonly_jobs.store import audit
from onceonly_jobs.store.audit import AuditEntry
from onceonly_jobs.store.statement import Operation, autocommit


@autocommit
def decisions_of(tenant_id: str, key: str) -> Operation[list[AuditEntry]]:
    """Every decision about a run, newest first, each with its outcome."""
    return (yield from audit.of_run(tenant_id, key))
