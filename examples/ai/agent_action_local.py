"""An agent's action that runs in this process, once: with its result kept for every later caller."""

import secrets

from onceonly_jobs import OnceOnly

client = OnceOnly()
action = f"agent:billing:action:{secrets.token_hex(4)}"


def charge() -> dict[str, int]:
    print("Charging the card")
    return {"charged_cents": 4200}


# A lease is taken, extended while the function runs, and ended with its result.
for attempt in ("First", "Second"):
    outcome = client.ai.run_fn(f"{action}:charge", charge, ttl=300)
    print(f"{attempt} attempt: {outcome.status}, {outcome.result}")


def refund() -> None:
    raise RuntimeError("the bank is closed")


# A failure is an outcome too. It is kept: nobody tries again by accident.
try:
    client.ai.run_fn(f"{action}:refund", refund, ttl=300, error_code="bank_closed")
except RuntimeError as error:
    print(f"First refund: {error}")
again = client.ai.run_fn(f"{action}:refund", refund, ttl=300)
print(f"Second refund: {again.status}, {again.error_code}")

# The same as a block.
with client.lease(f"{action}:receipt", ttl=300) as lease:
    if lease.acquired:
        lease.set_result({"receipt": "R-1"})
print(f"Receipt: {client.ai.result(f'{action}:receipt').result}")
