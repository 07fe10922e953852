"""Python functions as tools: agents call them by name, under the same governance as HTTP tools."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services.calls import idempotency_key
from onceonly_jobs.worker.arguments import Arguments, BadArguments
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.outcomes import Fail, OutcomeUnknown, Retry, described
from onceonly_jobs.worker.tool_result import error_of

Confirm = Callable[[str, dict[str, Any]], dict[str, Any] | bool | None]
"""Takes a call's idempotency key and arguments. Returns its result if it happened, False if it did not, None if that
can't be told."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The call that a function carries out. A first parameter of this type is given it."""

    agent_id: str
    tool: str
    run_id: str | None
    idempotency_key: str
    """The same in every attempt and repeat of one call: hand it on to whoever must not act twice."""
    job: JobContext
    """The run that carries the call: `check()`, `cancelled`, `progress()`, `log()`, `time_left_s`."""


class ToolFunction:
    """A function that takes a tool's arguments, checked against its annotations before it is called.

    Raises ConfigError for what can't be a tool.
    """

    def __init__(self, name: str, function: Callable[..., Any], effect: Effect) -> None:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(f"tool {name!r}: a generator does nothing when it is called")
        self._name = name
        self._function = function
        self._effect = effect
        self._takes = Arguments(function, ToolContext)

    def handler(self) -> Callable[[JobContext], Any]:
        """The function as the handler of a job."""
        function = self._function
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(ctx: JobContext) -> Any:
                context, arguments = self._given(ctx)
                with self._ending(ctx):
                    return await function(*context, **arguments)

            return awaited

        @functools.wraps(function)
        def called(ctx: JobContext) -> Any:
            context, arguments = self._given(ctx)
            with self._ending(ctx):
                return function(*context, **arguments)

        return called

    def _given(self, ctx: JobContext) -> tuple[tuple[ToolContext, ...], dict[str, Any]]:
        """What the function is called with. Raises Fail: then it was not called."""
        try:
            arguments = self._takes.bind(ctx.metadata["args"])
        except BadArguments as error:
            message = f"wrong arguments: {error}"
            raise Fail(
                "tool_error", message, result=error_of(None, message), repeatable=True, never_made=True
            ) from error
        return ((self._told(ctx),) if self._takes.with_context else ()), arguments

    @contextmanager
    def _ending(self, ctx: JobContext) -> Iterator[None]:
        """Says how it ended: by the function's own word, or as its effect has it."""
        try:
            yield
        except (Retry, OutcomeUnknown):
            raise
        except Fail as end:
            raise _as_told(end) from end
        except Exception as error:
            raise self._went_wrong(ctx, error) from error

    def _told(self, ctx: JobContext) -> ToolContext:
        run_id = ctx.metadata.get("run_id")
        key = idempotency_key(ctx.tenant, ctx.key, ctx.first_seen_at)
        return ToolContext(ctx.metadata["agent_id"], self._name, run_id, key, ctx)

    def _went_wrong(self, ctx: JobContext, error: Exception) -> Exception:
        """How far it came before nobody knows: what can't be repeated is held, by the effect of the claim."""
        message = described(error)
        if Effect(ctx.effect or self._effect).repeatable:
            return Fail("tool_error", message, result=error_of(None, message), repeatable=True)
        return OutcomeUnknown(message, error_of(None, message))


def _as_told(end: Fail) -> Fail:
    """Whoever says Fail says that nothing happened: a repeat may run."""
    message = f"{end.code}: {end.message}" if end.message else end.code
    result = end.result or {**error_of(None, message), "code": end.code}
    return Fail("tool_error", message, result=result, repeatable=True, never_made=end.never_made)
