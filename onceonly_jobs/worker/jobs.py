"""Jobs by name: `@job` registers a function, a worker serves what is registered."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from onceonly_jobs.contracts.schedules import MisfireName, OverlapName, ScheduleRequest
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.domain.retries import RETRY_BASE_S, RETRY_MAX_S
from onceonly_jobs.domain.runs import MAX_CRASHES, JobSpec
from onceonly_jobs.domain.schedules import BadSchedule
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services.calls import FUNCTION, MAX_ATTEMPTS
from onceonly_jobs.services.runs import INTERNAL
from onceonly_jobs.services.schedules import check_run, definition_of
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.functions import Confirm, ToolFunction

TOOL_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")

Handler = Callable[[JobContext], Any]
"""Takes the context, returns the result (or a coroutine of it)."""

Exceptions = type[BaseException] | tuple[type[BaseException], ...] | None
"""As `except` takes them."""

F = TypeVar("F", bound=Handler)
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A registered handler and how its runs are treated."""

    name: str
    handler: Handler
    queue: str | None = None
    match: str | None = None
    max_attempts: int = 3
    max_crashes: int = MAX_CRASHES
    time_limit_s: int | None = None
    retry_base_s: float = RETRY_BASE_S
    retry_max_s: float = RETRY_MAX_S
    retry_on: Exceptions = None
    """Only these are worth another attempt; None: any is."""
    give_up_on: Exceptions = None
    """Not worth another attempt, even where `retry_on` has them."""
    schedule: ScheduleRequest | None = None
    """When it runs by itself."""
    effect: Effect | None = None
    """Of a function that agents call as a tool."""
    confirm: Confirm | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 256 or not self.name.isprintable():
            raise ConfigError(f"job name {self.name!r}: must be 1 to 256 printable characters")
        for field in ("max_attempts", "max_crashes", "time_limit_s", "retry_base_s", "retry_max_s"):
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise ConfigError(f"job {self.name!r}: {field} must be above 0")
        for field in ("retry_on", "give_up_on"):
            object.__setattr__(self, field, _exceptions(self.name, field, getattr(self, field)))

    @property
    def light(self) -> bool:
        """Whether a worker may take several of its runs at once: nothing of theirs has to be kept one by one."""
        ours = self.name.startswith(INTERNAL)
        return self.time_limit_s is None and self.effect is None and self.max_crashes > 1 and not ours

    def retries(self, error: BaseException) -> bool:
        """Whether another attempt may go better than the one that ended with this."""
        if isinstance(error, self.give_up_on or ()):
            return False
        return self.retry_on is None or isinstance(error, self.retry_on)

    def spec(self, default_queue: str) -> JobSpec:
        """The job as the API and the relay know it."""
        lines = (self.handler.__doc__ or "").strip().splitlines()
        return JobSpec(
            name=self.name,
            queue=self.queue or default_queue,
            match=self.match,
            max_attempts=self.max_attempts,
            max_crashes=self.max_crashes,
            time_limit_s=self.time_limit_s,
            description=lines[0].strip() if lines else "",
            effect=None if self.effect is None else self.effect.value,
        )


