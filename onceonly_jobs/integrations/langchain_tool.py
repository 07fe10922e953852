"""The tool that stands in for another one. Imported only where langchain-core is installed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from pydantic import PrivateAttr

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.client.decorators import idempotent_ai
from onceonly_jobs.client.exceptions import RunFailed
from onceonly_jobs.client.keys import stable
from onceonly_jobs.client.payloads import jsonable

COPIED = ("args_schema", "return_direct", "tags", "metadata", "callbacks", "verbose", "extras")


class IdempotentTool(BaseTool):
    """Asks the server before the tool it stands for is called."""

    _tool: BaseTool = PrivateAttr()
    _client: OnceOnly = PrivateAttr()
    _key_prefix: str = PrivateAttr()
    _ttl: int = PrivateAttr()
    _meta: dict[str, Any] = PrivateAttr()
    _replay: bool = PrivateAttr()

    @classmethod
    def around(
        cls,
        tool: Any,
        *,
        client: OnceOnly,
        key_prefix: str,
        ttl: int,
        meta: dict[str, Any] | None,
        on_repeat: str,
    ) -> Self:
        if not isinstance(tool, BaseTool):
            raise TypeError(f"tool must be a langchain_core.tools.BaseTool, not {type(tool).__name__}")
        copied = {name: getattr(tool, name) for name in COPIED if getattr(tool, name, None) is not None}
        guarded = cls(name=tool.name, description=tool.description, **copied)
        guarded._tool, guarded._client = tool, client
        guarded._key_prefix, guarded._ttl = key_prefix, int(ttl)
        guarded._meta = {"tool": tool.name, **(meta or {})}
        guarded._replay = on_repeat == "replay"
        if guarded._replay:
            # An error that the tool would turn into an answer must not be stored as its result.
            guarded._tool = tool.model_copy(update={"handle_tool_error": False})
            guarded.handle_tool_error = tool.handle_tool_error
        return guarded

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._guard(input, lambda what: self._tool.invoke(what, config, **kwargs))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._aguard(input, lambda what: self._tool.ainvoke(what, config, **kwargs))

    def run(self, tool_input: str | dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self._guard(tool_input, lambda what: self._tool.run(what, *args, **kwargs))

    async def arun(self, tool_input: str | dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return await self._aguard(tool_input, lambda what: self._tool.arun(what, *args, **kwargs))

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("the guard is in invoke, ainvoke, run and arun")

    def _guard(self, given: Any, call: Callable[[Any], Any]) -> Any:
        key = self._key(given)
        if not self._replay:
            lock = self._client.check_lock(key, self._ttl, self._meta)
            return self._skipped(given) if lock.duplicate else call(given)

        @idempotent_ai(self._client, key=key, ttl=self._ttl, metadata=self._meta, unwrap=True)
        def once():  # type: ignore[no-untyped-def]
            return _storable(call(_arguments(given)))

        try:
            return self._answered(given, once())
        except (ToolException, RunFailed) as error:
            return self._answered(given, self._shown(error))

    async def _aguard(self, given: Any, call: Callable[[Any], Awaitable[Any]]) -> Any:
        key = self._key(given)
        if not self._replay:
            lock = await self._client.check_lock_async(key, self._ttl, self._meta)
            return self._skipped(given) if lock.duplicate else await call(given)

        @idempotent_ai(self._client, key=key, ttl=self._ttl, metadata=self._meta, unwrap=True)
        async def once():  # type: ignore[no-untyped-def]
            return _storable(await call(_arguments(given)))

        try:
            return self._answered(given, await once())
        except (ToolException, RunFailed) as error:
            return self._answered(given, self._shown(error))

    def _shown(self, error: ToolException | RunFailed) -> Any:
        """A failure as the tool wants it shown to the model. Raises it where the tool says nothing."""
        how = self.handle_tool_error
        if not how:
            raise error
        if callable(how):
            return how(error if isinstance(error, ToolException) else ToolException(str(error)))
        return how if isinstance(how, str) else str(error)

    def _key(self, given: Any) -> str:
        """For plain JSON the published SDK's key."""
        what = _arguments(given)
        if isinstance(what, dict):
            hidden = self._hidden()
            named = {name: value for name, value in what.items() if name not in hidden}
            payload: dict[str, Any] = {"args": [], "kwargs": stable(named)}
        else:
            payload = {"args": [stable(what)], "kwargs": {}}
        text = json.dumps(payload, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return f"{self._key_prefix}:{self.name}:{hashlib.sha256(text.encode()).hexdigest()}"

    def _hidden(self) -> set[str]:
        """Arguments that the framework injects: no part of what the model asks for."""
        hidden = set(getattr(self._tool, "_injected_args_keys", ()))
        shown, every = self._tool.tool_call_schema, self._tool.get_input_schema()
        if not isinstance(shown, dict):
            hidden |= set(getattr(every, "model_fields", ())) - set(getattr(shown, "model_fields", ()))
        return hidden

    def _skipped(self, given: Any) -> Any:
        return self._answered(given, f"{self.name}: skipped, this was asked for before with the same input.")

    def _answered(self, given: Any, content: Any) -> Any:
        """The content; as a message where a tool call asked for it."""
        if not _is_tool_call(given):
            return content
        text = content if isinstance(content, str | list) else json.dumps(content, ensure_ascii=False)
        return ToolMessage(content=text, name=self.name, tool_call_id=given["id"])


def _is_tool_call(given: Any) -> bool:
    return isinstance(given, dict) and given.get("type") == "tool_call" and "args" in given


def _arguments(given: Any) -> Any:
    return dict(given["args"]) if _is_tool_call(given) else given


def _storable(value: Any) -> Any:
    """What a tool returned, as JSON, or else as the text that the model would be shown."""
    try:
        return jsonable(value)
    except TypeError:
        return str(value)
