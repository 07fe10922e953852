"""A result, fetched by its key: by another process, or days later."""

import secrets

from onceonly_jobs import ApiError, OnceOnly

key = f"result:{secrets.token_hex(4)}"

# One process asks for the work ...
OnceOnly().ai.run_and_wait(key, metadata={"task": "echo", "question": "6 * 7"})

# ... and another one, which knows the key alone, fetches what came of it.
client = OnceOnly()
result = client.ai.result(key)
assert result.result is not None
print(f"{result.status} at {result.done_at}: {result.result['metadata']}")
print(f"Hash of the result: {result.result_hash}")

# Nobody has asked for this one.
try:
    client.ai.result(f"{key}:unknown")
except ApiError as error:
    print(f"HTTP {error.status_code}, {error.code}")
