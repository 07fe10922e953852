"""A job for the workers, asked for twice under one key: it runs once, and both get its result."""

import sys

from onceonly_jobs import OnceOnly

client = OnceOnly()

# The key says what the work is: this report, of this day. Run the example again, and the stored report is
# answered, for as long as the server keeps it (7 days).
KEY = "report:daily:2024-01-27"
JOB = {"task": "daily_summary", "day": "2024-01-27"}

result = client.ai.run_and_wait(key=KEY, metadata=JOB, ttl=1800, timeout=120.0)
if result.status == "completed":
    print(result.result)
else:
    sys.exit(f"no report: {result.error_code}")

again = client.ai.run(KEY, metadata=JOB, ttl=1800)
print(f"Asked again: {again.status}, charged={again.charged}, same result: {again.result == result.result}")
