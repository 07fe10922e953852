"""Functions that run once per key."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from onceonly_jobs.client import leases
from onceonly_jobs.client.client import OnceOnly
from onceonly_jobs.client.keys import derived_key
from onceonly_jobs.client.leases import Lease
from onceonly_jobs.client.models import AiResult
from onceonly_jobs.client.payloads import MetadataLike
from onceonly_jobs.client.payloads import result as as_text_or_object
from onceonly_jobs.client.runs import Patience
from onceonly_jobs.client.values import decoded, encoded
from onceonly_jobs.client.wire import Flow

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D", covariant=True)
V = TypeVar("V")
KeyFn = Callable[..., str]
MetaFn = Callable[..., MetadataLike | None]
LOCK_TTL_S = 86_400


class Guard(Protocol[D]):
    """A decorator whose functions return what they return, or D for a duplicate."""

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, R]]
    ) -> Callable[P, Coroutine[Any, Any, R | D]]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Callable[P, R | D]: ...


class Outcomes(Protocol):
    """A decorator whose functions return the AiResult of their key."""

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, Any]]
    ) -> Callable[P, Coroutine[Any, Any, AiResult]]: ...
    @overload
    def __call__(self, fn: Callable[P, Any]) -> Callable[P, AiResult]: ...


class Values(Protocol):
    """A decorator whose functions keep their signature and what they return."""

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]: ...


@overload
def idempotent(
    client: OnceOnly,
    *,
    key_prefix: str = ...,
    ttl: int | None = ...,
    key_func: KeyFn | None = ...,
    key_version: str = ...,
    key_id: str | None = ...,
    on_duplicate: None = ...,
    return_value_on_duplicate: V,
) -> Guard[V]: ...
@overload
def idempotent(
    client: OnceOnly,
    *,
    key_prefix: str = ...,
    ttl: int | None = ...,
    key_func: KeyFn | None = ...,
    key_version: str = ...,
    key_id: str | None = ...,
    on_duplicate: Callable[..., Coroutine[Any, Any, V]],
    return_value_on_duplicate: Any = ...,
) -> Guard[V]: ...
@overload
def idempotent(
    client: OnceOnly,
    *,
    key_prefix: str = ...,
    ttl: int | None = ...,
    key_func: KeyFn | None = ...,
    key_version: str = ...,
    key_id: str | None = ...,
    on_duplicate: Callable[..., V],
    return_value_on_duplicate: Any = ...,
) -> Guard[V]: ...
@overload
def idempotent(
    client: OnceOnly,
    *,
    key_prefix: str = ...,
    ttl: int | None = ...,
    key_func: KeyFn | None = ...,
    key_version: str = ...,
    key_id: str | None = ...,
    on_duplicate: None = ...,
    return_value_on_duplicate: None = ...,
) -> Guard[None]: ...
def idempotent(
    client: OnceOnly,
    *,
    key_prefix: str = "func",
    ttl: int | None = None,
    key_func: KeyFn | None = None,
    key_version: str = "v1",
    key_id: str | None = None,
    on_duplicate: Callable[..., Any] | None = None,
    return_value_on_duplicate: Any = None,
) -> Any:
    """Let a function run once for equal arguments within `ttl` seconds (default: the client's, else a day).

    A duplicate gets what on_duplicate returns for the same arguments, else return_value_on_duplicate. A function
    that raises has had its turn: what follows within the ttl is a duplicate. For results, and for trying again,
    there is `idempotent_ai`.
    key_func makes the key from the arguments; else it is derived from all of them and from the function's name,
    for which key_id can stand: then it may be renamed or moved.
    """

    def key_of(fn: Callable[..., Any], args: Any, kwargs: Any) -> str:
        if key_func is not None:
            return f"{key_prefix}:{key_func(*args, **kwargs)}"
        return f"{key_prefix}:{derived_key(fn, args, kwargs, key_version=key_version, key_id=key_id)}"

    def seconds() -> int:
        return ttl or client.settings.ttl or LOCK_TTL_S

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                lock = await client.check_lock_async(key_of(fn, args, kwargs), seconds())
                if not lock.duplicate:
                    return await fn(*args, **kwargs)
                if on_duplicate is None:
                    return return_value_on_duplicate
                instead = on_duplicate(*args, **kwargs)
                return await instead if inspect.isawaitable(instead) else instead

            return guarded_async

        @functools.wraps(fn)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            lock = client.check_lock(key_of(fn, args, kwargs), seconds())
            if not lock.duplicate:
                return fn(*args, **kwargs)
            return return_value_on_duplicate if on_duplicate is None else on_duplicate(*args, **kwargs)

        return guarded

    return decorate


@overload
def idempotent_ai(
    client: OnceOnly,
    *,
    key: str | None = ...,
    key_fn: KeyFn | None = ...,
    ttl: int | None = ...,
    metadata: MetadataLike | None = ...,
    metadata_fn: MetaFn | None = ...,
    extend_every: float = ...,
    wait_on_conflict: bool = ...,
    timeout: float = ...,
    poll_min: float = ...,
    poll_max: float = ...,
    error_code: str = ...,
    on_lost: Callable[[Lease], object] | None = ...,
    unwrap: Literal[False] = ...,
) -> Outcomes: ...
@overload
def idempotent_ai(
    client: OnceOnly,
    *,
    key: str | None = ...,
    key_fn: KeyFn | None = ...,
    ttl: int | None = ...,
    metadata: MetadataLike | None = ...,
    metadata_fn: MetaFn | None = ...,
    extend_every: float = ...,
    wait_on_conflict: bool = ...,
    timeout: float = ...,
    poll_min: float = ...,
    poll_max: float = ...,
    error_code: str = ...,
    on_lost: Callable[[Lease], object] | None = ...,
    unwrap: Literal[True],
) -> Values: ...
def idempotent_ai(
    client: OnceOnly,
    *,
    key: str | None = None,
    key_fn: KeyFn | None = None,
    ttl: int | None = None,
    metadata: MetadataLike | None = None,
    metadata_fn: MetaFn | None = None,
    extend_every: float = 30.0,
    wait_on_conflict: bool = True,
    timeout: float = 60.0,
    poll_min: float = 0.5,
    poll_max: float = 5.0,
    error_code: str = "fn_error",
    on_lost: Callable[[Lease], object] | None = None,
    unwrap: bool = False,
) -> Any:
    """Let a function run once per key, and answer every call with its outcome. See AiClient.run_fn.

    key, or key_fn, which makes it from the arguments; one of them is needed (ValueError).
    The decorated function returns an AiResult. With unwrap it returns what the function returns: later calls get
    the stored result as the annotated return type; a stored failure raises RunFailed.
    """
    if key is None and key_fn is None:
        raise ValueError("idempotent_ai needs key= or key_fn=")

    def flow(fn: Callable[..., Any], args: Any, kwargs: Any, returned: list[Any]) -> Flow[AiResult]:
        name = str(key) if key_fn is None or key is not None else str(key_fn(*args, **kwargs))
        return leases.run_fn(
            client.driver.context,
            name,
            functools.partial(fn, *args, **kwargs),
            ttl=ttl,
            metadata=metadata if metadata_fn is None else metadata_fn(*args, **kwargs),
            extend_every=extend_every,
            wait_on_conflict=wait_on_conflict,
            patience=Patience(timeout, poll_min, poll_max),
            error_code=error_code,
            on_lost=on_lost,
            encode=encoded if unwrap else as_text_or_object,
            returned_here=returned,
        )

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        def answer(outcome: AiResult, returned: list[Any]) -> Any:
            if not unwrap:
                return outcome
            return returned[0] if returned else decoded(fn, outcome)

        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def once_async(*args: Any, **kwargs: Any) -> Any:
                returned: list[Any] = []
                outcome = await client.driver.arun(flow(fn, args, kwargs, returned))
                return answer(outcome, returned)

            return once_async

        @functools.wraps(fn)
        def once(*args: Any, **kwargs: Any) -> Any:
            returned: list[Any] = []
            outcome = client.driver.run(flow(fn, args, kwargs, returned))
            return answer(outcome, returned)

        return once

    return decorate
