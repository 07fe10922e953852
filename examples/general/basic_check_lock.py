"""The smallest guard: ask for a lock, and act only if it was free."""

import secrets

from onceonly_jobs import OnceOnly

client = OnceOnly()


def ship(order_id: str) -> str:
    lock = client.check_lock(key=f"order:{order_id}:ship", ttl=3600)
    if lock.duplicate:
        return f"not shipped: done already at {lock.first_seen_at}"
    # Whatever must happen once goes here.
    return "shipped"


order_id = secrets.token_hex(4)
for attempt in (1, 2, 3):
    print(f"Attempt {attempt}: {ship(order_id)}")

# The same as a block, for those who prefer one. The lock stays for its ttl when the block ends.
with client.lock(f"order:{order_id}:invoice", ttl=3600) as lock:
    print(f"Invoice: acquired={lock.acquired}")
