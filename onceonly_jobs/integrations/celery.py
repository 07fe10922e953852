"""Tasks of your own Celery application that run once per key. Needs Celery.

@app.task(bind=True, acks_late=True)
@once(client, key=lambda order_id: f"charge:{order_id}")
def charge(self, order_id: str) -> dict: ...
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, cast

try:
    from celery import Task, current_task
    from celery.exceptions import Ignore, Reject, Retry
except ModuleNotFoundError as missing:
    raise ImportError("this needs Celery: pip install 'onceonly-jobs[celery]'") from missing

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.client.exceptions import (
    ApiError,
    LeaseLost,
    OnceOnlyError,
    RateLimitError,
    StillRunning,
    Unreachable,
)
from onceonly_jobs.client.keeping import Keeper
from onceonly_jobs.client.keys import derived_key
from onceonly_jobs.client.leases import Lease, acquire, beat_every, finish, give_up
from onceonly_jobs.client.runs import cancel
from onceonly_jobs.client.values import decoded, encoded
from onceonly_jobs.client.wire import logger

P = ParamSpec("P")
R = TypeVar("R")
BEAT_EVERY_S = 30.0
AGAIN_AFTER_S = 5.0
LONGEST_AGAIN_S = 30.0


def once(
    client: OnceOnly,
    *,
    key: str | Callable[..., str] | None = None,
    ttl: int = 300,
    on_error: Literal["fail", "release"] = "fail",
    in_flight: Literal["retry", "ignore"] = "retry",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a task run once per key; every other delivery gets what it returned. Goes below `@app.task`.

    key: made from the task's arguments (without `self`); by default from its name and all of them.
    ttl: seconds until a dead worker's task can be taken over; extended while the task runs.
    on_error: `fail` keeps an exception as the key's outcome, and later deliveries raise RunFailed; `release` lets
    the next delivery try. A task that is going to be retried (`self.retry`, `autoretry_for`) is always released.
    in_flight: what a delivery does while another one is at work: `retry` sends itself again for later, which counts
    as no retry of the task; `ignore` ends without a result. The same is done when OnceOnly does not answer, but never
    ignored. Outside of a worker StillRunning is raised, or what went wrong.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):
            raise TypeError("once is for tasks, which Celery calls as plain functions")

        signature = inspect.signature(function)
        unbound = _without_self(signature)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            delivery = _Delivery(client, function, _running_task())
            bound = bool(args) and isinstance(args[0], Task)
            told, as_called = (args[1:], unbound) if bound else (args, function)
            name = _key(key, function, as_called, told, kwargs)
            return delivery.run(name, functools.partial(function, *args, **kwargs), ttl, on_error, in_flight)

        # Celery checks calls against it, and looks at the outermost function only.
        guarded.__signature__ = signature  # type: ignore[attr-defined]
        return cast(Callable[P, R], guarded)

    return decorate


class _Delivery:
    """One call of a guarded task, by a worker or by hand."""

    def __init__(self, client: OnceOnly, function: Callable[..., Any], task: Task | None) -> None:
        self._client, self._function, self._task = client, function, task

    def run(self, key: str, call: Callable[[], Any], ttl: int, on_error: str, in_flight: str) -> Any:
        driver, ctx = self._client.driver, self._client.driver.context
        try:
            lease = driver.run(acquire(ctx, key, ttl, {"task": self._name()}))
        except OnceOnlyError as error:
            if not _passes(error):
                raise
            raise self._later(AGAIN_AFTER_S, error) from error
        if lease.outcome is not None:
            return decoded(self._function, lease.outcome)
        if not lease.acquired:
            if in_flight == "ignore" and self._in_worker():
                raise Ignore
            left = float(lease.raw.get("ttl_left") or AGAIN_AFTER_S)
            raise self._later(min(max(left / 4, AGAIN_AFTER_S), LONGEST_AGAIN_S), None, key)
        return self._work(lease, call, on_error)

    def _work(self, lease: Lease, call: Callable[[], Any], on_error: str) -> Any:
        driver, ctx = self._client.driver, self._client.driver.context
        try:
            with Keeper(driver, lease, beat_every(lease.ttl, BEAT_EVERY_S)):
                returned = call()
        except Exception as error:
            if not lease.lost:
                self._give_back(lease, error, on_error)
            raise
        try:
            driver.run(finish(ctx, lease, returned, encoded))
        except LeaseLost as error:
            raise self._later(AGAIN_AFTER_S, error) from error
        except OnceOnlyError as error:
            if not _passes(error):
                raise
            logger.error("%r was done, but its result was not stored: %s", lease.key, error)
        return returned

    def _give_back(self, lease: Lease, error: Exception, on_error: str) -> None:
        driver, ctx = self._client.driver, self._client.driver.context
        if on_error == "fail" and not self._is_retried(error):
            return driver.run(give_up(ctx, lease, "task_error"))
        try:
            driver.run(cancel(ctx, lease.key, lease.lease_id, type(error).__name__))
        except OnceOnlyError as why:
            logger.warning(
                "%r was not released, and stays taken for up to %d s: %s", lease.key, lease.ttl, why
            )
        return None

    def _is_retried(self, error: Exception) -> bool:
        """Whether Celery is going to deliver the task again, so that the exception is no outcome."""
        if isinstance(error, Retry | Reject | Ignore):
            return True
        task = self._task
        if task is None or not isinstance(error, tuple(getattr(task, "autoretry_for", ()))):
            return False
        if isinstance(error, tuple(getattr(task, "dont_autoretry_for", ()))):
            return False
        allowed = getattr(task, "retry_kwargs", {}).get("max_retries", task.max_retries)
        return allowed is None or task.request.retries < allowed

    def _later(self, seconds: float, why: OnceOnlyError | None, key: str = "") -> Exception:
        """What to raise so that the task is delivered again, as if this delivery had not been."""
        if not self._in_worker():
            return why or StillRunning(
                "in_progress", status_code=409, detail={"error": "in_progress", "key": key}
            )
        task = cast(Task, self._task)
        countdown = seconds * random.uniform(1, 1.5)  # noqa: S311 - spreads the load
        again = task.signature_from_request(task.request, countdown=countdown, retries=task.request.retries)
        try:
            again.apply_async()
        except Exception as error:
            return cast(Exception, Reject(error, requeue=True))
        return cast(Exception, Retry(exc=why, when=countdown, sig=again))

    def _in_worker(self) -> bool:
        """Whether a worker has delivered the task, and not a call by hand, or an eager one."""
        if self._task is None:
            return False
        request = self._task.request
        return not request.called_directly and not request.is_eager

    def _name(self) -> str:
        return str(self._task.name) if self._task is not None else self._function.__name__


def _without_self(signature: inspect.Signature) -> Callable[..., Any]:
    """Stands for the function of a bound task where its arguments are looked at."""

    def stand_in(*args: Any, **kwargs: Any) -> None: ...

    parameters = list(signature.parameters.values())[1:]
    stand_in.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return stand_in


def _key(
    key: str | Callable[..., str] | None,
    function: Callable[..., Any],
    as_called: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    if callable(key):
        return str(key(*args, **kwargs))
    if key is not None:
        return key
    name = f"{function.__module__}.{function.__qualname__}"
    return f"celery:{derived_key(as_called, args, kwargs, key_version='v1', key_id=name)}"


def _running_task() -> Task | None:
    task: Task | None = current_task._get_current_object() if current_task else None
    return task


def _passes(error: OnceOnlyError) -> bool:
    """Whether it is the server's state that is wrong, and not the request."""
    if isinstance(error, Unreachable | RateLimitError):
        return True
    return isinstance(error, ApiError) and (error.status_code or 0) >= 500
