"""Taking the oldest part of the audit trail out of the database: into a file first, that was checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from onceonly_jobs.audit_verifier import GENESIS, Chain, read_export, verify_export
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.store import audit_pruning as store
from onceonly_jobs.store.audit_pruning import Checkpoint, Needed
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.statement import Operation, read_only

SEALS_AT_ONCE = 20
"""How many seals, of 1000 rows at most, a transaction deletes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The seals to be pruned: those after `after`, up to `last`."""

    after: int
    previous: str
    """hash of seal `after`"""
    last: int
    needed: Needed | None
    """why it ends there, if that is a run"""

    @property
    def empty(self) -> bool:
        return self.last <= self.after


@read_only
def checkpoint() -> Operation[Checkpoint | None]:
    """Where the chain begins that is still here; None where nothing was ever pruned."""
    return (yield from store.checkpoint())


@read_only
def plan(before: datetime | None, keep_days: int = 0) -> Operation[Plan]:
    """Which seals may go: all made before that time, or longer ago than so many days, up to the first with a decision
    whose run has not ended, or is a dead letter.

    A run reads who asked for it, a replayed one too, and a call of unknown outcome is settled by what its decision
    says. Raises ConfigError where the role may not delete.
    """
    if not (yield from store.permitted()):
        raise ConfigError(
            "only the owner of the tables may prune the audit trail: set ONCEONLY_MIGRATION_DATABASE_URL"
        )
    begun = (yield from store.checkpoint()) or Checkpoint(0, GENESIS)
    last = yield from store.last_before(before, keep_days)
    needed = yield from store.first_needed(last)
    return Plan(begun.seal, begun.hash, last if needed is None else needed.seal - 1, needed)


class Archive:
    """The file of an export, checked as an auditor would, and on disk. Raises ConfigError where it does not hold."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.ends: dict[int, str] = {}
        chain = Chain()
        with path.open(encoding="utf-8", newline="\n") as lines:
            findings = [str(finding) for finding in verify_export(lines, chain)]
        with path.open(encoding="utf-8", newline="\n") as lines:
            for _, kind, contents in read_export(lines):
                if kind == "export" and (contents["after_seal"], contents["previous"]) != (
                    plan.after,
                    plan.previous,
                ):
                    findings.append("it does not begin where the chain does")
                if kind == "seal":
                    self.ends[contents["number"]] = contents["hash"]
        if chain.number != plan.last:
            findings.append(f"it ends with seal {chain.number}, not {plan.last}")
        if findings:
            raise ConfigError(f"nothing was deleted: {path}: {findings[0]}")
        self.rows = chain.rows
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()


def delete(first: int, last: int, archive: Archive) -> Operation[int]:
    """Delete some seals that the archive has, with their rows, and leave a checkpoint; how many rows.

    Raises ConfigError, and nothing is deleted, where the database has other ones than the archive.
    """
    gone = yield from store.delete(first, last)
    if gone.seals != last - first + 1 or gone.hash != archive.ends[last] or gone.rows != gone.listed:
        raise ConfigError(f"nothing more was deleted: seals {first} to {last} are not what was exported")
    yield from store.add_checkpoint(last, archive.ends[last], gone.rows, archive.sha256)
    return gone.rows


def prune(database: Database, plan: Plan, path: Path) -> int:
    """Delete what the plan says and the file holds, some seals a transaction; how many rows.

    Raises ConfigError: see `Archive` and `delete`.
    """
    archive = Archive(path, plan)
    rows = 0
    for first in range(plan.after + 1, plan.last + 1, SEALS_AT_ONCE):
        last = min(first + SEALS_AT_ONCE - 1, plan.last)
        rows += database.run(delete, first, last, archive)
    return rows
