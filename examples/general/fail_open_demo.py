"""What happens when the server is away: by choice the work goes on unguarded, or it stops."""

import secrets

from onceonly_jobs import OnceOnly
from onceonly_jobs.exceptions import Unreachable

NOWHERE = "http://127.0.0.1:9/v1"  # nothing listens on this port
key = f"newsletter:{secrets.token_hex(4)}"

# A second newsletter is better than none: fail open, which is the default. A warning is logged.
client = OnceOnly(base_url=NOWHERE, timeout=0.5, fail_open=True)
result = client.check_lock(key, ttl=3600)
print(f"fail_open=True: locked={result.locked}, failed_open={result.failed_open}, {result.raw['reason']}")

# A second payment is worse than none: fail closed, and let the caller try again later.
strict = OnceOnly(base_url=NOWHERE, timeout=0.5, fail_open=False, max_retries_429=0)
try:
    strict.check_lock(key, ttl=3600)
except Unreachable as error:
    print(f"fail_open=False: {type(error).__name__}, so nothing was done")

# Runs, leases and tool calls never fail open.
try:
    OnceOnly(base_url=NOWHERE, timeout=0.5, max_retries_429=0).ai.run(key)
except Unreachable as error:
    print(f"ai.run: {type(error).__name__}")
