"""Figures to watch: an agent's hour, day and week, an alert before its budget ends, the account's days."""

import secrets
from datetime import UTC, datetime, timedelta

from _tools import agent_name, tools

from onceonly_jobs import OnceOnly, OverLimitError

ALERT_AT = 0.8

client = OnceOnly()
agent = agent_name("research-agent")
run = secrets.token_hex(4)
policy = client.gov.upsert_policy({"agent_id": agent, "max_spend_usd_per_day": 1.0})
budget = policy.max_spend_usd_per_day or 0.0


def watch() -> None:
    metrics = client.gov.agent_metrics(agent, period="day")
    used = metrics.total_spend_usd / budget
    alert = "  <- ALERT" if used >= ALERT_AT else ""
    print(f"${metrics.total_spend_usd:.2f} of ${budget:.2f} spent ({used:.0%}){alert}")


with tools(client, agent, "search", "summarize"):
    for number, tool in enumerate(["search", "search", "search", "summarize", "search"]):
        try:
            client.ai.run_tool(agent_id=agent, tool=tool, args={"q": f"{run}-{number}"}, spend_usd=0.21)
        except OverLimitError as error:
            print(f"Too late: {error}")
            break
        watch()

for period in ("hour", "day", "week"):
    metrics = client.gov.agent_metrics(agent, period=period)
    print(f"{period}: {metrics.total_actions} actions, {metrics.blocked_actions} refused")
print(f"Top tools: {client.gov.agent_metrics(agent).top_tools}")

today = datetime.now(UTC).date()
days = client.metrics(str(today - timedelta(days=6)), str(today))["items"]
print(f"The account's last day with traffic: {days[-1]['ai']['requests_total']} requests for AI work")
