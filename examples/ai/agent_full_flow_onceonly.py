"""The same agent, guarded: it dies half-way, it is started again, and the customer pays once."""

import secrets
from collections.abc import Iterator

from _tools import agent_name, tools

from onceonly_jobs import OnceOnly

client = OnceOnly()
agent = agent_name("sales-agent")
order = f"order-{secrets.token_hex(4)}"


def scripted_llm(task: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Stands in for a language model: the tool calls that one would ask for, always the same ones."""
    yield "charge", {"order": task, "amount": "42.00"}
    yield "send_email", {"order": task, "text": "Thank you for your order"}
    yield "delete_user", {"order": task}  # models do ask for such things


def call_tool(tool: str, args: dict[str, str]) -> None:
    # The same call by the same agent is one call: a repeat is answered, and costs nothing.
    res = client.ai.run_tool(agent_id=agent, tool=tool, args=args, spend_usd=0.01)
    print(f"  {tool}: {res.decision}, {res.policy_reason}")


def run_agent(task: str, *, dies_after: str | None = None) -> None:
    for tool, args in scripted_llm(task):
        call_tool(tool, args)
        if tool == dies_after:  # stands for a crash, a lost connection, a deployment
            raise ConnectionError(f"the process died after {tool}")


client.gov.upsert_policy(
    {
        "agent_id": agent,
        "max_actions_per_hour": 50,
        "max_spend_usd_per_day": 5.0,
        "allowed_tools": ["charge", "send_email"],
    }
)
with tools(client, agent, "charge", "send_email", "delete_user") as effects:
    print("First attempt")
    try:
        run_agent(order, dies_after="charge")
    except ConnectionError as error:
        print(f"  {error}")

    print("Second attempt")
    run_agent(order)

made = [effect["tool"] for effect in effects]
print(
    f"Charges made: {made.count('charge')}, emails sent: {made.count('send_email')}, others: {len(made) - 2}"
)
metrics = client.gov.agent_metrics(agent)
print(
    f"Booked: ${metrics.total_spend_usd:.2f} for {metrics.total_actions} calls, {metrics.blocked_actions} refused"
)
print("✅ The customer was charged once.")
