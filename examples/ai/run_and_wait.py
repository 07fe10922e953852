"""Five callers ask for one job at the same time, and wait: one execution, five equal answers."""

import secrets
from concurrent.futures import ThreadPoolExecutor

from onceonly_jobs import AiResult, OnceOnly

client = OnceOnly()
key = f"summary:{secrets.token_hex(4)}"


def ask(caller: int) -> AiResult:
    # The server holds the request until there is a result: it is seen at once, whatever the number of callers.
    return client.ai.run_and_wait(key, metadata={"task": "echo", "text": "Hello"}, timeout=60.0)


with ThreadPoolExecutor(5) as pool:
    answers = list(pool.map(ask, range(5)))

print(f"Statuses: {[answer.status for answer in answers]}")
print(f"All the same: {all(answer == answers[0] for answer in answers)}")
starts = [event for event in client.get_run_timeline(key)["events"] if event["type"] == "run_started"]
print(f"Executions: {len(starts)}")

# Work that does not get ready in time is no error: it goes on, ask again later. Here this process is the slow one.
with client.lease(f"{key}:slow", ttl=60) as lease:
    impatient = client.ai.wait(f"{key}:slow", timeout=0.2)
    lease.set_result({"text": "ready"})
print(f"No patience: {impatient.status}, {impatient.error_code}")
print(f"Later: {client.ai.wait(f'{key}:slow').result}")
