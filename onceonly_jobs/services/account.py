"""Tenants, their API keys, and what they have used."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import date

from onceonly_jobs.contracts.account import NotificationsRequest
from onceonly_jobs.domain.plans import Kind, Plan
from onceonly_jobs.errors import ApiKeyDisabled, InvalidApiKey
from onceonly_jobs.store import account as store
from onceonly_jobs.store import usage
from onceonly_jobs.store.account import ApiKey, Caller, Notifications, Tenant
from onceonly_jobs.store.statement import Operation, autocommit, read_only
from onceonly_jobs.store.usage import Counters

KEY_PREFIX = "once_live_"


@read_only
def authenticate(api_key: str) -> Operation[Caller]:
    """Who holds this key. Raises InvalidApiKey, ApiKeyDisabled."""
    if not api_key.startswith(KEY_PREFIX):
        raise InvalidApiKey
    caller = yield from store.caller(digest(api_key))
    if caller is None:
        raise InvalidApiKey
    if caller.disabled:
        raise ApiKeyDisabled
    return caller


def digest(api_key: str) -> bytes:
    """What is stored of an API key, and what it is found by."""
    return hashlib.sha256(api_key.encode()).digest()


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is shown once; only its hash is stored."""

    id: str
    api_key: str


def create_key(tenant_id: str, rate_limit: str | None = None) -> Operation[NewKey]:
    """A new API key for an existing tenant."""
    api_key = KEY_PREFIX + secrets.token_urlsafe(24)
    key_id = f"key_{secrets.token_hex(6)}"
    preview = f"{KEY_PREFIX}...{api_key[-4:]}"
    yield from store.add_key(key_id, tenant_id, digest(api_key), preview, rate_limit)
    return NewKey(key_id, api_key)


def ensure_tenant(tenant_id: str, plan: Plan) -> Operation[Tenant]:
    """The tenant of that name, made with that plan if it is new. An existing one keeps its own plan."""
    tenant = yield from store.add_tenant(tenant_id, plan)
    if tenant is None:
        tenant = yield from store.find_tenant(tenant_id)
    assert tenant is not None, "tenants are never deleted"  # noqa: S101
    return tenant


def find_tenant(tenant_id: str) -> Operation[Tenant | None]:
    return (yield from store.find_tenant(tenant_id))


def list_tenants() -> Operation[list[Tenant]]:
    return (yield from store.all_tenants())


def set_plan(tenant_id: str, plan: Plan) -> Operation[Tenant | None]:
    """Move a tenant to another plan; None when there is none of that name."""
    return (yield from store.set_plan(tenant_id, plan))


def set_disabled(tenant_id: str, disabled: bool) -> Operation[Tenant | None]:
    """Refuse or accept all keys of a tenant; None when there is none of that name."""
    return (yield from store.set_disabled(tenant_id, disabled))


def list_keys(tenant_id: str | None) -> Operation[list[ApiKey]]:
    return (yield from store.keys(tenant_id))


def revoke_key(key_id: str) -> Operation[bool]:
    """Refuse a key from now on; False when there is none of that id."""
    return (yield from store.revoke_key(key_id)) > 0


def profile(caller: Caller) -> Operation[tuple[Counters, Notifications]]:
    """All-time counters and notification switches of the caller's tenant."""
    counters = yield from usage.all_time(caller.tenant_id)
    switches = yield from store.notifications(caller.tenant_id)
    return counters, switches


@autocommit
def update_notifications(caller: Caller, request: NotificationsRequest) -> Operation[Notifications]:
    """Change the given switches."""
    return (
        yield from store.set_notifications(
            caller.tenant_id,
            request.email_notifications_enabled,
            request.tool_error_notifications_enabled,
            request.run_failure_notifications_enabled,
        )
    )


@autocommit
def month_usage(caller: Caller) -> Operation[tuple[str, dict[Kind, Counters]]]:
    """The current UTC month and its counters."""
    return (yield from usage.month(caller.tenant_id))


@autocommit
def daily_usage(caller: Caller, from_day: date, to_day: date) -> Operation[list[tuple[date, Kind, Counters]]]:
    """Counters per UTC day and kind."""
    return (yield from usage.days(caller.tenant_id, from_day, to_day))
