"""Tenants of a test's own on a system that others use too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.clients import unique

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.services import account
from onceonly_jobs.store.database import Database


@dataclass(frozen=True)
class Tenant:
    """A namespace with a key to it."""

    id: str
    key_id: str
    api_key: str


NewTenant = Callable[..., Tenant]


def make_tenant(accounts: Database, plan: Plan = Plan.AGENCY, rate_limit: str | None = None) -> Tenant:
    """A new tenant: no counter or key of another test is in it."""
    tenant_id = unique("tenant")
    accounts.run(account.ensure_tenant, tenant_id, plan)
    key = accounts.run(account.create_key, tenant_id, rate_limit)
    return Tenant(tenant_id, key.id, key.api_key)
