"""Enqueue from Python without HTTP: the job is there once, with its payload, now or later."""

import secrets
from datetime import timedelta

from onceonly_jobs import Jobs, OnceOnly

jobs = Jobs.from_env()  # ONCEONLY_DATABASE_URL and ONCEONLY_BROKER_URL, for the tenant of ONCEONLY_API_KEY
client = OnceOnly()
run = secrets.token_hex(4)
key = f"summary:{run}"

# A web request, its repetition by an impatient user, and one more.
for click in (1, 2, 3):
    job = jobs.enqueue("daily_summary", key=key, payload={"day": "2024-01-27"})
    print(f"Click {click}: charged={job.charged}")

outcome = client.ai.wait(key)
assert outcome.result is not None
print(f"{outcome.status}: {outcome.result['text']}")
print(f"In the app: {jobs.status(key).status}")

later = jobs.enqueue("echo", key=f"reminder:{run}", payload={"user": 1}, delay=timedelta(hours=1))
print(f"In an hour: {jobs.status(later.key).status}")
if later.lease_id is not None:  # only who acquired the run can take it back
    client.ai.cancel(later.key, later.lease_id, reason="no longer wanted")
print(f"Taken back: {client.ai.status(later.key).error_code}")

jobs.close()
