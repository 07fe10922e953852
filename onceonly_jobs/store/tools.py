"""The registry of tools: which URL a name stands for, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.store.rowset import numbered, only, to_rows
from onceonly_jobs.store.statement import Statement, many, nothing, one_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A tool's secret as it is kept."""

    id: str
    mask: str
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    tenant_id: str
    scope_id: str
    name: str
    url: str
    auth_type: str
    secret: Secret
    timeout_ms: int
    max_retries: int
    enabled: bool
    description: str | None
    effect: Effect
    confirm_url: str | None
    dedup_ttl_s: int | None
    """How long a call answers its repeats; None: as long as the plan says."""


_COLUMNS = """tenant_id, scope_id, name, url, auth_type, secret_id, secret_mask, secret_sealed, timeout_ms,
    max_retries, enabled, description, effect, confirm_url, dedup_ttl_s"""


def _tool(row: Mapping[Any, Any]) -> Tool:
    plain = {name: value for name, value in row.items() if not name.startswith("secret_")}
    secret = Secret(id=row["secret_id"], mask=row["secret_mask"], sealed=row["secret_sealed"])
    return Tool(**{**plain, "effect": Effect(row["effect"]), "secret": secret})


_LOCK = sa.text("SELECT FROM tenants WHERE id = :tenant_id FOR NO KEY UPDATE")


def lock(tenant_id: str) -> Statement[None]:
    """Let nobody else register a tool of this tenant until the transaction ends, so that counting them is exact."""
    return Statement("tools.lock", _LOCK, nothing, {"tenant_id": tenant_id})


_COUNT = sa.text("SELECT count(*) FROM tools WHERE tenant_id = :tenant_id")


def count(tenant_id: str) -> Statement[int]:
    """How many tools a tenant has, over all scopes."""
    return Statement("tools.count", _COUNT, lambda r: int(r.scalar_one()), {"tenant_id": tenant_id})


_THIS = "tenant_id = :tenant_id AND scope_id = :scope_id AND name = :name"

_FIND = sa.text(f"SELECT {_COLUMNS} FROM tools WHERE {_THIS}")


def find(tenant_id: str, scope_id: str, name: str) -> Statement[Tool | None]:
    return Statement("tools.find", _FIND, one_or_none(_tool), _this(tenant_id, scope_id, name))


def _this(tenant_id: str, scope_id: str, name: str) -> dict[str, Any]:
    return {"tenant_id": tenant_id, "scope_id": scope_id, "name": name}


_HOLD = sa.text(f"SELECT {_COLUMNS} FROM tools WHERE {_THIS} FOR UPDATE")


def hold(tenant_id: str, scope_id: str, name: str) -> Statement[Tool | None]:
    """`find`, and let nobody change or delete it until the transaction ends."""
    return Statement("tools.hold", _HOLD, one_or_none(_tool), _this(tenant_id, scope_id, name))


_LIST = sa.text(f"""
SELECT {_COLUMNS} FROM tools WHERE tenant_id = :tenant_id AND scope_id = :scope_id ORDER BY name
""")


def in_scope(tenant_id: str, scope_id: str) -> Statement[list[Tool]]:
    """The tools of exactly this scope, by name."""
    return Statement("tools.in_scope", _LIST, many(_tool), {"tenant_id": tenant_id, "scope_id": scope_id})


def meant(columns: str, tenant_id: str, agent_id: str, name: str) -> str:
    """SQL for the tool that a name means to an agent: its own, or else the global one."""
    return f"""
SELECT {columns} FROM tools t
WHERE t.tenant_id = {tenant_id} AND t.scope_id IN ('global', 'agent:' || {agent_id}) AND t.name = {name}
ORDER BY t.scope_id = 'global' LIMIT 1"""


_FOR_CALLS = sa.text(f"""
SELECT q.n, t.* FROM json_to_recordset(CAST(:asked AS json)) AS q (n integer, tenant_id text, agent_id text, tool text)
CROSS JOIN LATERAL ({meant(_COLUMNS, "q.tenant_id", "q.agent_id", "q.tool")}) t
""")


def for_calls(asked: Sequence[tuple[str, str, str]]) -> Statement[list[Tool | None]]:
    """The tools that names mean to agents, of (tenant_id, agent_id, name): its own, or else the global one.

    They may be disabled.
    """
    rows = [{"tenant_id": tenant, "agent_id": agent, "tool": name} for tenant, agent, name in asked]

    def read(row: sa.RowMapping) -> Tool:
        return _tool({name: value for name, value in row.items() if name != "n"})

    return Statement("tools.for_call", _FOR_CALLS, numbered(len(rows), read), {"asked": to_rows(rows)})


def for_call(tenant_id: str, agent_id: str, name: str) -> Statement[Tool | None]:
    """The tool that a name means to an agent: its own, or else the global one. It may be disabled."""
    return only(for_calls([(tenant_id, agent_id, name)]))


