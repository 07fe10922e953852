"""The job that makes the tool calls of `metadata.actions`, in their order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from onceonly_jobs.domain.actions import Action, Actions, actions_of
from onceonly_jobs.domain.fingerprint import compact_json, storable
from onceonly_jobs.domain.governance import REASONS, Code
from onceonly_jobs.services import actions as service
from onceonly_jobs.services.calls import Answer, Wanted
from onceonly_jobs.store.actions import Acted
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.interrupt import Interrupted, Reason
from onceonly_jobs.worker.jobs import Job
from onceonly_jobs.worker.lifecycle import Fate, answered, run_job
from onceonly_jobs.worker.outcomes import Fail
from onceonly_jobs.worker.runtime import Runtime

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
"""Between two looks at a call that somebody else carries out."""

TRUNCATED = {"truncated": True}
"""In place of a tool's result that the run's result has no room for."""

_FAILURES = {Code.TOOL_ERROR: "tool_error", Code.OUTCOME_UNKNOWN: "outcome_unknown"}
"""How the run fails with an action that was allowed; with any other it is `policy_blocked`."""


Tools = Callable[[str], Job | None]
"""The job of that name, where this worker serves it."""


def carry_out(ctx: JobContext, runtime: Runtime, tools: Tools) -> dict[str, Any]:
    """What came of each action. Raises Fail at the first that was refused or went wrong, with all until then."""
    asked = actions_of(ctx.metadata)
    shown = _Shown(asked, runtime.settings.max_result_bytes)
    known = {
        each.position: each for each in answered(lambda: runtime.database.run(service.decided, ctx.claim))
    }
    before: list[tuple[str, Acted]] = []
    for action in asked.wanted:
        ctx.check()
        acted = known.get(action.position) or _decided(ctx, runtime, asked, action, before)
        before.append((action.tool, acted))
        if asked.dry_run:
            shown.add(action, service.answer_then(acted))
            continue
        ended = _ended(ctx, runtime, tools, action, acted)
        shown.add(action, ended)
        if not ended.ok:
            raise _failure(action, ended, shown.result())
    return shown.result()


def _decided(
    ctx: JobContext, runtime: Runtime, asked: Actions, action: Action, before: list[tuple[str, Acted]]
) -> Acted:
    wanted = Wanted(
        agent_id=asked.agent_id,
        tool=action.tool,
        args=action.args,
        spend_usd=action.spend_usd,
        queue=runtime.settings.default_queue,
        publish_grace_s=runtime.settings.publish_grace_s,
    )

    def decide() -> Acted | None:
        if asked.dry_run:
            return runtime.database.run(service.foresee, ctx.claim, wanted, action.position, before)
        return runtime.database.run(service.decide, ctx.claim, wanted, action.position)

    return _held(answered(decide))


def _held(acted: Acted | None) -> Acted:
    """What was written under the current claim. Raises Interrupted where it is not current any more."""
    if acted is None:
        raise Interrupted(Reason.LOST)
    return acted


def _ended(ctx: JobContext, runtime: Runtime, tools: Tools, action: Action, acted: Acted) -> Answer:
    """How an action ended, after having seen to it that it does."""
    if acted.outcome is not None:
        return service.answer_then(acted)
    answer = _answer(ctx, runtime, tools, acted)

    def finish() -> Acted | None:
        return runtime.database.run(service.finish, ctx.claim, action.position, action.tool, answer)

    return service.answer_then(_held(answered(finish)))


def _answer(ctx: JobContext, runtime: Runtime, tools: Tools, acted: Acted) -> Answer:
    """What the call has come to. Whoever waits for it carries it out if nobody else does.

    So a call never waits for a free worker, even if all of them are busy with runs like this one.
    """
    assert acted.call_id is not None, "a call follows"  # noqa: S101
    pause_s = FIRST_PAUSE_S
    while True:
        ctx.check()
        answer = answered(lambda: runtime.database.run(service.answer, acted))
        if isinstance(answer, Answer):
            return answer
        job = tools(answer)
        if job is None or not _carried_out(ctx, runtime, job, acted.call_id):
            time.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


def _carried_out(ctx: JobContext, runtime: Runtime, job: Job, call: int) -> bool:
    """False when there was nothing to do: somebody else is at it."""
    with ctx.interrupt.lent() as interrupt:
        outcome = run_job(runtime, job, call, interrupt)
    return outcome.fate not in (Fate.NOT_CLAIMED, Fate.UNREACHABLE)


def _failure(action: Action, ended: Answer, result: dict[str, Any]) -> Fail:
    why = REASONS[ended.code] if ended.message is None else f"{REASONS[ended.code]}: {ended.message}"
    code = _FAILURES.get(ended.code, "policy_blocked")
    return Fail(code, f"action {action.position}, {action.tool}: {why}", result=result)


class _Shown:
    """The run's result as far as it goes. What does not fit the limit loses the largest results of tools first."""

    def __init__(self, asked: Actions, limit_bytes: int) -> None:
        self._asked = asked
        self._limit_bytes = limit_bytes
        self._entries: list[dict[str, Any]] = []

    def add(self, action: Action, ended: Answer) -> None:
        self._entries.append(
            {
                "tool": action.tool,
                "decision": ended.decision,
                "policy_reason": REASONS[ended.code],
                "ok": ended.ok,
                "result": ended.result if storable(ended.result) is None else TRUNCATED,
            }
        )

    def result(self) -> dict[str, Any]:
        entries = list(self._entries)
        sizes = [len(compact_json(entry["result"])) for entry in entries]
        too_much = self._size(entries) - self._limit_bytes
        for n in sorted(range(len(entries)), key=sizes.__getitem__, reverse=True):
            saved = sizes[n] - len(compact_json(TRUNCATED))
            if too_much <= 0 or saved <= 0:
                break
            entries[n] = {**entries[n], "result": TRUNCATED}
            too_much -= saved
        while self._size(entries) > self._limit_bytes:
            entries.pop()
        return self._document(entries)

    def _size(self, entries: list[dict[str, Any]]) -> int:
        return len(compact_json(self._document(entries)))

    def _document(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        left_out = len(self._entries) - len(entries)
        return {
            "actions": entries,
            **({"dry_run": True} if self._asked.dry_run else {}),
            **({"ignored": self._asked.ignored} if self._asked.ignored else {}),
            **({"truncated": left_out} if left_out else {}),
        }
