"""A function that runs once per key: later calls get the result of the first."""

import secrets

from onceonly_jobs import OnceOnly, idempotent_ai

client = OnceOnly()


@idempotent_ai(client, key_fn=lambda user_id: f"welcome:{user_id}", ttl=86400)
def send_welcome_email(user_id: str) -> dict[str, bool]:
    print(f"Sending to {user_id}")
    return {"sent": True}


user_id = f"user_{secrets.token_hex(4)}"
first = send_welcome_email(user_id)
print(f"First call: {first.status}, {first.result}")
second = send_welcome_email(user_id)
print(f"Second call: {second.status}, {second.result}, not sent again")
