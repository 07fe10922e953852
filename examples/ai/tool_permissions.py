"""Which tools an agent may call: a list of what is allowed, and one of what never is."""

import secrets

from _tools import agent_name, tools

from onceonly_jobs import OnceOnly

client = OnceOnly()
agent = agent_name("support-bot")
ticket = secrets.token_hex(4)

print("Setting tool permission policy...")
policy = client.gov.upsert_policy(
    {
        "agent_id": agent,
        "allowed_tools": ["send_email", "stripe.refund"],
        "blocked_tools": ["stripe.charge", "delete_user"],
    }
)
print("Policy applied.")

print("This agent can:")
for tool in policy.allowed_tools or []:
    print(f"✓ {tool}")
print("This agent CANNOT call:")
for tool in policy.blocked_tools or []:
    print(f"✗ {tool}")
print(
    "If the agent tries to call a blocked tool via `ai.run_tool`, "
    "you'll get `allowed=False` with a `policy_reason`."
)

# All three exist. Only the policy keeps the agent from two of them.
with tools(client, agent, "send_email", "delete_user", "export_data") as effects:
    for tool in ("send_email", "delete_user", "export_data"):
        res = client.ai.run_tool(agent_id=agent, tool=tool, args={"ticket": ticket}, spend_usd=0.02)
        if res.allowed:
            print(f"Executed: {tool}, {res.result}")
        else:
            print(f"Blocked: {tool}, {res.policy_reason}")
    print(f"The tools were called {len(effects)} time")
