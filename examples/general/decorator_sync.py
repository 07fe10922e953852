"""Two decorators for plain functions: a lock that skips repeats, and a lease that answers them."""

import secrets
from concurrent.futures import ThreadPoolExecutor

from onceonly_jobs import OnceOnly, idempotent, idempotent_ai

client = OnceOnly()
order_id = secrets.token_hex(4)


# The key is made from the function's name and its arguments. A repeat returns None.
@idempotent(client, ttl=3600)
def notify_warehouse(order_id: str, items: int) -> str:
    return f"warehouse told of {items} items"


print(f"First call: {notify_warehouse(order_id, items=3)}")
print(f"Repeat: {notify_warehouse(order_id, items=3)}")
print(f"Other arguments: {notify_warehouse(order_id, items=4)}")


# unwrap=True: the function keeps its return type, and every caller gets what the one execution returned.
@idempotent_ai(client, key_fn=lambda order_id: f"order:{order_id}:total", ttl=300, unwrap=True)
def total_cents(order_id: str) -> int:
    print("Adding up")
    return 4250


with ThreadPoolExecutor(4) as pool:
    print(f"Four callers at once: {list(pool.map(total_cents, [order_id] * 4))}")
