"""Which jobs the workers of this deployment have registered."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from onceonly_jobs.domain.runs import MAX_CRASHES, JobSpec
from onceonly_jobs.store.statement import Statement, many, nothing

_COLUMNS = f"""name, queue, match, max_attempts, coalesce(max_crashes, {MAX_CRASHES}) AS max_crashes, time_limit_s,
    description, effect"""

_ALL = sa.text(f"SELECT {_COLUMNS} FROM jobs ORDER BY name")


def registered() -> Statement[list[JobSpec]]:
    """Every job that a worker has announced, by name."""
    return Statement("jobs.registered", _ALL, many(lambda row: JobSpec(**row)))


_FIND = sa.text(f"SELECT {_COLUMNS} FROM jobs WHERE name = ANY(CAST(:names AS text[]))")


def find(names: Sequence[str]) -> Statement[list[JobSpec]]:
    """The jobs of these names, as far as a worker has announced them."""
    return Statement("jobs.find", _FIND, many(lambda row: JobSpec(**row)), {"names": list(names)})


_ANNOUNCE = sa.text("""
INSERT INTO jobs AS j (name, queue, match, max_attempts, max_crashes, time_limit_s, description, effect)
VALUES (:name, :queue, CAST(:match AS text), :max_attempts, :max_crashes, CAST(:time_limit_s AS integer), :description,
        CAST(:effect AS text))
ON CONFLICT (name) DO UPDATE SET
    queue = excluded.queue, match = excluded.match, max_attempts = excluded.max_attempts,
    max_crashes = excluded.max_crashes, time_limit_s = excluded.time_limit_s, description = excluded.description,
    effect = excluded.effect,
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
            "max_crashes": spec.max_crashes,
            "time_limit_s": spec.time_limit_s,
            "description": spec.description,
            "effect": spec.effect,
        },
    )
