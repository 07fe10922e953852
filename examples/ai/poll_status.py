"""Polling by hand: ask how far a job is, as often as the server suggests."""

import secrets
import time

from onceonly_jobs import OnceOnly

client = OnceOnly()
key = f"poll:{secrets.token_hex(4)}"

run = client.ai.run(key, metadata={"task": "echo"}, ttl=300)
print(f"Asked for: {run.status}, charged={run.charged}")

poll = 0
while True:
    poll += 1
    status = client.ai.status(key)
    print(f"Poll {poll}: {status.status}")
    if status.status in ("completed", "failed"):
        break
    time.sleep(status.retry_after_sec or 1)

print(f"Finished at {status.done_at}")

# Rather let the server tell: the answer comes when the job is ready, or after 20 seconds.
print(f"Long poll: {client.ai.status(key, wait=20).status}")
