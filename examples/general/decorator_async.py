"""The same decorators on coroutine functions: five tasks ask at once, one works."""

import asyncio
import secrets

from onceonly_jobs import OnceOnly, idempotent, idempotent_ai

client = OnceOnly()


@idempotent_ai(client, key_fn=lambda city, day: f"forecast:{city}:{day}", ttl=300, unwrap=True)
async def forecast(city: str, day: str) -> dict[str, int]:
    print(f"Asking the weather service about {city}")
    await asyncio.sleep(0.2)
    return {"high": 21, "low": 12}


@idempotent(client, ttl=3600)
async def subscribe(address: str) -> str:
    return "subscribed"


async def main() -> None:
    run = secrets.token_hex(4)  # stands for the day: new keys for each run of this example
    answers = await asyncio.gather(*(forecast("Lviv", run) for _ in range(5)))
    print(f"Five callers got: {answers[0]}, all the same: {all(one == answers[0] for one in answers)}")
    print(f"First subscription: {await subscribe(f'ann+{run}@example.com')}")
    print(f"Repeat: {await subscribe(f'ann+{run}@example.com')}")
    await client.aclose()


asyncio.run(main())
