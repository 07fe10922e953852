"""The first tenant and its API key, so that a fresh system can be used at once."""

from __future__ import annotations

from onceonly_jobs.config import Settings
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import Refusal
from onceonly_jobs.services import account
from onceonly_jobs.store.database import Database

DEV_TENANT = "default"


def ensure_dev_key(settings: Settings, previous: str | None) -> str:
    """An API key that works: the previous one if it still does, else a new one of the tenant `default`."""
    db = Database(settings.require_database_url(), pool_size=1)
    try:
        if previous is not None and _works(db, previous):
            return previous
        db.run(account.ensure_tenant, DEV_TENANT, Plan(settings.default_plan))
        return db.run(account.create_key, DEV_TENANT).api_key
    finally:
        db.close()


def _works(db: Database, api_key: str) -> bool:
    try:
        db.run(account.authenticate, api_key)
    except Refusal:
        return False
    return True
