"""A report by schedule: when it will run, one by hand now, and the days before made up for."""

import secrets
import sys
from typing import Any

import httpx

from onceonly_jobs import OnceOnly

client = OnceOnly()
http = httpx.Client(base_url=client.base_url, headers=client.headers, timeout=10)
name = f"report-{secrets.token_hex(4)}"


def call(method: str, path: str, **options: Any) -> dict[str, Any]:
    response = http.request(method, f"/schedules{path}", **options)
    if not response.is_success:
        sys.exit(f"{method} /schedules{path}: HTTP {response.status_code}, {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


if http.get("/schedules").status_code == 404:
    sys.exit("This server has no schedules: GET /schedules answers 404.")

call(
    "POST",
    "",
    json={
        "name": name,
        "task": "daily_summary",
        "cron": "0 6 * * MON-FRI",
        "tz": "Europe/Kyiv",
        "misfire": "once",  # after an outage the latest missed one runs, not all of them
        "payload": {"day": "2024-01-27"},
    },
)
print("Scheduled: daily_summary at 06:00 in Kyiv, Monday to Friday")

for tick in call("GET", f"/{name}/next", params={"n": 3})["items"]:
    print(f"Next: {tick['local']}, as the run {tick['key'].replace(name, '<name>')}")

# One run more, now. The id makes the call safe to repeat: one run per id.
for attempt in (1, 2):
    run = call("POST", f"/{name}/trigger", json={"id": "by-hand"})
    print(f"Trigger {attempt}: charged={run['charged']}")
print(f"By hand: {client.ai.wait(run['key']).status}")

# The working days of a week before the schedule was made. Again, each has one run at most.
week = {"from": "2024-01-22T00:00:00+02:00", "to": "2024-01-28T23:59:59+02:00"}
for attempt in (1, 2):
    made = call("POST", f"/{name}/backfill", json=week)
    print(f"Backfill {attempt}: {made['created']} new runs for {made['ticks']} ticks")

ticks = call("GET", f"/{name}/ticks")["items"]
print(f"History: {[tick['state'] for tick in ticks]}")

call("POST", f"/{name}/pause")
print(f"Paused: {call('GET', f'/{name}')['status']}")
call("DELETE", f"/{name}")
print("Deleted")
