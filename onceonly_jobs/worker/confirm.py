"""Asks a reconcilable tool whether a call of unknown outcome has happened, and settles it by the answer."""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import json
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

from celery import Celery
from pydantic import ValidationError

from onceonly_jobs.contracts.unknown import SettleRequest
from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.effects import succeeded
from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.errors import NotFound, SecretUnreadable, SettlementConflict
from onceonly_jobs.services import tools, unknown
from onceonly_jobs.services.calls import idempotency_key
from onceonly_jobs.store.tools import Tool
from onceonly_jobs.store.unknown import UnknownCall
from onceonly_jobs.worker.addresses import Forbidden
from onceonly_jobs.worker.interrupt import Interrupted, within
from onceonly_jobs.worker.jobs import Registry
from onceonly_jobs.worker.keeper import STDERR
from onceonly_jobs.worker.outcomes import described
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.tool_call import signed_headers, url_of
from onceonly_jobs.worker.tool_result import MAX_ANSWER_BYTES
from onceonly_jobs.worker.tool_wire import Answer, Lost, NotSent, post

logger = logging.getLogger(__name__)

ACTOR = "confirmer"
CONFIRM_S = 15


class StillUnknown(Exception):
    """The confirmer could not tell, and why. The database knows when it is asked again, if ever."""


def add_task(app: Celery, runtime: Runtime, jobs: Registry, allowed: Allowed) -> None:
    """Serve the relay's messages about calls that are to be confirmed."""

    def execute(run: int, **_shown: Any) -> str:
        return confirm(runtime, jobs, run, allowed)

    app.task(execute, name=unknown.CONFIRM, shared=False, lazy=False, ignore_result=True)


def confirm(runtime: Runtime, jobs: Registry, run: int, allowed: Allowed) -> str:
    """What came of asking once. A worker that dies meanwhile loses nothing: the next time is in the database."""
    limit = runtime.settings.max_result_bytes
    held, call = runtime.database.run(unknown.confirmable, run), None
    try:
        if held is not None:
            call, tool = held
            request = _verdict(call, _said(_ask(runtime, call, tool, allowed)), limit)
        else:
            call = runtime.database.run(unknown.function_call, run)
            if call is None:
                return "nothing to confirm"
            request = _verdict(call, _asked(runtime, jobs, call), limit)
    except StillUnknown as still:
        logger.info("call %s: still unknown: %s", call.key if call else run, still)
        return "still unknown"
    try:
        runtime.database.run(unknown.settle, call.tenant_id, ACTOR, request, runtime.settings.retention_s)
    except (NotFound, SettlementConflict) as other:
        logger.info("call %s: settled meanwhile: %s", call.key, other)
        return "settled meanwhile"
    runtime.hints.finished(call.tenant_id, call.key)
    return "happened" if request.happened else "did not happen"


def _ask(runtime: Runtime, call: UnknownCall, tool: Tool, allowed: Allowed) -> Answer:
    """The confirmer's answer. Raises StillUnknown where there is none."""
    key = idempotency_key(call.tenant_id, call.key, call.first_seen_at)
    body = compact_json(
        {"idempotency_key": key, "tool": call.tool, "agent_id": call.agent_id, "args": call.args}
    )
    try:
        secret = tools.secret_of(tool, tools.vault_of(runtime.settings))
        return post(
            url_of(tool.confirm_url or ""),
            signed_headers(secret, body, key),
            body,
            allowed=allowed,
            timeout_s=tool.timeout_ms / 1000,
            limit=MAX_ANSWER_BYTES,
        )
    except (SecretUnreadable, Forbidden, NotSent, Lost) as error:
        raise StillUnknown(str(error)) from error


def _asked(runtime: Runtime, jobs: Registry, call: UnknownCall) -> dict[str, Any]:
    """What the function's own confirmer says. Raises StillUnknown where it says nothing."""
    job = jobs.get(call.job)
    if job is None or job.confirm is None:
        raise StillUnknown("this worker has no confirmer for it")
    ask, key = job.confirm, idempotency_key(call.tenant_id, call.key, call.first_seen_at)
    try:
        said = _answer_of(runtime, job.time_limit_s or CONFIRM_S, lambda: _ran(ask(key, call.args)))
        said = json.loads(compact_json(said))  # as it would come over HTTP
    except Interrupted:
        raise StillUnknown("the confirmer took too long, or its worker ends") from None
    except Exception as error:
        raise StillUnknown(f"the confirmer failed: {described(error)}") from error
    if said is False:
        return {"happened": False}
    return {"happened": True, "result": said} if isinstance(said, dict) else {}


def _answer_of(runtime: Runtime, limit_s: float, ask: Callable[[], Any]) -> Any:
    """What a confirmer returns in time. The process of one that can't be interrupted ends. Raises Interrupted."""

    def give_up() -> None:
        if runtime.expendable:
            logger.error("a confirmer won't stop, its process ends")
            os.kill(os.getpid(), signal.SIGKILL)

    grace_s = runtime.settings.time_limit_grace_s
    if runtime.expendable:  # should it hold the interpreter
        faulthandler.dump_traceback_later(limit_s + 2 * grace_s, exit=True, file=STDERR)
    try:
        return within(
            limit_s, ask, told_to_end=lambda: runtime.shared.out_of_time, grace_s=grace_s, give_up=give_up
        )
    finally:
        if runtime.expendable:
            faulthandler.cancel_dump_traceback_later()


def _ran(returned: Any) -> Any:
    """What was returned, or what the coroutine returns that was."""
    return asyncio.run(returned) if inspect.iscoroutine(returned) else returned


def _said(answer: Answer) -> Any:
    """The answer's JSON. Raises StillUnknown where there is none."""
    if not succeeded(answer.status) or not answer.whole:
        raise StillUnknown(f"the confirmer answered {answer.status}")
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise StillUnknown("the confirmer's answer is not JSON") from None


def _verdict(call: UnknownCall, said: Any, limit_bytes: int) -> SettleRequest:
    """What was said. Raises StillUnknown for all that is not plainly one or the other."""
    if not isinstance(said, dict) or said.get("happened") not in (True, False):
        raise StillUnknown("the confirmer's answer does not say")
    if said["happened"] and not isinstance(said.get("result"), dict):
        raise StillUnknown("the confirmer's answer has no result")
    fields = {name: said.get(name) for name in ("happened", "result", "cost_usd")}
    try:
        request = SettleRequest.model_validate({"key": call.key, "decision_id": call.decision_id, **fields})
    except ValidationError as error:
        raise StillUnknown(f"the confirmer's answer can't be used: {error.error_count()} errors") from None
    why = unknown.too_large(request, limit_bytes)
    if why is not None:
        raise StillUnknown(why)
    return request
