"""A LangChain tool that acts once per input, however often the model asks for it."""

import secrets
import sys

from onceonly_jobs import OnceOnly
from onceonly_jobs.integrations.langchain import make_idempotent_tool

try:
    from langchain_core.tools import tool
except ModuleNotFoundError:
    sys.exit("This example needs LangChain: pip install langchain-core")

client = OnceOnly()
sent: list[str] = []


@tool
def send_email(to: str, subject: str) -> str:
    """Send email"""
    sent.append(to)
    return f"Sent to {to}"


safe_email = make_idempotent_tool(send_email, client=client, ttl=3600)
# Name, description and schema are the tool's own: an agent takes it like any other, e.g.
# create_react_agent(llm, tools=[safe_email], prompt)
print(f"Tool: {safe_email.name}, arguments: {sorted(safe_email.args)}")

# What a model's tool calls do. The call's id is new each time, the input is not.
email = {"to": "user@example.com", "subject": f"Order {secrets.token_hex(4)}"}
for call_id in ("call_1", "call_2"):
    answer = safe_email.invoke({"type": "tool_call", "id": call_id, "name": "send_email", "args": email})
    print(f"{call_id}: {answer.content}")

other = safe_email.invoke({**email, "to": "someone@example.com"})
print(f"Another input: {other}")
print(f"Emails sent: {len(sent)}")
