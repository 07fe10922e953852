"""The registry of tools: what an agent may be given to call, and the secret each call is signed with."""

from __future__ import annotations

import hmac
import secrets
from typing import Any

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.tools import ToolRequest
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.domain.plans import MOST_TOOLS, Feature
from onceonly_jobs.errors import SecretUnreadable, ToolNotRegistered, TooManyTools, Unsupported
from onceonly_jobs.services.governance import require
from onceonly_jobs.store import tools
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.statement import Operation, autocommit
from onceonly_jobs.store.tools import Secret, Tool
from onceonly_jobs.store.vault import Vault

NO_KEY = "ONCEONLY_SECRET_KEY is not set on this server: a tool's secret is only kept encrypted with it"
SHOWN_CHARACTERS = 3

DEFAULTS: dict[str, Any] = {
    "timeout_ms": 15_000,
    "max_retries": 2,
    "enabled": True,
    "description": None,
    "effect": Effect.IDEMPOTENT,
    "confirm_url": None,
    "dedup_ttl_s": None,
}


def vault_of(settings: Settings) -> Vault | None:
    """What the server keeps secrets with; None when it was given no key."""
    return None if settings.secret_key is None else Vault(settings.secret_key)


def secret_of(tool: Tool, vault: Vault | None) -> str:
    """What the tool's calls are signed with. Raises SecretUnreadable."""
    if vault is None:
        raise SecretUnreadable("ONCEONLY_SECRET_KEY is not set")
    return vault.open(tool.secret.sealed, *_place(tool.tenant_id, tool.scope_id, tool.name, tool.secret.id))


def _place(tenant_id: str, scope_id: str, name: str, secret_id: str) -> tuple[str, ...]:
    """Where a secret belongs: copied into any other row, it can't be read."""
    return tenant_id, scope_id, name, secret_id


def put(caller: Caller, request: ToolRequest, vault: Vault | None) -> Operation[Tool | None]:
    """Register a tool, or change what the request says of it; None for a new tool without a secret.

    Raises FeatureNotAvailable, TooManyTools, and Unsupported where a secret can't be kept.
    """
    require(caller, Feature.TOOLS)
    yield from tools.lock(caller.tenant_id)
    known = yield from tools.hold(caller.tenant_id, request.scope_id, request.name)
    if known is None:
        if request.auth.secret is None:
            return None
        yield from _take_place(caller)
    tool = Tool(
        tenant_id=caller.tenant_id,
        scope_id=request.scope_id,
        name=request.name,
        url=request.url,
        auth_type=request.auth.type,
        secret=_secret(caller.tenant_id, request, known, vault),
        **_settings(request, known),
    )
    change = "tool_created" if known is None else "tool_updated"
    return (yield from tools.put(tool, actor=caller.key_id, change=change))


def _take_place(caller: Caller) -> Operation[None]:
    """Raises TooManyTools where the plan has no room for one more."""
    most = MOST_TOOLS[caller.plan_table][caller.plan]
    if (yield from tools.count(caller.tenant_id)) >= most:
        raise TooManyTools(caller.plan.value, most)


def _settings(request: ToolRequest, known: Tool | None) -> dict[str, Any]:
    """What was sent, over what is known or else the defaults: repeating a registration switches nothing on again."""
    before = DEFAULTS if known is None else {name: getattr(known, name) for name in DEFAULTS}
    sent = {name: value for name in DEFAULTS if (value := getattr(request, name)) is not None}
    if request.effect is not None:
        sent |= {"effect": Effect(request.effect), "confirm_url": request.confirm_url}
    return before | sent


def _secret(tenant_id: str, request: ToolRequest, known: Tool | None, vault: Vault | None) -> Secret:
    """The secret to store. A new one gets a new id; the same one again, or none, changes nothing."""
    secret = request.auth.secret
    if known is not None and (secret is None or _is_secret_of(known, vault, secret)):
        return known.secret
    if vault is None or secret is None:
        raise Unsupported("tools", NO_KEY)
    secret_id = f"sec_{secrets.token_hex(8)}"
    return Secret(
        id=secret_id,
        mask=f"***{secret[-SHOWN_CHARACTERS:]}",
        sealed=vault.seal(secret, *_place(tenant_id, request.scope_id, request.name, secret_id)),
    )


def _is_secret_of(tool: Tool, vault: Vault | None, secret: str) -> bool:
    try:
        return hmac.compare_digest(secret_of(tool, vault).encode(), secret.encode())
    except SecretUnreadable:
        return False


@autocommit
def list_tools(caller: Caller, scope_id: str) -> Operation[list[Tool]]:
    """The tools of exactly this scope. Raises FeatureNotAvailable."""
    require(caller, Feature.TOOLS)
    return (yield from tools.in_scope(caller.tenant_id, scope_id))


@autocommit
def get(caller: Caller, scope_id: str, name: str) -> Operation[Tool]:
    """Raises FeatureNotAvailable, ToolNotRegistered."""
    require(caller, Feature.TOOLS)
    return _found((yield from tools.find(caller.tenant_id, scope_id, name)), scope_id, name)


@autocommit
def toggle(caller: Caller, scope_id: str, name: str, enabled: bool) -> Operation[Tool]:
    """Switch a tool on or off. Raises FeatureNotAvailable, ToolNotRegistered."""
    require(caller, Feature.TOOLS)
    toggled = yield from tools.toggle(caller.tenant_id, scope_id, name, enabled=enabled, actor=caller.key_id)
    return _found(toggled, scope_id, name)


@autocommit
def delete(caller: Caller, scope_id: str, name: str) -> Operation[Tool]:
    """Remove a tool and its secret. Raises FeatureNotAvailable, ToolNotRegistered."""
    require(caller, Feature.TOOLS)
    deleted = yield from tools.delete(caller.tenant_id, scope_id, name, actor=caller.key_id)
    return _found(deleted, scope_id, name)


def _found(tool: Tool | None, scope_id: str, name: str) -> Tool:
    if tool is None:
        raise ToolNotRegistered(name, scope_id)
    return tool
