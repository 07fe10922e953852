"""SQL that decisions are made of: the windows of an agent, the verdict on a call, its reservation.

The rule reads one row, which the statement locks: of a locked row it sees what was committed last, and of all others
what its snapshot shows. So nothing of the rule may lie in another row; where something does, as the repeats of a call
do, there is `as_seen`. domain/budgets.py is the same rule as a model.
"""

from __future__ import annotations

from onceonly_jobs.domain.governance import HIGH_RISK, MEDIUM_RISK

# Not the replay of an earlier run under the same key, which a version that does not know of replays leaves there.
REPLAYED = "(coalesce(concludes_id, 0) > coalesce(decision_id, 0))"

HOUR = "date_trunc('hour', onceonly_now(), 'UTC')"
DAY = "(onceonly_now() AT TIME ZONE 'UTC')::date"

# What the agent has used in the current windows. A window that is over counts nothing. OFFSET 0, here and below: worked
# out once for a row, and not again for each mention.
WINDOWS = f"""
    LATERAL (SELECT
        CASE WHEN a.hour_at = {HOUR} THEN a.hour_actions ELSE 0 END AS actions,
        CASE WHEN a.day_on = {DAY} THEN a.day_spend_micro_usd ELSE 0 END AS spend,
        CASE WHEN a.day_on = {DAY} THEN a.day_calls ELSE '{{}}' END AS calls
        OFFSET 0
    ) w"""


def cost(tool: str, declared: str) -> str:
    """SQL for the larger of what the caller declares and the tool's price, of an agent `a`, as `c.cost`."""
    return f"""
    LATERAL (SELECT greatest(
        {declared},
        (SELECT max(ceil((rule->>'price_usd')::numeric * 1000000))::bigint
         FROM jsonb_array_elements(coalesce(a.policy->'pricing_rules', '[]')) rule
         WHERE rule->>'tool' = {tool})
    ) AS cost OFFSET 0) c"""


def permission(tool: str) -> str:
    """CASE branches for what an agent `a` may do at all: the kill switch, then the block and allow lists."""
    return f"""
        WHEN a.disabled_at IS NOT NULL THEN 'agent_disabled'
        WHEN jsonb_exists(a.policy->'blocked_tools', {tool}) THEN 'tool_explicitly_blocked'
        WHEN NOT jsonb_exists(a.policy->'allowed_tools', {tool}) THEN 'tool_not_in_allowed_list'"""


def limits(
    tool: str,
    *,
    policy: str = "a.policy",
    used: str = "w",
    actions: str = "1",
    calls: str = "1",
    spend: str = "c.cost",
) -> str:
    """CASE branches for what an agent may not do any more: that much, on top of what it has `used`."""
    return f"""
        WHEN {used}.actions + {actions} > ({policy}->>'max_actions_per_hour')::numeric
            THEN 'max_actions_per_hour_exceeded'
        WHEN coalesce(({used}.calls->>{tool})::numeric, 0) + {calls}
             > ({policy}->'max_calls_per_tool'->>{tool})::numeric
            THEN 'max_calls_per_tool_exceeded'
        WHEN {used}.spend + {spend} > floor(({policy}->>'max_spend_usd_per_day')::numeric * 1000000)
            THEN 'max_spend_usd_per_day_exceeded'"""


# In the order of their names, so that no two of these statements wait for each other. Whoever is decided on waits for
# the decision before, and then sees what it has used. as_seen: and had seen it before, so the snapshot has all that the
# decision before has left behind.
AGENTS = """
agent AS MATERIALIZED (
    SELECT q.n, a.*, a.xmin = (
        SELECT s.xmin FROM agents s WHERE s.tenant_id = q.tenant_id AND s.agent_id = q.agent_id
    ) AS as_seen
    FROM asked q JOIN agents a ON a.tenant_id = q.tenant_id AND a.agent_id = q.agent_id
    ORDER BY a.tenant_id, a.agent_id FOR NO KEY UPDATE OF a
)"""

LIMITS = "('max_actions_per_hour_exceeded', 'max_calls_per_tool_exceeded', 'max_spend_usd_per_day_exceeded')"
"""SQL for the codes of `limits`."""


_NOW = "(onceonly_now() + (clock_timestamp() - statement_timestamp()))"
_OUTRUN = f"""(coalesce(a.hour_at > {HOUR} AND a.hour_at <= {_NOW}, false)
        OR coalesce(a.day_on > {DAY} AND a.day_on <= ({_NOW} AT TIME ZONE 'UTC')::date, false))"""
"""SQL for whether an hour or a day began, and the agent `a` has used of it, while this statement waited for the agent:
its own window is over, and to count in it would forget the other. Not so where a clock was set back."""


