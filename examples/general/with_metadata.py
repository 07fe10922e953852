"""Metadata beside a key: small facts for whoever has to find out later what happened."""

import secrets
from dataclasses import dataclass

from onceonly_jobs import OnceOnly


@dataclass
class Charge:
    user_id: int
    amount_cents: int
    source: str
    trace_id: str


client = OnceOnly()
key = f"charge:{secrets.token_hex(4)}"
# Ids and amounts, at most 2 KiB. Never secrets, never whole requests: it is kept in the clear.
charge = Charge(user_id=123, amount_cents=9999, source="api", trace_id="abc-123")

first = client.check_lock(key, ttl=3600, meta=charge)
print(f"locked={first.locked}, metadata={first.raw['metadata']}")

# Metadata is no part of the key: the same key with other metadata is still a duplicate.
second = client.check_lock(key, ttl=3600, meta={"user_id": 123, "trace_id": "def-456"})
print(f"duplicate={second.duplicate}, first seen at {second.first_seen_at}")

# Runs and leases take it the same way. There it also says what to run.
run = client.ai.run_and_wait(f"{key}:echo", metadata={"task": "echo", "trace_id": "abc-123"})
assert run.result is not None
print(f"The run was given: {run.result['metadata']}")
