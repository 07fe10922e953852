"""When the watchdog barks, and when it must not."""

from __future__ import annotations

from typing import Any

import pytest

from onceonly_jobs.domain.watchdog import Situation, suspicion

PATIENCE_S = 30.0


def why(**changed: Any) -> str | None:
    stuck: dict[str, Any] = {"idle_s": 40.0, "unserved": 3, "published_ago_s": 5.0, "queued_messages": 0}
    return suspicion(Situation(**{**stuck, **changed}), PATIENCE_S)


def test_messages_that_are_sent_and_never_come_are_suspicious() -> None:
    assert why() == "3 published runs wait, and no message came for 40 s, though the latest was sent 5 s ago"


def test_so_are_messages_that_stay_in_the_queue() -> None:
    """A full queue gets no more of them, so there is no late publication."""
    assert "hold 7 messages" in (why(published_ago_s=100.0, queued_messages=7) or "")


@pytest.mark.parametrize(
    "innocent",
    [
        {"idle_s": 29.0},
        {"unserved": 0, "published_ago_s": None, "queued_messages": 4},
        {"published_ago_s": 41.0},
        {"published_ago_s": None},
    ],
    ids=[
        "it has just started, or been busy",
        "nothing waits for it",
        "the broker is down",
        "never published",
    ],
)
def test_a_worker_that_is_not_to_blame_is_left_alone(innocent: dict[str, Any]) -> None:
    assert why(**innocent) is None
