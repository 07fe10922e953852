"""What happened, and when: the timeline of a run, with notes of your own among the server's events."""

import secrets

from onceonly_jobs import OnceOnly

client = OnceOnly()
run_id = f"checkout:{secrets.token_hex(4)}"  # several jobs can share a timeline

client.post_event(run_id=run_id, type="note", status="started", message="The user clicked on Buy")

client.ai.run_and_wait(f"{run_id}:reserve", metadata={"task": "echo"}, run_id=run_id)
client.ai.run_fn(f"{run_id}:pay", lambda: {"paid": True}, ttl=60, metadata={"run_id": run_id})

client.post_event(run_id=run_id, type="note", status="ok", message="The page was shown", duration_ms=12)

timeline = client.get_run_timeline(run_id, limit=50)
print(f"{timeline['total']} events")
for event in timeline["events"]:
    took = "" if event["duration_ms"] is None else f" {event['duration_ms']} ms"
    print(f"{event['type']}: {event['status']}{took} {event['message'] or ''}".rstrip())

print("Live: onceonly-jobs runs tail, or GET /v1/runs/{run_id}/stream")
