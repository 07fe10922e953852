"""How runs end whose agent may not go on: the kill switch was thrown, or its policy changed."""

from __future__ import annotations

from onceonly_jobs.store.governance import REASON, permission, risk
from onceonly_jobs.store.rows import CONFIRM_LATER, FINISH, NEVER_SENT, REPEATABLE, finished, held_unknown


def gate(runs: str, *, gives_back: bool = False) -> str:
    """A CTE body: what the agent of a governed run may do now, as `code`. `runs` is SQL for that run's row.

    gives_back: the statement writes to the agent's row where it refuses. Two that shared the lock would each wait for
    the other then.

    Read under a lock that the switch and policy changes wait for: what is allowed here commits before they answer.
    """
    return f"""
    SELECT a.policy_version, CASE {permission("r.tool")} ELSE 'ok' END AS code
    FROM ({runs}) r JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
    FOR {"NO KEY UPDATE" if gives_back else "SHARE"} OF a"""


def stopping(before: str, code: str, why: str, told: str | None = "stopped") -> str:
    """CTEs that end the runs of `before` (locked, with id and state) as failed; `code` and `why` are SQL.

    told: as in `finished`. The runs that were ended are in `stopped`, those of them that are held in `held`.

    A call on its way that can't be repeated may have happened: it is held, not failed, and `why` is its message.
    """
    return f"""
done AS (
    UPDATE runs r SET state = 'failed', error_code = 'policy_blocked', error_message = {code},
        repeatable = {NEVER_SENT}, {FINISH}
    FROM {before} WHERE r.id = {before}.id AND ({before}.state = 'queued' OR {REPEATABLE})
    RETURNING r.*
), held AS (
    UPDATE runs r SET state = 'unknown', version = version + 1, lease_until_at = NULL, publish_at = NULL,
        error_code = 'outcome_unknown', error_message = {why}, {CONFIRM_LATER}
    FROM {before} WHERE r.id = {before}.id AND {before}.state = 'in_progress' AND NOT {REPEATABLE}
    RETURNING r.*
), stopped AS (
    SELECT * FROM done UNION ALL SELECT * FROM held
), {finished("done", given_back="attempt = 0", also=(held_unknown("held"),), told=told)}"""


def blocked_decision(source: str) -> str:
    """A CTE body: the audit row of a refusal after the first decision, whose arguments it shares.

    `source` is SQL for the refused runs, each with the gate's `code` and `policy_version`.
    """
    return f"""
    INSERT INTO audit_decisions (tenant_id, agent_id, tool, run_key, allowed, decision, policy_reason, policy_code,
                                 risk_level, args_hash, policy_version)
    SELECT tenant_id, agent_id, coalesce(tool, job), key, false, 'blocked', {REASON}, code,
           {risk("coalesce(tool, job)")},
           (SELECT d.args_hash FROM audit_decisions d WHERE d.id = decision_id), policy_version
    FROM {source}"""
