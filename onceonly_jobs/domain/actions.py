"""The tool calls that a run is asked to make: `metadata.actions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_ACTIONS = 50
"""So many of a run's actions are looked at; what follows is ignored, and counted in the result."""

_TRUE = ("true", "t", "yes", "y", "on", "1")
_FALSE = ("false", "f", "no", "n", "off", "0", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A tool call that has not been decided on yet."""

    position: int
    tool: str
    args: dict[str, Any]
    spend_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """What a run's metadata asks for."""

    agent_id: str
    wanted: list[Action]
    ignored: int
    dry_run: bool
    """Only decided on: nothing is reserved and nothing called."""


def has_actions(metadata: dict[str, Any] | None) -> bool:
    """Whether the run is one of actions. An empty list asks for none."""
    return bool((metadata or {}).get("actions"))


def actions_of(metadata: dict[str, Any]) -> Actions:
    """The actions of metadata that was accepted as such."""
    listed = metadata["actions"]
    wanted = [
        Action(
            position=position,
            tool=each["tool"],
            args=each.get("args") or {},
            spend_usd=each.get("spend_usd") or 0.0,
        )
        for position, each in enumerate(listed[:MOST_ACTIONS])
    ]
    return Actions(
        agent_id=metadata["agent_id"],
        wanted=wanted,
        ignored=max(0, len(listed) - MOST_ACTIONS),
        dry_run=as_bool(metadata.get("dry_run")),
    )


def as_bool(value: Any) -> bool:
    """What a boolean-like value means; null is False. Raises ValueError for one that means neither."""
    text = str(value).lower() if isinstance(value, bool | int | str) else value
    if value is None or text in _FALSE:
        return False
    if text in _TRUE:
        return True
    raise ValueError("not a boolean: true, false, 1, 0, yes or no")