class Registry:
    """Jobs by name."""

    def __init__(self, *jobs: Job) -> None:
        self._jobs = {job.name: job for job in jobs}

    def add(self, job: Job) -> None:
        """Raises ConfigError when another function has that name."""
        known = self._jobs.get(job.name)
        if known is not None and _place(known.handler) != _place(job.handler):
            raise ConfigError(
                f"two jobs are named {job.name!r}: {_place(known.handler)}, {_place(job.handler)}"
            )
        self._jobs[job.name] = job

    def over(self, others: Registry) -> Registry:
        """These jobs and the others; where both have a name, this one's counts."""
        return Registry(*others, *self)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __getitem__(self, name: str) -> Job:
        return self._jobs[name]

    def get(self, name: str) -> Job | None:
        return self._jobs.get(name)

    @overload
    def job(self, name: F, /) -> F: ...

    @overload
    def job(
        self,
        name: str | None = None,
        /,
        *,
        queue: str | None = None,
        match: str | None = None,
        max_attempts: int = 3,
        max_crashes: int = MAX_CRASHES,
        time_limit_s: int | None = None,
        retry_base_s: float = RETRY_BASE_S,
        retry_max_s: float = RETRY_MAX_S,
        retry_on: Exceptions = None,
        give_up_on: Exceptions = None,
        cron: str | None = None,
        every_s: int | None = None,
        tz: str = "UTC",
        misfire: MisfireName = "once",
        misfire_grace_s: int = 5,
        catch_up_limit: int = 100,
        jitter_s: int = 0,
        overlap: OverlapName = "allow",
        payload: dict[str, Any] | None = None,
        agent_id: str | None = None,
    ) -> Callable[[F], F]: ...

    def job(self, name: F | str | None = None, /, **options: Any) -> F | Callable[[F], F]:
        """Register a function as a job: `@job`, `@job("name")` or `@job("name", queue=..., ...)`.

        name: what runs call it by; default: the function's own name.
        queue: Celery queue of its runs; default: ONCEONLY_DEFAULT_QUEUE.
        match: key pattern, like `report:daily:*`, of runs that name no job but are meant for this one.
        max_attempts: how many failures make a run fail for good.
        max_crashes: how many deaths of its worker do; the two are counted apart.
        time_limit_s: longest one attempt may take; the run's own `ttl` bounds it too.
        retry_base_s, retry_max_s: exponential backoff between attempts.
        retry_on: exceptions that are worth another attempt; any other ends the run. Default: any is.
        give_up_on: exceptions that end the run at once, even where retry_on has them.
        cron or every_s: it runs by itself, under a schedule of its name; tz, misfire, misfire_grace_s,
        catch_up_limit, jitter_s, overlap, payload and agent_id are that schedule's, see docs/SCHEDULES.md.
        """
        scheduled = {field: options.pop(field) for field in _SCHEDULED if field in options}

        def register(handler: F) -> F:
            given = name if isinstance(name, str) else handler.__name__
            schedule = _schedule(given, scheduled) if scheduled else None
            self.add(Job(name=given, handler=handler, schedule=schedule, **options))
            return handler

        return register if name is None or isinstance(name, str) else register(name)

    @overload
    def tool(self, name: T, /) -> T: ...

    @overload
    def tool(
        self,
        name: str | None = None,
        /,
        *,
        effect: Effect | str = Effect.IRREVERSIBLE,
        queue: str | None = None,
        timeout_ms: int = 15_000,
        max_attempts: int = MAX_ATTEMPTS,
        confirm: Confirm | None = None,
    ) -> Callable[[T], T]: ...

    def tool(self, name: T | str | None = None, /, **options: Any) -> T | Callable[[T], T]:
        """Register a function as a tool that agents may call: `@tool`, `@tool("name")` or `@tool("name", effect=...)`.

        name: what agents call it by; default: the function's own name. A registered HTTP tool of it comes first.
        effect: what a second call would do: `read`, `idempotent`, `reconcilable` (needs `confirm`) or `irreversible`.
        queue: Celery queue of its calls; default: ONCEONLY_DEFAULT_QUEUE.
        timeout_ms: longest that one attempt may take, in milliseconds, rounded up to whole seconds.
        max_attempts: how often a call may be started that raised Retry or whose worker died, where its effect allows.
        confirm: asked about a reconcilable call that may have happened.

        Raises ConfigError for what can't be a tool.
        """

        def register(function: T) -> T:
            self.add(_tool_job(name if isinstance(name, str) else function.__name__, function, **options))
            return function

        return register if name is None or isinstance(name, str) else register(name)


def _tool_job(
    name: str,
    function: Callable[..., Any],
    *,
    effect: Effect | str = Effect.IRREVERSIBLE,
    queue: str | None = None,
    timeout_ms: int = 15_000,
    max_attempts: int = MAX_ATTEMPTS,
    confirm: Confirm | None = None,
) -> Job:
    if not TOOL_NAME.fullmatch(name):
        raise ConfigError(f"tool name {name!r}: must be 1 to 128 letters, digits and _ . : -")
    try:
        effect = Effect(effect)
    except ValueError:
        raise ConfigError(f"tool {name!r}: effect must be one of {', '.join(Effect)}") from None
    if (effect is Effect.RECONCILABLE) != (confirm is not None):
        raise ConfigError(f"tool {name!r}: confirm belongs to the effect reconcilable, and to no other")
    return Job(
        name=FUNCTION + name,
        handler=ToolFunction(name, function, effect).handler(),
        queue=queue,
        max_attempts=max_attempts,
        time_limit_s=math.ceil(timeout_ms / 1000),
        effect=effect,
        confirm=confirm,
    )


_SCHEDULED = (
    "cron",
    "every_s",
    "tz",
    "misfire",
    "misfire_grace_s",
    "catch_up_limit",
    "jitter_s",
    "overlap",
    "payload",
    "agent_id",
)


def _schedule(job: str, fields: dict[str, Any]) -> ScheduleRequest:
    """The schedule that a job declares. Raises ConfigError."""
    try:
        request = ScheduleRequest.model_validate({"name": job, "task": job, **fields})
        check_run(definition_of(request), job, datetime.fromtimestamp(0, UTC))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'schedule'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"job {job!r}: {'; '.join(wrong)}") from None
    except BadSchedule as error:
        raise ConfigError(f"job {job!r}: {error.field}: {error}") from None
    return request


def _exceptions(job: str, field: str, given: Any) -> Exceptions:
    """What `except` would take, as a tuple. Raises ConfigError for anything else."""
    if given is None:
        return None
    kinds = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise ConfigError(f"job {job!r}: {field} must be exception types, not {given!r}")
    return kinds


def _place(handler: Handler) -> str:
    return f"{handler.__module__}.{handler.__qualname__}"


default_registry = Registry()
job = default_registry.job
tool = default_registry.tool
