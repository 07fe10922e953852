"""Tenants and their API keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.plans import Plan, PlanTable
from onceonly_jobs.store.rowset import to_rows
from onceonly_jobs.store.statement import Statement, count, many, one_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is asking: the tenant behind an API key."""

    tenant_id: str
    plan: Plan
    key_id: str
    key_preview: str
    rate_limit: str | None
    disabled: bool
    plan_table: PlanTable = PlanTable.SEED
    """The server's choice of what the plan has."""


_CALLER = sa.text("""
SELECT t.id AS tenant_id, t.plan, k.id AS key_id, k.preview, k.rate_limit,
       k.disabled_at IS NOT NULL OR t.disabled_at IS NOT NULL AS disabled
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.key_sha256 = :key_sha256
""")


def caller(key_sha256: bytes) -> Statement[Caller | None]:
    """Whose key this is. Looked up by hash: how long it takes tells nothing about any real key."""

    def read(row: sa.RowMapping) -> Caller:
        return Caller(
            tenant_id=row["tenant_id"],
            plan=Plan(row["plan"]),
            key_id=row["key_id"],
            key_preview=row["preview"],
            rate_limit=row["rate_limit"],
            disabled=row["disabled"],
        )

    return Statement("account.caller", _CALLER, one_or_none(read), {"key_sha256": key_sha256})


# The numbers of those callers that still are as they were when they were read.
VALID_CALLERS = """
    SELECT c.n FROM json_to_recordset(CAST(:callers AS json)) AS c (
        n integer, key_id text, tenant_id text, plan text, rate_limit text)
    JOIN api_keys k ON k.id = c.key_id JOIN tenants t ON t.id = k.tenant_id
    WHERE k.tenant_id = c.tenant_id AND k.disabled_at IS NULL AND t.disabled_at IS NULL AND t.plan = c.plan
      AND k.rate_limit IS NOT DISTINCT FROM c.rate_limit"""


