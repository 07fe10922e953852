"""`client.ai`: runs, tool calls and leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from onceonly_jobs.client import account, leases, runs
from onceonly_jobs.client.leases import Lease
from onceonly_jobs.client.models import AiResult, AiRun, AiStatus, AiToolResult
from onceonly_jobs.client.payloads import MetadataLike
from onceonly_jobs.client.runs import Extending, Patience
from onceonly_jobs.client.wire import Flow, Json

if TYPE_CHECKING:
    from onceonly_jobs.client.transport import Driver

OnLost = Callable[[Lease], object]


class AiClient:
    """Runs by key, governed tool calls, and leases for work that the caller does.

    Each method has a twin `..._async`. Durations are in seconds.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ctx = driver.context

    # Runs

    @overload
    def run(
        self,
        key: str,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        run_id: str | None = None,
        fingerprint: str | None = None,
    ) -> AiRun: ...
    @overload
    def run(
        self,
        key: None = None,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        agent_id: str | None = None,
        tool: str,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,
    ) -> AiToolResult: ...
    @overload
    def run(self, key: str | None = None, *args: Any, **kwargs: Any) -> AiRun | AiToolResult: ...
    def run(
        self,
        key: str | None = None,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        agent_id: str | None = None,
        tool: str | None = None,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        fingerprint: str | None = None,
        timeout: float = 60.0,
    ) -> AiRun | AiToolResult:
        """With key: ask for a run, or attach to it. With tool: a governed call, whose answer is waited for.

        Raises ValueError unless it is exactly one of the two.
        """
        answer: AiRun | AiToolResult = self._driver.run(
            self._run(key, ttl, metadata, agent_id, tool, args, spend_usd, run_id, fingerprint, timeout)
        )
        return answer

    @overload
    async def run_async(
        self,
        key: str,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        run_id: str | None = None,
        fingerprint: str | None = None,
    ) -> AiRun: ...
    @overload
    async def run_async(
        self,
        key: None = None,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        agent_id: str | None = None,
        tool: str,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
    ) -> AiToolResult: ...
    @overload
    async def run_async(self, key: str | None = None, *args: Any, **kwargs: Any) -> AiRun | AiToolResult: ...
    async def run_async(
        self,
        key: str | None = None,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        agent_id: str | None = None,
        tool: str | None = None,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        fingerprint: str | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
    ) -> AiRun | AiToolResult:
        answer: AiRun | AiToolResult = await self._driver.arun(
            self._run(key, ttl, metadata, agent_id, tool, args, spend_usd, run_id, fingerprint, timeout)
        )
        return answer

    def _run(
        self,
        key: str | None,
        ttl: int | None,
        metadata: MetadataLike | None,
        agent_id: str | None,
        tool: str | None,
        args: Json | None,
        spend_usd: float | None,
        run_id: str | None,
        fingerprint: str | None,
        timeout: float,
    ) -> Flow[Any]:
        if key is not None:
            _only_a_key(agent_id, tool, args, spend_usd)
            return runs.run_by_key(self._ctx, key, ttl, metadata, run_id, fingerprint)
        return runs.run_tool(self._ctx, agent_id, _named(tool), args, spend_usd, run_id, timeout)

    def run_tool(
        self,
        *,
        agent_id: str | None = None,
        tool: str,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,
    ) -> AiToolResult:
        """A governed call of a registered tool, and what it answered. agent_id: else the client's own.

        A call that policy refuses is an answer with `allowed=False`. Raises OverLimitError for a limit,
        StillRunning for a tool that takes longer than the timeout; it goes on, and the same call attaches to it.
        """
        return self._driver.run(runs.run_tool(self._ctx, agent_id, tool, args, spend_usd, run_id, timeout))

    async def run_tool_async(
        self,
        *,
        agent_id: str | None = None,
        tool: str,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
    ) -> AiToolResult:
        return await self._driver.arun(
            runs.run_tool(self._ctx, agent_id, tool, args, spend_usd, run_id, timeout)
        )

    def status(self, key: str, *, wait: float | None = None) -> AiStatus:
        """How far a key is. wait: let the server answer as soon as it is finished, at the latest after so long."""
        return self._driver.run(runs.status(self._ctx, key, wait))

    async def status_async(self, key: str, *, wait: float | None = None) -> AiStatus:
        return await self._driver.arun(runs.status(self._ctx, key, wait))

    def result(self, key: str, *, wait: float | None = None) -> AiResult:
        """What came of a key. wait: as for status."""
        return self._driver.run(runs.result(self._ctx, key, wait))

    async def result_async(self, key: str, *, wait: float | None = None) -> AiResult:
        return await self._driver.arun(runs.result(self._ctx, key, wait))

    def wait(
        self,
        key: str,
        *,
        timeout: float = 60.0,
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
        lease_id: str | None = None,
        ttl: int | None = None,
    ) -> AiResult:
        """The outcome of a key, as soon as there is one. After the timeout: `failed` with the code `timeout`.

        The server is asked to hold the request; poll_min and poll_max are for one that does not.
        With a lease_id the key is extended while waiting.
        """
        extending = _extending(auto_extend, lease_id, ttl, extend_every)
        return self._driver.run(runs.wait(self._ctx, key, Patience(timeout, poll_min, poll_max), extending))

    async def wait_async(
        self,
        key: str,
        *,
        timeout: float = 60.0,  # noqa: ASYNC109
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
        lease_id: str | None = None,
        ttl: int | None = None,
    ) -> AiResult:
        extending = _extending(auto_extend, lease_id, ttl, extend_every)
        return await self._driver.arun(
            runs.wait(self._ctx, key, Patience(timeout, poll_min, poll_max), extending)
        )

    @overload
    def run_and_wait(
        self,
        key: str,
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
    ) -> AiResult: ...
    @overload
    def run_and_wait(
        self,
        key: None = None,
        *,
        agent_id: str | None = None,
        tool: str,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,
        poll_min: float = 0.5,
        poll_max: float = 5.0,
    ) -> AiToolResult: ...
    @overload
    def run_and_wait(
        self,
        key: str | None = None,
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        agent_id: str | None = None,
        tool: str | None = None,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
    ) -> AiResult | AiToolResult: ...
    def run_and_wait(
        self,
        key: str | None = None,
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        agent_id: str | None = None,
        tool: str | None = None,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
    ) -> AiResult | AiToolResult:
        """The AiResult of a run by key, or the AiToolResult of a tool call.

        While it waits, the run's time limit is extended, unless auto_extend is off.
        """
        every = extend_every if auto_extend else None
        patience = Patience(timeout, poll_min, poll_max)
        answer: AiResult | AiToolResult = self._driver.run(
            self._run_and_wait(key, ttl, metadata, agent_id, tool, args, spend_usd, run_id, patience, every)
        )
        return answer

    @overload
    async def run_and_wait_async(
        self,
        key: str,
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
    ) -> AiResult: ...
    @overload
    async def run_and_wait_async(
        self,
        key: None = None,
        *,
        agent_id: str | None = None,
        tool: str,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
        poll_min: float = 0.5,
        poll_max: float = 5.0,
    ) -> AiToolResult: ...
    @overload
    async def run_and_wait_async(
        self,
        key: str | None = None,
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        agent_id: str | None = None,
        tool: str | None = None,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
    ) -> AiResult | AiToolResult: ...
    async def run_and_wait_async(
        self,
        key: str | None = None,
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        agent_id: str | None = None,
        tool: str | None = None,
        args: Json | None = None,
        spend_usd: float | None = None,
        run_id: str | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        auto_extend: bool = True,
        extend_every: float = 30.0,
    ) -> AiResult | AiToolResult:
        every = extend_every if auto_extend else None
        patience = Patience(timeout, poll_min, poll_max)
        answer: AiResult | AiToolResult = await self._driver.arun(
            self._run_and_wait(key, ttl, metadata, agent_id, tool, args, spend_usd, run_id, patience, every)
        )
        return answer

    def _run_and_wait(
        self,
        key: str | None,
        ttl: int | None,
        metadata: MetadataLike | None,
        agent_id: str | None,
        tool: str | None,
        args: Json | None,
        spend_usd: float | None,
        run_id: str | None,
        patience: Patience,
        extend_every: float | None,
    ) -> Flow[Any]:
        if key is not None:
            _only_a_key(agent_id, tool, args, spend_usd)
            return runs.run_and_wait(self._ctx, key, ttl, metadata, run_id, patience, extend_every)
        return runs.run_tool(self._ctx, agent_id, _named(tool), args, spend_usd, run_id, patience.timeout)

    def run_fn(
        self,
        key: str,
        fn: Callable[[], Any],
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        extend_every: float = 30.0,
        wait_on_conflict: bool = True,
        timeout: float = 60.0,
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        error_code: str = "fn_error",
        on_lost: OnLost | None = None,
    ) -> AiResult:
        """Run a function once per key, here, and answer every other caller with its outcome.

        ttl: length of the lease (default: the client's, else 300), extended from a thread while fn runs. If it is
        lost nevertheless, `current_lease().lost` and on_lost tell fn so, its result is refused, and LeaseLost raised.
        What fn raises is stored as failed with error_code, and raised. Others wait for up to `timeout`.
        """
        patience = Patience(timeout, poll_min, poll_max)
        return self._driver.run(
            leases.run_fn(
                self._ctx,
                key,
                fn,
                ttl=ttl,
                metadata=metadata,
                extend_every=extend_every,
                wait_on_conflict=wait_on_conflict,
                patience=patience,
                error_code=error_code,
                on_lost=on_lost,
            )
        )

    async def run_fn_async(
        self,
        key: str,
        fn: Callable[[], Any],
        *,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        extend_every: float = 30.0,
        wait_on_conflict: bool = True,
        timeout: float = 60.0,  # noqa: ASYNC109
        poll_min: float = 0.5,
        poll_max: float = 5.0,
        error_code: str = "fn_error",
        on_lost: OnLost | None = None,
    ) -> AiResult:
        """`run_fn` for a coroutine function. When the lease is lost, the function is cancelled."""
        patience = Patience(timeout, poll_min, poll_max)
        return await self._driver.arun(
            leases.run_fn(
                self._ctx,
                key,
                fn,
                ttl=ttl,
                metadata=metadata,
                extend_every=extend_every,
                wait_on_conflict=wait_on_conflict,
                patience=patience,
                error_code=error_code,
                on_lost=on_lost,
            )
        )

    # Leases

    def lease(
        self,
        key: str,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        fingerprint: str | None = None,
    ) -> Json:
        """Claim a key: the answer as it came. `client.lease` is the same as a `with` block, with heartbeats."""
        return self._driver.run(runs.lease(self._ctx, key, ttl, metadata, fingerprint))

    async def lease_async(
        self,
        key: str,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        fingerprint: str | None = None,
    ) -> Json:
        return await self._driver.arun(runs.lease(self._ctx, key, ttl, metadata, fingerprint))

    def extend(self, key: str, lease_id: str, ttl: int | None = None) -> Json:
        """Let the lease end `ttl` seconds from now. Raises LeaseLost."""
        return self._driver.run(runs.extend(self._ctx, key, lease_id, ttl))

    async def extend_async(self, key: str, lease_id: str, ttl: int | None = None) -> Json:
        return await self._driver.arun(runs.extend(self._ctx, key, lease_id, ttl))

    def complete(
        self, key: str, lease_id: str, *, result: Json | None = None, result_hash: str | None = None
    ) -> Json:
        """Finish with a result. Repeating it is safe, and keeps the first. Raises LeaseLost."""
        return self._driver.run(runs.complete(self._ctx, key, lease_id, result, result_hash))

    async def complete_async(
        self, key: str, lease_id: str, *, result: Json | None = None, result_hash: str | None = None
    ) -> Json:
        return await self._driver.arun(runs.complete(self._ctx, key, lease_id, result, result_hash))

    def fail(self, key: str, lease_id: str, *, error_code: str, error_hash: str | None = None) -> Json:
        """Finish as failed; the key stays so. Raises LeaseLost."""
        return self._driver.run(runs.fail(self._ctx, key, lease_id, error_code, error_hash))

    async def fail_async(
        self, key: str, lease_id: str, *, error_code: str, error_hash: str | None = None
    ) -> Json:
        return await self._driver.arun(runs.fail(self._ctx, key, lease_id, error_code, error_hash))

    def cancel(self, key: str, lease_id: str, reason: str | None = None) -> Json:
        """Give the key up without an outcome: the next caller can have it. Raises LeaseLost."""
        return self._driver.run(runs.cancel(self._ctx, key, lease_id, reason))

    async def cancel_async(self, key: str, lease_id: str, reason: str | None = None) -> Json:
        return await self._driver.arun(runs.cancel(self._ctx, key, lease_id, reason))

    # Calls of unknown outcome

    def unknown(self, *, limit: int = 50, offset: int = 0) -> Json:
        """Tool calls that may have happened and may not be repeated, oldest first: `total` and `items`."""
        return self._driver.run(account.get(self._ctx, "/ai/unknown", limit=limit, offset=offset))

    async def unknown_async(self, *, limit: int = 50, offset: int = 0) -> Json:
        return await self._driver.arun(account.get(self._ctx, "/ai/unknown", limit=limit, offset=offset))

    def settle(
        self,
        key: str,
        *,
        happened: bool,
        result: Json | None = None,
        cost_usd: float | None = None,
        decision_id: int | None = None,
    ) -> Json:
        """Say what became of such a call. It can't be taken back; decision_id, as listed, makes sure which is meant."""
        return self._driver.run(runs.settle(self._ctx, key, happened, result, cost_usd, decision_id))

    async def settle_async(
        self,
        key: str,
        *,
        happened: bool,
        result: Json | None = None,
        cost_usd: float | None = None,
        decision_id: int | None = None,
    ) -> Json:
        return await self._driver.arun(runs.settle(self._ctx, key, happened, result, cost_usd, decision_id))


def _extending(auto_extend: bool, lease_id: str | None, ttl: int | None, every: float) -> Extending | None:
    return Extending(lease_id, ttl, max(1.0, every)) if auto_extend and lease_id else None


def _only_a_key(agent_id: str | None, tool: str | None, args: Json | None, spend_usd: float | None) -> None:
    if agent_id or tool or args or spend_usd is not None:
        raise ValueError("give either key, or agent_id and tool")


def _named(tool: str | None) -> str:
    if not tool:
        raise ValueError("give either key, or agent_id and tool")
    return tool
