"""A report by schedule: when it will run, one by hand now, and the days before made up for."""

import secrets

from onceonly_jobs import OnceOnly

client = OnceOnly()
name = f"report-{secrets.token_hex(4)}"

client.schedules.create(
    name,
    task="daily_summary",
    cron="0 6 * * MON-FRI",
    tz="Europe/Kyiv",
    misfire="once",  # after an outage the latest missed one runs, not all of them
    payload={"day": "2024-01-27"},
)
print("Scheduled: daily_summary at 06:00 in Kyiv, Monday to Friday")

for tick in client.schedules.next(name, 3)["items"]:
    print(f"Next: {tick['local']}, as the run {tick['key'].replace(name, '<name>')}")

# One run more, now. The id makes the call safe to repeat: one run per id.
for attempt in (1, 2):
    run = client.schedules.trigger(name, "by-hand")
    print(f"Trigger {attempt}: charged={run.charged}")
print(f"By hand: {client.ai.wait(run.key).status}")

# The working days of a week before the schedule was made. Again, each has one run at most.
for attempt in (1, 2):
    made = client.schedules.backfill(name, "2024-01-22T00:00:00+02:00", "2024-01-28T23:59:59+02:00")
    print(f"Backfill {attempt}: {made['created']} new runs for {made['ticks']} ticks")

ticks = client.schedules.ticks(name)["items"]
print(f"History: {[tick['state'] for tick in ticks]}")

print(f"Paused: {client.schedules.pause(name)['status']}")
client.schedules.delete(name)
print("Deleted")
