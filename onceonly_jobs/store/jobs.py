"""Which jobs the workers of this deployment have registered."""

from __future__ import annotations

import sqlalchemy as sa

from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.store.statement import Statement, many, nothing, one_or_none

_COLUMNS = "name, queue, match, max_attempts, time_limit_s, description, effect"

_ALL = sa.text(f"SELECT {_COLUMNS} FROM jobs ORDER BY name")


def registered() -> Statement[list[JobSpec]]:
    """Every job that a worker has announced, by name."""
    return Statement("jobs.registered", _ALL, many(lambda row: JobSpec(**row)))


_FIND = sa.text(f"SELECT {_COLUMNS} FROM jobs WHERE name = :name")


def find(name: str) -> Statement[JobSpec | None]:
    """The job of this name; None when no worker has announced it."""
    return Statement("jobs.find", _FIND, one_or_none(lambda row: JobSpec(**row)), {"name": name})


_ANNOUNCE = sa.text("""
INSERT INTO jobs AS j (name, queue, match, max_attempts, time_limit_s, description, effect)
VALUES (:name, :queue, CAST(:match AS text), :max_attempts, CAST(:time_limit_s AS integer), :description,
        CAST(:effect AS text))
ON CONFLICT (name) DO UPDATE SET
    queue = excluded.queue, match = excluded.match, max_attempts = excluded.max_attempts,
    time_limit_s = excluded.time_limit_s, description = excluded.description, effect = excluded.effect,
    registered_at = onceonly_now()
""")


def announce(spec: JobSpec) -> Statement[None]:
    """Make a job known to the API, or bring what is known of it up to date."""
    return Statement(
        "jobs.announce",
        _ANNOUNCE,
        nothing,
        {
            "name": spec.name,
            "queue": spec.queue,
            "match": spec.match,
            "max_attempts": spec.max_attempts,
            "time_limit_s": spec.time_limit_s,
            "description": spec.description,
            "effect": spec.effect,
        },
    )
