"""Jobs by name: `@job` registers a function, a worker serves what is registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from onceonly_jobs.contracts.schedules import MisfireName, OverlapName, ScheduleRequest
from onceonly_jobs.domain.retries import RETRY_BASE_S, RETRY_MAX_S
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.domain.schedules import BadSchedule
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services.schedules import definition_of
from onceonly_jobs.worker.context import JobContext

Handler = Callable[[JobContext], Any]
"""Takes the context, returns the result (or a coroutine of it)."""

F = TypeVar("F", bound=Handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A registered handler and how its runs are treated."""

    name: str
    handler: Handler
    queue: str | None = None
    match: str | None = None
    max_attempts: int = 3
    time_limit_s: int | None = None
    retry_base_s: float = RETRY_BASE_S
    retry_max_s: float = RETRY_MAX_S
    schedule: ScheduleRequest | None = None
    """When it runs by itself."""

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 256 or not self.name.isprintable():
            raise ConfigError(f"job name {self.name!r}: must be 1 to 256 printable characters")
        for field in ("max_attempts", "time_limit_s", "retry_base_s", "retry_max_s"):
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise ConfigError(f"job {self.name!r}: {field} must be above 0")

    def spec(self, default_queue: str) -> JobSpec:
        """The job as the API and the relay know it."""
        lines = (self.handler.__doc__ or "").strip().splitlines()
        return JobSpec(
            name=self.name,
            queue=self.queue or default_queue,
            match=self.match,
            max_attempts=self.max_attempts,
            time_limit_s=self.time_limit_s,
            description=lines[0].strip() if lines else "",
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
        time_limit_s: int | None = None,
        retry_base_s: float = RETRY_BASE_S,
        retry_max_s: float = RETRY_MAX_S,
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
        max_attempts: how often a run may be started before it fails for good.
        time_limit_s: longest one attempt may take; the run's own `ttl` bounds it too.
        retry_base_s, retry_max_s: exponential backoff between attempts.
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
        definition_of(request)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'schedule'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"job {job!r}: {'; '.join(wrong)}") from None
    except BadSchedule as error:
        raise ConfigError(f"job {job!r}: {error.field}: {error}") from None
    return request


def _place(handler: Handler) -> str:
    return f"{handler.__module__}.{handler.__qualname__}"


default_registry = Registry()
job = default_registry.job
