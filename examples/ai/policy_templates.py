"""Policies from templates, as they are and with changes."""

from _tools import agent_name

from onceonly_jobs import OnceOnly, Policy

client = OnceOnly()
agent = agent_name("trainee")


def show(title: str, policy: Policy) -> None:
    print(title)
    for limit in ("max_actions_per_hour", "max_spend_usd_per_day", "allowed_tools", "blocked_tools"):
        if limit in policy.policy:
            print(f"  {limit}: {policy.policy[limit]}")


for template in ("strict", "moderate", "permissive", "read_only", "support_bot"):
    show(template, client.gov.policy_from_template(agent, template))

# Overrides take the place of the template's own values, field by field.
changed = client.gov.policy_from_template(agent, "moderate", {"max_spend_usd_per_day": 5.0})
show("moderate, with a smaller budget", changed)

# An agent has one policy: the last one that was set.
in_force = client.gov.get_policy(agent)
print(f"In force: the last one: {in_force.policy == changed.policy}")
