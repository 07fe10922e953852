"""Answers to inspectors that were killed: nobody takes them any more, and Celery leaves them without an end."""

from __future__ import annotations

import redis

from onceonly_jobs.dispatch.celeryconf import KEY_PREFIX

BINDINGS = f"{KEY_PREFIX}_kombu.binding.reply.celery.pidbox"
"""Who has asked workers something, and in which list the answers are put. Its members end with that list's name."""
SEPARATOR = b"\x06\x16"
KEPT_S = 300
"""Whoever asks waits for seconds."""
BATCH = 500


def expire_replies(client: redis.Redis) -> int:
    """Give an end to the answers that have none; how many lists of them that were. Raises RedisError.

    A list that is read is gone when it is empty, so what is given an end here is what nobody has read yet. No key is
    searched for: a Redis may have many that are others'.
    """
    found, batch = 0, list[str]()
    for member in client.sscan_iter(BINDINGS, count=BATCH):
        batch.append(KEY_PREFIX + member.rpartition(SEPARATOR)[2].decode())
        if len(batch) == BATCH:
            found += _expire(client, batch)
            batch = []
    return found + _expire(client, batch)


def _expire(client: redis.Redis, keys: list[str]) -> int:
    with client.pipeline(transaction=False) as asking:
        for key in keys:
            asking.ttl(key)
        endless = [key for key, ttl_s in zip(keys, asking.execute(), strict=True) if ttl_s == -1]
    with client.pipeline(transaction=False) as telling:
        for key in endless:
            telling.expire(key, KEPT_S)
        telling.execute()
    return len(endless)
