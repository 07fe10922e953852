"""The kill switch: an agent that does what it should not is stopped at its next call."""

import secrets

from _tools import agent_name, tools

from onceonly_jobs import OnceOnly

client = OnceOnly()
agent = agent_name("suspicious-agent")
run = secrets.token_hex(4)
client.gov.upsert_policy({"agent_id": agent, "max_actions_per_hour": 500})


def call(number: int, spend_usd: float) -> None:
    args = {"payment": f"{run}-{number}"}
    res = client.ai.run_tool(agent_id=agent, tool="pay", args=args, spend_usd=spend_usd)
    print(f"Call {number}: allowed={res.allowed}, {res.policy_reason}")


with tools(client, agent, "pay") as payments:
    call(1, spend_usd=0.5)
    call(2, spend_usd=12.0)

    status = client.gov.disable_agent(agent, reason="Unusual spending pattern detected")
    print(f"Disabled: enabled={status.is_enabled}, {status.disabled_reason}")
    call(3, spend_usd=12.0)
    call(2, spend_usd=12.0)  # not even the answer to a call that was made before

    for log in client.gov.agent_logs(agent, limit=100):
        if log.spend_usd > 10:
            print(f"⚠️ High cost: {log.tool} - ${log.spend_usd}")

    status = client.gov.enable_agent(agent, reason="Reviewed")
    print(f"Enabled: enabled={status.is_enabled}")
    call(3, spend_usd=12.0)
    print(f"Payments made: {len(payments)}")
