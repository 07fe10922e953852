"""When a worker that looks alive is not: it waits for messages that others have seen being sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What an idle worker knows of itself, and what waits for it."""

    idle_s: float
    """since it last received a message, had one in hand, or started"""
    unserved: int
    """runs of its queues and jobs that were published, and that nobody has claimed for the watchdog's time"""
    published_ago_s: float | None
    """since the latest publication of one of those"""
    queued_messages: int
    """messages in its queues, as a new connection to the broker sees them"""


def suspicion(now: Situation, patience_s: float) -> str | None:
    """Why the worker seems to be stuck, or None.

    A broker that is down explains itself: nothing is published then, nor are there messages to be seen. That other
    workers are busy is no excuse of an idle one. One look may err, for a message may be on its way: it takes two,
    with the worker idle in between.
    """
    if now.idle_s < patience_s or not now.unserved:
        return None
    waiting = f"{now.unserved} published runs wait, and no message came for {now.idle_s:.0f} s"
    if now.queued_messages:
        return f"{waiting}, though its queues hold {now.queued_messages} messages"
    if now.published_ago_s is not None and now.published_ago_s < now.idle_s:
        return f"{waiting}, though the latest was sent {now.published_ago_s:.0f} s ago"
    return None
