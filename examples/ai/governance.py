"""The whole of governance: a policy, what the agent did, the kill switch, the audit trail."""

import secrets

from _tools import agent_name, tools

from onceonly_jobs import OnceOnly

client = OnceOnly()
agent = agent_name("billing-agent")
run = secrets.token_hex(4)

print("Setting policy...")
client.gov.upsert_policy(
    {
        "agent_id": agent,
        "max_actions_per_hour": 200,
        "max_spend_usd_per_day": 50.0,
        "allowed_tools": ["stripe.charge", "send_email"],
    }
)

# A day's work, so that there is something to see: 15 charges of $0.50. An agent that was named by
# ONCEONLY_AGENT_ID and has worked today already only makes those that are missing.
with tools(client, agent, "stripe.charge"):
    for number in range(client.gov.agent_metrics(agent).total_actions, 15):
        invoice = f"{run}-{number}"  # equal calls would be one call
        client.ai.run_tool(agent_id=agent, tool="stripe.charge", args={"invoice": invoice}, spend_usd=0.5)

metrics = client.gov.agent_metrics(agent)
print(f"Metrics: {metrics}")

print("Disabling agent...")
client.gov.disable_agent(agent, reason="Nightly review")

print("Re-enabling agent...")
client.gov.enable_agent(agent)

logs = client.gov.agent_logs(agent)
print(f"Logs count: {len(logs)}")
print(f"First 3: {logs[:3]}")
