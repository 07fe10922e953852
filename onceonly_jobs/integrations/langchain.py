"""LangChain tools that act once per input. Needs langchain-core."""

from __future__ import annotations

from typing import Any

from onceonly_jobs.client import OnceOnly


def make_idempotent_tool(
    tool: Any,
    *,
    client: OnceOnly,
    key_prefix: str = "tool",
    ttl: int = 86400,
    meta: dict[str, Any] | None = None,
) -> Any:
    raise NotImplementedError
