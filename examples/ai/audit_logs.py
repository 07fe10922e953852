"""Forensics: every decision about an agent's calls, the refused ones included."""

import secrets
from collections import Counter

from _tools import agent_name, tools

from onceonly_jobs import OnceOnly, OverLimitError

client = OnceOnly()
agent = agent_name("billing-agent")
run = secrets.token_hex(4)
client.gov.upsert_policy(
    {"agent_id": agent, "max_spend_usd_per_day": 5.0, "allowed_tools": ["stripe.charge", "send_receipt"]}
)

# Something to look into.
plan = [("stripe.charge", "A", 2.0), ("stripe.charge", "A", 2.0), ("delete_user", "A", 0.0)]
plan += [("stripe.charge", "B", 4.0), ("send_receipt", "A", 0.01)]
with tools(client, agent, "stripe.charge", "send_receipt"):
    for tool, customer, cost in plan:
        try:
            client.ai.run_tool(
                agent_id=agent, tool=tool, args={"customer": customer, "run": run}, spend_usd=cost
            )
        except OverLimitError as error:
            print(f"refused: {error}")

logs = client.gov.agent_logs(agent, limit=len(plan))  # the newest come first
for log in reversed(logs):
    print(f"{log.tool}: {log.decision} - {log.reason}, risk {log.risk_level}, ${log.spend_usd}")

print(f"By decision: {dict(Counter(log.decision for log in reversed(logs)))}")

# Arguments are not kept, only their hash: equal ones can be found, and nothing leaks.
blocked = client.gov.agent_logs(agent, decision="blocked", limit=10)
print(f"Blocked: {[log.tool for log in blocked]}")
same = {log.args_hash for log in logs if log.tool == "stripe.charge" and log.allowed}
print(f"Charges that were let through, by their arguments: {len(same)}")
