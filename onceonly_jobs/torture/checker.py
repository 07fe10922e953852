"""What must hold after a torture, proven from the clients' history, the witness and the database. Pure functions."""

from __future__ import annotations

import itertools

from onceonly_jobs.torture.checks import governance, keys, metering, runs, tools
from onceonly_jobs.torture.checks.evidence import SLACK_S, Check, Evidence, Violation

__all__ = ["CHECKS", "SLACK_S", "Evidence", "Violation", "check"]

CHECKS: tuple[Check, ...] = (
    keys.one_winner_per_window,
    keys.one_holder_at_a_time,
    keys.stale_holders_are_refused,
    keys.one_answer_per_key,
    runs.accepted_results_were_made,
    runs.fencing_tokens_grow,
    runs.everything_ends,
    tools.tools_are_called_as_they_allow,
    tools.tool_answers_agree,
    governance.every_decision_is_recorded_once,
    governance.every_decision_has_its_outcome,
    governance.the_trail_is_whole,
    governance.budgets_hold,
    governance.nothing_starts_behind_a_switch,
    runs.each_tick_has_its_run,
    metering.the_meter_is_exact,
)


def check(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong; nothing where every promise was kept."""
    return list(itertools.chain.from_iterable(each(evidence) for each in CHECKS))