_UNKNOWN = sa.text("""
SELECT n.name FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS n (name, place)
WHERE NOT EXISTS (SELECT FROM tools t WHERE t.tenant_id = :tenant_id
                  AND t.scope_id IN ('global', 'agent:' || CAST(:agent_id AS text)) AND t.name = n.name)
  AND NOT EXISTS (SELECT FROM jobs j WHERE j.name IN (n.name, 'onceonly.tool.' || n.name))
ORDER BY n.place
""")


def unknown(tenant_id: str, agent_id: str, names: list[str]) -> Statement[list[str]]:
    """Those of the names that mean nothing to the agent: no tool that it may be given, and no job."""
    return Statement(
        "tools.unknown",
        _UNKNOWN,
        lambda r: [str(name) for name in r.scalars()],
        {"tenant_id": tenant_id, "agent_id": agent_id, "names": names},
    )


def _fed(source: str, type_: str) -> str:
    """A CTE that tells the feed of a changed row of `source`, and by whom it was changed."""
    return f"""
fed AS (
    INSERT INTO feed_events (tenant_id, type, status, agent_id, tool, data)
    SELECT tenant_id, {type_}, 'ok', CASE WHEN scope_id <> 'global' THEN substr(scope_id, 7) END, name,
           json_build_object('actor', CAST(:actor AS text), 'scope_id', scope_id, 'secret_id', secret_id)
    FROM {source}
)"""


_PUT = sa.text(f"""
WITH put AS (
    INSERT INTO tools AS t ({_COLUMNS})
    VALUES (:tenant_id, :scope_id, :name, :url, :auth_type, :secret_id, :secret_mask, :secret_sealed, :timeout_ms,
            :max_retries, :enabled, CAST(:description AS text), :effect, CAST(:confirm_url AS text),
            CAST(:dedup_ttl_s AS integer))
    ON CONFLICT (tenant_id, scope_id, name) DO UPDATE SET
        url = excluded.url, auth_type = excluded.auth_type, secret_id = excluded.secret_id,
        secret_mask = excluded.secret_mask, secret_sealed = excluded.secret_sealed,
        timeout_ms = excluded.timeout_ms, max_retries = excluded.max_retries, enabled = excluded.enabled,
        description = excluded.description, effect = excluded.effect, confirm_url = excluded.confirm_url,
        dedup_ttl_s = excluded.dedup_ttl_s, updated_at = onceonly_now()
    RETURNING *
), {_fed("put", ":change")}
SELECT {_COLUMNS} FROM put
""")


def put(tool: Tool, *, actor: str, change: str) -> Statement[Tool]:
    """Store a tool as it is given; `change` is the event's type. After `lock` and `hold`, in their transaction."""
    return Statement(
        "tools.put",
        _PUT,
        lambda r: _tool(r.mappings().one()),
        {
            **_this(tool.tenant_id, tool.scope_id, tool.name),
            "url": tool.url,
            "auth_type": tool.auth_type,
            "secret_id": tool.secret.id,
            "secret_mask": tool.secret.mask,
            "secret_sealed": tool.secret.sealed,
            "timeout_ms": tool.timeout_ms,
            "max_retries": tool.max_retries,
            "enabled": tool.enabled,
            "description": tool.description,
            "effect": tool.effect.value,
            "confirm_url": tool.confirm_url,
            "dedup_ttl_s": tool.dedup_ttl_s,
            "actor": actor,
            "change": change,
        },
    )


_TOGGLE = sa.text(f"""
WITH toggled AS (
    UPDATE tools SET enabled = :enabled, updated_at = onceonly_now() WHERE {_THIS} RETURNING *
), {_fed("toggled", "CASE WHEN enabled THEN 'tool_enabled' ELSE 'tool_disabled' END")}
SELECT {_COLUMNS} FROM toggled
""")


def toggle(tenant_id: str, scope_id: str, name: str, *, enabled: bool, actor: str) -> Statement[Tool | None]:
    """Switch a tool on or off; None when there is no such tool."""
    return Statement(
        "tools.toggle",
        _TOGGLE,
        one_or_none(_tool),
        {**_this(tenant_id, scope_id, name), "enabled": enabled, "actor": actor},
    )


_DELETE = sa.text(f"""
WITH deleted AS (
    DELETE FROM tools WHERE {_THIS} RETURNING *
), {_fed("deleted", "'tool_deleted'")}
SELECT {_COLUMNS} FROM deleted
""")


def delete(tenant_id: str, scope_id: str, name: str, *, actor: str) -> Statement[Tool | None]:
    """Remove a tool with its secret, and say what it was; None when there is no such tool."""
    return Statement(
        "tools.delete", _DELETE, one_or_none(_tool), {**_this(tenant_id, scope_id, name), "actor": actor}
    )
