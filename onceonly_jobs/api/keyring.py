"""Who holds which API key, as read a moment ago. A guess, which the statements that rely on it check (`Vouched`)."""

from __future__ import annotations

import time
from dataclasses import replace

from onceonly_jobs.domain.plans import PlanTable
from onceonly_jobs.services import account
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database

LONGEST_S = 60.0
MOST = 10_000


class Keyring:
    """Reads callers by their key, and remembers them for a while: by the key's hash, never the key."""

    def __init__(self, db: Database, plan_table: str) -> None:
        self._db = db
        self._plan_table = PlanTable(plan_table)
        self._known: dict[bytes, tuple[Caller, float]] = {}

    def known(self, api_key: str) -> Caller | None:
        """The caller as it was within the last minute; None where it has to be read."""
        caller, until = self._known.get(account.digest(api_key), (None, 0.0))
        return caller if time.monotonic() < until else None

    async def read(self, api_key: str) -> Caller:
        """The caller as it is. Raises InvalidApiKey, ApiKeyDisabled."""
        digest = account.digest(api_key)
        self._known.pop(digest, None)
        caller = await self._db.arun(account.authenticate, api_key)
        caller = replace(caller, plan_table=self._plan_table)
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[digest] = (caller, time.monotonic() + LONGEST_S)
        return caller
