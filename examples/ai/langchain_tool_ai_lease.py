"""LangChain tools under a lease: a repeat gets the first answer instead of being skipped."""

import asyncio
import secrets
import sys

from onceonly_jobs import OnceOnly, idempotent_ai
from onceonly_jobs.integrations.langchain import make_idempotent_tool

try:
    from langchain_core.tools import tool
except ModuleNotFoundError:
    sys.exit("This example needs LangChain: pip install langchain-core")

client = OnceOnly()
run = secrets.token_hex(4)
calls: list[str] = []


# Around an existing tool: replay keeps what the first call returned, for agents that need the answer.
@tool
def book_room(guest: str, night: str) -> dict[str, str]:
    """Book a hotel room"""
    calls.append("book_room")
    return {"booking": "B-1", "guest": guest}


safe_booking = make_idempotent_tool(book_room, client=client, ttl=300, on_repeat="replay")
for attempt in ("First call", "Repeat"):
    print(f"{attempt}: {safe_booking.invoke({'guest': 'Ann', 'night': run})}")


# Inside a tool of your own: the key is chosen, here the order alone, so a changed amount is no second refund.
@tool
async def refund(order: str, amount: float) -> str:
    """Refund an order"""

    @idempotent_ai(client, key=f"refund:{order}", ttl=300, unwrap=True)
    async def once() -> str:
        calls.append("refund")
        return f"refunded ${amount:.2f}"

    return await once()


async def ask_for_refunds() -> None:
    print(f"Refund: {await refund.ainvoke({'order': run, 'amount': 10.0})}")
    print(f"A larger one: {await refund.ainvoke({'order': run, 'amount': 99.0})}")
    await client.aclose()


asyncio.run(ask_for_refunds())

print(f"Calls made: {calls}")