def alone(
    tool: str, *, between: str = "", actions: str = "1", calls: str = "1", spend: str = "c.cost"
) -> str:
    """SELECT of what becomes of each that is `asked` for if it is the only one, of its `agent`: see AGENTS.

    tool is SQL. between: CASE branches for what comes before the limits. The others are what it uses of the windows.
    Nothing is said of whom the windows have outrun.
    """
    return f"""
    SELECT q.n, {tool} AS tool, a.tenant_id, a.agent_id, a.policy, a.policy_version, w.actions, w.spend, w.calls,
           c.cost, CASE {permission(tool)} {between}
               {limits(tool, actions=actions, calls=calls, spend=spend)} ELSE 'ok' END AS code
    FROM asked q JOIN agent a USING (n), {WINDOWS}, {cost(tool, "q.spend_micro_usd")}
    WHERE NOT {_OUTRUN}"""


_SO_FAR = "FILTER (WHERE code = 'ok') OVER (PARTITION BY tenant_id, agent_id{} ORDER BY n)"


NEXT_DECISION = "nextval('audit_decisions_id_seq')"


def together(alone: str) -> str:
    """SELECT of the verdicts on several that ask at once, of what becomes of each `alone`, with ids for the decisions.

    Whoever is refused would have been refused as the first of them, and whoever is let in would have been let in as
    the last: in that order they have their ids. Of anybody else nothing is said: it depends on the others.
    """
    return f"""
    SELECT *, {NEXT_DECISION} AS decision_id FROM (
        SELECT * FROM (
            SELECT *, count(*) {_SO_FAR.format("")} AS nth, count(*) {
        _SO_FAR.format(", tool")
    } AS nth_of_tool,
                   sum(cost) {_SO_FAR.format("")} AS cost_so_far
            FROM ({alone}) alone
        ) v WHERE code <> 'ok' OR nth = 1 OR 'ok' = CASE {
        limits(
            "v.tool",
            policy="v.policy",
            used="v",
            actions="v.nth",
            calls="v.nth_of_tool",
            spend="v.cost_so_far",
        )
    } ELSE 'ok' END
        ORDER BY code = 'ok', n
    ) ordered"""


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
        hour_at = {HOUR}, hour_actions = s.actions + s.made, day_on = {DAY}, day_spend_micro_usd = s.spend + s.cost,
        day_calls = s.calls || s.made_now
    FROM (
        SELECT tenant_id, agent_id, actions, spend, calls, sum(made)::integer AS made, sum(cost)::bigint AS cost,
               jsonb_object_agg(tool, coalesce((calls->>tool)::bigint, 0) + made) AS made_now
        FROM (
            SELECT v.tenant_id, v.agent_id, v.tool, v.actions, v.spend, v.calls, count(*) AS made, sum(v.cost) AS cost
            FROM verdict v JOIN won USING (n) WHERE v.code = 'ok'
            GROUP BY v.tenant_id, v.agent_id, v.tool, v.actions, v.spend, v.calls
        ) per_tool
        GROUP BY tenant_id, agent_id, actions, spend, calls
    ) s
    WHERE a.tenant_id = s.tenant_id AND a.agent_id = s.agent_id"""


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
                coalesce(sum(difference) FILTER (WHERE day = {DAY}), 0) AS difference,
                count(*) FILTER (WHERE unmade AND hour = {HOUR}) AS unmade,
                count(*) FILTER (WHERE unmade AND day = {DAY}) AS unmade_today
            FROM (
                SELECT *, (reserved_at AT TIME ZONE 'UTC')::date AS day,
                       date_trunc('hour', reserved_at, 'UTC') AS hour,
                       ({given_back}) AND NOT {REPLAYED} AS unmade,
                       {charged(actual, given_back)} - CASE WHEN {REPLAYED} THEN 0 ELSE reserved_micro_usd END
                           AS difference
                FROM {source} WHERE agent_id IS NOT NULL AND reserved_at IS NOT NULL
            ) reserved
            GROUP BY tenant_id, agent_id, tool
        ) per_job
        GROUP BY tenant_id, agent_id
    ) s
    WHERE a.tenant_id = s.tenant_id AND a.agent_id = s.agent_id
      AND (s.difference <> 0 OR s.unmade > 0 OR s.unmade_calls IS NOT NULL)"""


def agents_first(ended: str) -> str:
    """A CTE `booked` that holds the agents of runs whose end is booked, before anything holds the runs: AGENTS_HELD.

    ended is SQL for their tenant_id and agent_id. Whoever decides on an agent holds its row first, and then waits for a
    run: to end the run first and then wait for the agent would close a circle.
    """
    return f"""booked AS MATERIALIZED (
    SELECT FROM ({ended}) r JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
    ORDER BY a.tenant_id, a.agent_id FOR NO KEY UPDATE OF a
)"""


AGENTS_HELD = "(SELECT count(*) FROM booked) >= 0"
"""SQL that is true, once `booked` was read: a guard of whatever holds the runs."""


def charged(actual: str, given_back: str) -> str:
    """SQL for what its agent is charged for a run that ends, in micro-dollars.

    The end of a replayed run is charged only for what it cost above what the run's failure has booked.
    """
    return f"""CASE WHEN {REPLAYED} THEN greatest({actual}, reserved_micro_usd) - reserved_micro_usd
        WHEN {given_back} THEN 0 ELSE coalesce({actual}, reserved_micro_usd) END"""
