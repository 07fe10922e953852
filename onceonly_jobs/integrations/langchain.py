"""LangChain tools that act once per input. Needs langchain-core, and says so only when a tool is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from onceonly_jobs.client import OnceOnly

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

OnRepeat = Literal["skip", "replay"]


def make_idempotent_tool(
    tool: Any,
    *,
    client: OnceOnly,
    key_prefix: str = "tool",
    ttl: int = 86400,
    meta: dict[str, Any] | None = None,
    on_repeat: OnRepeat = "skip",
) -> BaseTool:
    """The tool, acting once for equal inputs; name, description and schema stay.

    on_repeat: `skip` takes a lock for `ttl` seconds, and tells the agent of a repeat that it was skipped.
    `replay` keeps a lease of `ttl` seconds while the tool works, and gives a repeat what the first call returned.
    The id of a tool call is no part of its input: a model that asks twice for the same gets it once.
    Raises ImportError without langchain-core, TypeError for what is no BaseTool.
    """
    try:
        from onceonly_jobs.integrations.langchain_tool import IdempotentTool
    except ModuleNotFoundError as error:
        raise ImportError("make_idempotent_tool needs LangChain: pip install langchain-core") from error
    return IdempotentTool.around(
        tool, client=client, key_prefix=key_prefix, ttl=ttl, meta=meta, on_repeat=on_repeat
    )
