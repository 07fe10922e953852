"""Python functions as tools: agents call them by name, under the same governance as HTTP tools."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services.calls import idempotency_key
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.outcomes import Fail, OutcomeUnknown, Retry, described
from onceonly_jobs.worker.tool_result import error_of

Confirm = Callable[[str, dict[str, Any]], dict[str, Any] | bool | None]
"""Takes a call's idempotency key and arguments. Returns its result if it happened, False if it did not, None if that
can't be told."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The call that a function carries out. It is given to a parameter of this type."""

    agent_id: str
    tool: str
    run_id: str | None
    idempotency_key: str
    """The same in every attempt and repeat of one call: hand it on to whoever must not act twice."""
    job: JobContext
    """The run that carries the call: `check()`, `cancelled`, `progress()`, `log()`, `time_left_s`."""


class ToolFunction:
    """A function that takes a tool's arguments, checked against its annotations before it is called."""

    def __init__(self, name: str, function: Callable[..., Any], effect: Effect) -> None:
        self._name = name
        self._function = function
        self._effect = effect
        hints = typing.get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
        self._context = [p for p in signature.parameters if hints.get(p) is ToolContext]
        taken = [p for p in signature.parameters.values() if p.name not in self._context]
        if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in taken):
            raise ConfigError(f"tool {name!r}: arguments come by name; positional parameters can't be given")
        self._signature = signature.replace(parameters=taken)
        self._open = any(p.kind is p.VAR_KEYWORD for p in taken)
        self._types = {
            p.name: TypeAdapter(hints.get(p.name, Any)) for p in taken if p.kind is not p.VAR_KEYWORD
        }

    def handler(self) -> Callable[[JobContext], Any]:
        """The function as the handler of a job."""
        function = self._function
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(ctx: JobContext) -> Any:
                arguments = self._arguments(ctx)
                try:
                    return await function(**arguments)
                except (Fail, Retry, OutcomeUnknown) as end:
                    raise _as_told(end) from end
                except Exception as error:
                    raise self._went_wrong(error) from error

            return awaited

        @functools.wraps(function)
        def called(ctx: JobContext) -> Any:
            arguments = self._arguments(ctx)
            try:
                return function(**arguments)
            except (Fail, Retry, OutcomeUnknown) as end:
                raise _as_told(end) from end
            except Exception as error:
                raise self._went_wrong(error) from error

        return called

    def _arguments(self, ctx: JobContext) -> dict[str, Any]:
        """What the function is called with. Raises Fail: then it was not called."""
        call = ctx.metadata
        args = dict(call["args"])
        if not self._open and "run_id" not in self._types:
            args.pop("run_id", None)  # names the timeline
        for name in self._context:
            args.pop(name, None)  # nobody calls as somebody else
        try:
            self._signature.bind(**args)
        except TypeError as error:
            raise _not_called(str(error)) from None
        for name, kind in self._types.items():
            if name in args:
                args[name] = _checked(name, kind, args[name])
        return args | dict.fromkeys(self._context, self._told(ctx))

    def _told(self, ctx: JobContext) -> ToolContext:
        run_id = ctx.metadata.get("run_id")
        key = idempotency_key(ctx.tenant, ctx.key, ctx.first_seen_at)
        return ToolContext(ctx.metadata["agent_id"], self._name, run_id, key, ctx)

    def _went_wrong(self, error: Exception) -> Exception:
        """How far it came before nobody knows: what can't be repeated is held."""
        message = described(error)
        if self._effect.repeatable:
            return Fail("tool_error", message, result=error_of(None, message), repeatable=True)
        return OutcomeUnknown(message, error_of(None, message))


def _checked(name: str, kind: TypeAdapter[Any], value: Any) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise _not_called(f"{where}: {first['msg']}") from None


def _not_called(message: str) -> Fail:
    message = f"wrong arguments: {message}"
    return Fail("tool_error", message, result=error_of(None, message), repeatable=True, never_made=True)


def _as_told(end: Fail | Retry | OutcomeUnknown) -> Exception:
    """The function's own word on how it ended. Whoever says Fail says that it did not happen: it may be asked again."""
    if not isinstance(end, Fail):
        return end
    message = f"{end.code}: {end.message}" if end.message else end.code
    result = end.result or {**error_of(None, message), "code": end.code}
    return Fail("tool_error", message, result=result, repeatable=True, never_made=end.never_made)