class Vouched:
    """The callers of one statement, who were read a moment ago and are checked in it: VALID_CALLERS."""

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._rows: list[dict[str, str | None]] = []

    def number_of(self, caller: Caller | None) -> int | None:
        if caller is None:
            return None
        if caller.key_id not in self._number_of:
            self._number_of[caller.key_id] = len(self._rows)
            fields = {name: getattr(caller, name) for name in ("key_id", "tenant_id", "rate_limit")}
            self._rows.append({**fields, "plan": caller.plan.value})
        return self._number_of[caller.key_id]

    def __str__(self) -> str:
        return to_rows(self._rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    id: str
    plan: Plan
    created_at: datetime
    disabled_at: datetime | None


def _tenant(row: sa.RowMapping) -> Tenant:
    return Tenant(
        id=row["id"], plan=Plan(row["plan"]), created_at=row["created_at"], disabled_at=row["disabled_at"]
    )


_TENANT = "id, plan, created_at, disabled_at"

_ADD_TENANT = sa.text(f"""
INSERT INTO tenants (id, plan) VALUES (:id, :plan) ON CONFLICT (id) DO NOTHING RETURNING {_TENANT}
""")


def add_tenant(tenant_id: str, plan: Plan) -> Statement[Tenant | None]:
    """A new tenant; None when the name is taken."""
    return Statement(
        "account.add_tenant", _ADD_TENANT, one_or_none(_tenant), {"id": tenant_id, "plan": plan.value}
    )


_FIND_TENANT = sa.text(f"SELECT {_TENANT} FROM tenants WHERE id = :id")


def find_tenant(tenant_id: str) -> Statement[Tenant | None]:
    return Statement("account.find_tenant", _FIND_TENANT, one_or_none(_tenant), {"id": tenant_id})


_TENANTS = sa.text(f"SELECT {_TENANT} FROM tenants ORDER BY id")


def all_tenants() -> Statement[list[Tenant]]:
    return Statement("account.all_tenants", _TENANTS, many(_tenant))


_SET_PLAN = sa.text(f"UPDATE tenants SET plan = :plan WHERE id = :id RETURNING {_TENANT}")


def set_plan(tenant_id: str, plan: Plan) -> Statement[Tenant | None]:
    """Move a tenant to another plan; None when there is no such tenant."""
    return Statement(
        "account.set_plan", _SET_PLAN, one_or_none(_tenant), {"id": tenant_id, "plan": plan.value}
    )


_SET_DISABLED = sa.text(f"""
UPDATE tenants SET disabled_at = CASE WHEN :disabled THEN coalesce(disabled_at, onceonly_now()) END
WHERE id = :id RETURNING {_TENANT}
""")


def set_disabled(tenant_id: str, disabled: bool) -> Statement[Tenant | None]:
    """Refuse, or accept again, every key of a tenant; None when there is no such tenant."""
    return Statement(
        "account.set_disabled", _SET_DISABLED, one_or_none(_tenant), {"id": tenant_id, "disabled": disabled}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    tenant_id: str
    plan: Plan
    preview: str
    rate_limit: str | None
    created_at: datetime
    disabled_at: datetime | None


_ADD_KEY = sa.text("""
INSERT INTO api_keys (id, tenant_id, key_sha256, preview, rate_limit)
VALUES (:id, :tenant_id, :key_sha256, :preview, CAST(:rate_limit AS text))
""")


def add_key(
    key_id: str, tenant_id: str, key_sha256: bytes, preview: str, rate_limit: str | None
) -> Statement[int]:
    params = {
        "id": key_id,
        "tenant_id": tenant_id,
        "key_sha256": key_sha256,
        "preview": preview,
        "rate_limit": rate_limit,
    }
    return Statement("account.add_key", _ADD_KEY, count, params)


_KEYS = sa.text("""
SELECT k.id, k.tenant_id, t.plan, k.preview, k.rate_limit, k.created_at, k.disabled_at
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE CAST(:tenant_id AS text) IS NULL OR k.tenant_id = :tenant_id
ORDER BY k.tenant_id, k.created_at, k.id
""")


def keys(tenant_id: str | None) -> Statement[list[ApiKey]]:
    """Every key, or those of one tenant; never the secret itself, which is not stored."""

    def read(row: Any) -> ApiKey:
        return ApiKey(**{**row, "plan": Plan(row["plan"])})

    return Statement("account.keys", _KEYS, many(read), {"tenant_id": tenant_id})


_REVOKE = sa.text("""
UPDATE api_keys SET disabled_at = coalesce(disabled_at, onceonly_now()) WHERE id = :id
""")


def revoke_key(key_id: str) -> Statement[int]:
    """Refuse a key from now on. 0 when there is no such key."""
    return Statement("account.revoke_key", _REVOKE, count, {"id": key_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifications:
    email_notifications_enabled: bool
    tool_error_notifications_enabled: bool
    run_failure_notifications_enabled: bool


_NOTIFICATIONS = (
    "email_notifications_enabled, tool_error_notifications_enabled, run_failure_notifications_enabled"
)

_NOTIFY = sa.text(f"""
UPDATE tenants SET
    email_notifications_enabled = coalesce(CAST(:email AS boolean), email_notifications_enabled),
    tool_error_notifications_enabled = coalesce(CAST(:tool_error AS boolean), tool_error_notifications_enabled),
    run_failure_notifications_enabled =
        coalesce(CAST(:run_failure AS boolean), run_failure_notifications_enabled)
WHERE id = :id RETURNING {_NOTIFICATIONS}
""")


def set_notifications(
    tenant_id: str, email: bool | None, tool_error: bool | None, run_failure: bool | None
) -> Statement[Notifications]:
    """Change the given switches and read all three. None leaves a switch as it is."""
    return Statement(
        "account.set_notifications",
        _NOTIFY,
        lambda r: Notifications(**r.mappings().one()),
        {"id": tenant_id, "email": email, "tool_error": tool_error, "run_failure": run_failure},
    )


_READ_NOTIFICATIONS = sa.text(f"SELECT {_NOTIFICATIONS} FROM tenants WHERE id = :id")


def notifications(tenant_id: str) -> Statement[Notifications]:
    return Statement(
        "account.notifications",
        _READ_NOTIFICATIONS,
        lambda r: Notifications(**r.mappings().one()),
        {"id": tenant_id},
    )
