"""SQL that decisions are made of: the windows of an agent, the verdict on a call, its reservation.

The rule reads one row, which the caller's transaction has locked (`agents.lock`): sub-statements share a snapshot,
so nothing of the rule may lie in another one. domain/budgets.py is the same rule as a model.
"""

from __future__ import annotations

from onceonly_jobs.domain.governance import HIGH_RISK, MEDIUM_RISK

HOUR = "date_trunc('hour', onceonly_now(), 'UTC')"
DAY = "(onceonly_now() AT TIME ZONE 'UTC')::date"

# What the agent has used in the current windows. A window that is over counts nothing.
USED = f"""
    LATERAL (SELECT
        CASE WHEN a.hour_at = {HOUR} THEN a.hour_actions ELSE 0 END AS actions,
        CASE WHEN a.day_on = {DAY} THEN a.day_spend_micro_usd ELSE 0 END AS spend,
        CASE WHEN a.day_on = {DAY} THEN a.day_calls ELSE '{{}}' END AS calls
    )"""
WINDOWS = f"{USED} w"

# The larger of what the caller declares and the tool's price.
COST = """
    LATERAL (SELECT greatest(
        CAST(:spend_micro_usd AS bigint),
        (SELECT max(ceil((rule->>'price_usd')::numeric * 1000000))::bigint
         FROM jsonb_array_elements(coalesce(a.policy->'pricing_rules', '[]')) rule
         WHERE rule->>'tool' = CAST(:tool AS text))
    ) AS cost) c"""


def permission(tool: str) -> str:
    """CASE branches for what an agent `a` may do at all: the kill switch, then the block and allow lists."""
    return f"""
        WHEN a.disabled_at IS NOT NULL THEN 'agent_disabled'
        WHEN jsonb_exists(a.policy->'blocked_tools', {tool}) THEN 'tool_explicitly_blocked'
        WHEN NOT jsonb_exists(a.policy->'allowed_tools', {tool}) THEN 'tool_not_in_allowed_list'"""


LIMITS = """
        WHEN w.actions + 1 > (a.policy->>'max_actions_per_hour')::numeric THEN 'max_actions_per_hour_exceeded'
        WHEN coalesce((w.calls->>CAST(:tool AS text))::numeric, 0) + 1
             > (a.policy->'max_calls_per_tool'->>CAST(:tool AS text))::numeric
            THEN 'max_calls_per_tool_exceeded'
        WHEN w.spend + c.cost > floor((a.policy->>'max_spend_usd_per_day')::numeric * 1000000)
            THEN 'max_spend_usd_per_day_exceeded'"""

VERDICT = f"""
    SELECT a.tenant_id, a.agent_id, a.policy, a.policy_version, w.actions, w.spend, w.calls, c.cost,
           CASE {permission("CAST(:tool AS text)")} {LIMITS} ELSE 'ok' END AS code
    FROM agents a, {WINDOWS}, {COST}
    WHERE a.tenant_id = :tenant_id AND a.agent_id = :agent_id"""


def reason(code: str) -> str:
    """SQL for the wire's word for a code; domain/governance.REASONS says the same, and a test compares them."""
    return f"""CASE {code} WHEN 'ok' THEN 'within_budget'
    WHEN 'max_spend_usd_per_day_exceeded' THEN 'daily_spend_exceeded'
    WHEN 'tool_explicitly_blocked' THEN 'tool_not_allowed' WHEN 'tool_not_in_allowed_list' THEN 'tool_not_allowed'
    ELSE {code} END"""


REASON = reason("code")


def risk(tool: str) -> str:
    """SQL for domain/governance.risk_level of a tool's name."""
    return (
        f"CASE WHEN lower({tool}) ~ '{'|'.join(HIGH_RISK)}' THEN 'high' "
        f"WHEN lower({tool}) ~ '{'|'.join(MEDIUM_RISK)}' THEN 'medium' ELSE 'low' END"
    )


def window_end(code: str) -> str:
    """SQL for when the window ends of the limit that refused with this code."""
    return f"""CASE {code} WHEN 'max_actions_per_hour_exceeded' THEN {HOUR} + interval '1 hour'
        ELSE ({DAY} + 1)::timestamp AT TIME ZONE 'UTC' END"""


RESERVE = f"""
    UPDATE agents a SET
        hour_at = {HOUR}, hour_actions = v.actions + 1, day_on = {DAY}, day_spend_micro_usd = v.spend + v.cost,
        day_calls = v.calls || jsonb_build_object(
            CAST(:tool AS text), coalesce((v.calls->>CAST(:tool AS text))::bigint, 0) + 1)
    FROM verdict v
    WHERE a.tenant_id = v.tenant_id AND a.agent_id = v.agent_id AND v.code = 'ok'"""


def settlement(source: str, actual: str, given_back: str) -> str:
    """A CTE body that books what the finished runs of `source` really cost, in the windows that reserved it.

    actual: SQL for micro-dollars, null where only the reservation is known. given_back: SQL for whether the call was
    provably never made; then it counts as no action and no call either. A window that is over needs no booking.
    """
    return f"""
    UPDATE agents a SET
        day_spend_micro_usd = a.day_spend_micro_usd + CASE WHEN a.day_on = {DAY} THEN s.difference ELSE 0 END,
        hour_actions = a.hour_actions - CASE WHEN a.hour_at = {HOUR} THEN s.unmade ELSE 0 END,
        day_calls = CASE WHEN a.day_on = {DAY} AND s.unmade_calls IS NOT NULL THEN a.day_calls || (
            SELECT jsonb_object_agg(u.tool, coalesce((a.day_calls->>u.tool)::bigint, 0) - u.unmade::bigint)
            FROM jsonb_each_text(s.unmade_calls) AS u (tool, unmade)) ELSE a.day_calls END
    FROM (
        SELECT tenant_id, agent_id, sum(difference)::bigint AS difference, sum(unmade)::bigint AS unmade,
               jsonb_object_agg(tool, unmade_today) FILTER (WHERE unmade_today > 0) AS unmade_calls
        FROM (
            SELECT tenant_id, agent_id, tool,
                coalesce(sum(booked - reserved_micro_usd) FILTER (WHERE day = {DAY}), 0) AS difference,
                count(*) FILTER (WHERE unmade AND hour = {HOUR}) AS unmade,
                count(*) FILTER (WHERE unmade AND day = {DAY}) AS unmade_today
            FROM (
                SELECT *, (reserved_at AT TIME ZONE 'UTC')::date AS day,
                       date_trunc('hour', reserved_at, 'UTC') AS hour, ({given_back}) AS unmade,
                       {booked(actual, given_back)} AS booked
                FROM {source} WHERE agent_id IS NOT NULL AND reserved_at IS NOT NULL
            ) reserved
            GROUP BY tenant_id, agent_id, tool
        ) per_job
        GROUP BY tenant_id, agent_id
    ) s
    WHERE a.tenant_id = s.tenant_id AND a.agent_id = s.agent_id
      AND (s.difference <> 0 OR s.unmade > 0 OR s.unmade_calls IS NOT NULL)"""


def booked(actual: str, given_back: str) -> str:
    """SQL for what a finished run is charged to its agent, in micro-dollars."""
    return f"CASE WHEN {given_back} THEN 0 ELSE coalesce({actual}, reserved_micro_usd) END"
