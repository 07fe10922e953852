"""How long a lock holds: its ttl, counted from the first call. With --wait the example sits one out."""

import secrets
import sys
import time

from onceonly_jobs import OnceOnly

client = OnceOnly()
job = f"ttl-demo:{secrets.token_hex(4)}"

print(f"Asked for 3600 s: ttl={client.check_lock(f'{job}:hour', ttl=3600).ttl}")
print(f"Asked for 1 s: ttl={client.check_lock(f'{job}:second', ttl=1).ttl}, the least there is")
print(f"Not asked for any: ttl={client.check_lock(f'{job}:default').ttl}, ONCEONLY_TTL or the plan's default")

key = f"{job}:short"
print(f"First call: locked={client.check_lock(key, ttl=10).locked}")
# A repeat does not make the lock last longer.
print(f"A repeat: duplicate={client.check_lock(key, ttl=3600).duplicate}")

if "--wait" in sys.argv:
    time.sleep(10.5)
    print(f"After 10 s: locked={client.check_lock(key, ttl=10).locked}")
