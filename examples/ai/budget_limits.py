"""Three limits, each of them really exceeded: calls of a tool, dollars a day, actions an hour."""

import secrets

from _tools import agent_name, tools

from onceonly_jobs import OnceOnly, OverLimitError

client = OnceOnly()
agent = agent_name("support-bot")


def set_policy(emails_per_day: int) -> None:
    client.gov.upsert_policy(
        {
            "agent_id": agent,
            "max_actions_per_hour": 5,
            "max_spend_usd_per_day": 1.0,
            "allowed_tools": ["send_email"],
            "max_calls_per_tool": {"send_email": emails_per_day},
        }
    )


def send(what: str, spend_usd: float = 0.02) -> bool:
    """Send one email. False, and the server's words, where a limit says no."""
    args = {"subject": what, "run": run}
    try:
        res = client.ai.run_tool(agent_id=agent, tool="send_email", args=args, spend_usd=spend_usd)
    except OverLimitError as error:
        print(f"{what}: HTTP {error.status_code}, OverLimitError: {error}")
        return False
    print(f"{what}: {res.decision}")
    return True


run = secrets.token_hex(4)  # equal calls would be one call, also those of an earlier run

print("Setting strict budget policy...")
set_policy(emails_per_day=2)
print("Policy set.")
print(f"Metrics: {client.gov.agent_metrics(agent)}")

print("Attempting to exceed limits (simulate)...")
print("When limits are exceeded, API will return OverLimitError or 402.")

with tools(client, agent, "send_email"):
    send("Email 1")
    send("An email for $1.50", spend_usd=1.5)
    send("Email 2")
    send("Email 3")

    set_policy(emails_per_day=50)  # a raised limit counts at once, and what was used stays used
    number = 3
    while send(f"Email {number}") and number < 20:
        number += 1

metrics = client.gov.agent_metrics(agent)
print(
    f"In the end: {metrics.total_actions} executed, {metrics.blocked_actions} refused, "
    f"${metrics.total_spend_usd:.2f} spent"
)
