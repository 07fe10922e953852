"""A webhook that its sender delivers three times, and that is handled once."""

import os
import secrets

from onceonly_jobs import OnceOnly

client = OnceOnly()
# As long as the sender may repeat itself. Two hours are plenty for quick retries.
TTL = int(os.environ.get("ONCEONLY_TTL", "7200"))


def handle_payment(event: dict[str, str]) -> None:
    print(f"Handling payment {event['id']}")


def on_webhook(event: dict[str, str]) -> dict[str, str]:
    # The sender's own id of the event names it. It is the same in every delivery.
    result = client.check_lock(key=f"stripe:webhook:{event['id']}", ttl=TTL, meta={"type": event["type"]})
    if result.duplicate:
        return {"status": "already_processed"}
    handle_payment(event)
    return {"status": "processed"}


event = {"id": f"evt_{secrets.token_hex(8)}", "type": "payment_intent.succeeded"}
for delivery in (1, 2, 3):
    print(f"Delivery {delivery}: {on_webhook(event)}")
