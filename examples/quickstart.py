"""One key, asked for twice: the first call may act, the second one is told that it was done."""

import secrets

from onceonly_jobs import OnceOnly

client = OnceOnly()  # ONCEONLY_API_KEY and ONCEONLY_BASE_URL
order = f"order:{secrets.token_hex(4)}"  # a new order for each run of this example

first = client.check_lock(key=order, ttl=60)
print(f"✅ First call: locked={first.locked}, duplicate={first.duplicate}")

second = client.check_lock(key=order, ttl=60)
print(f"❌ Second call: locked={second.locked}, duplicate={second.duplicate}")

if first.locked and second.duplicate:
    print("✨ Idempotency working!")
