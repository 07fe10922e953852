"""What was decided, what came of it, and the proof that neither was altered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onceonly_jobs.audit_verifier import (
    GENESIS,
    Chain,
    Finding,
    Row,
    canonical,
    row_hash,
    seal_hash,
    verify_parts,
)
from onceonly_jobs.services.audit_pruning import checkpoint
from onceonly_jobs.store import audit, audit_pruning
from onceonly_jobs.store.audit import AuditEntry, SealState, UnsealedRow
from onceonly_jobs.store.audit_pruning import Checkpoint
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.statement import Operation, autocommit

SEAL_BATCH = 1000
SEALS_AT_ONCE = 20
"""How many seals, of SEAL_BATCH rows at most, are held in memory while the chain is read."""
MOST_LISTED = 100
"""How many rows outside the chain are named."""


class PrunedMeanwhile(LookupError):
    """What was to be read next is in an archive now."""


Sealed = tuple[dict[str, Any], list[Row]]
"""A seal and the rows that are there for it."""


@autocommit
def decisions_of(tenant_id: str, key: str) -> Operation[list[AuditEntry]]:
    """Every decision about a run, newest first, each with its outcome."""
    return (yield from audit.of_run(tenant_id, key))


def seal(batch: int = SEAL_BATCH) -> Operation[int]:
    """How many rows were sealed now; fewer than `batch` when none are left, or another process is sealing.

    Needs a transaction at READ COMMITTED: what is read under the lock has to be newer than the lock.
    """
    if not (yield from audit.begin_sealing()):
        return 0
    state = yield from audit.seal_state()
    rows = yield from audit.unsealed(state, batch)
    if rows:
        made = _made(state, rows, drained=len(rows) < batch)
        yield from audit.add_seal(made)
        yield from audit.add_sealed(made["number"], made["rows"])
    return len(rows)


def _made(state: SealState, rows: list[UnsealedRow], *, drained: bool) -> dict[str, Any]:
    """The seal over these rows, as it is stored and hashed.

    `state` was read before the rows: what it calls finished was visible to them. A full batch may have left
    rows of its last transaction behind. After a restore the numbers count again once everything is sealed.
    """
    seal = {
        "number": state.number + 1,
        "previous": state.hash,
        "row_count": len(rows),
        "sealed_at": state.now,
        "horizon": state.oldest if drained else min(state.oldest, rows[-1].transaction_id),
        "cluster": state.cluster if drained or state.same_cluster else state.cluster_sealed,
        "rows": [[each.kind, each.row_id, row_hash(each.kind, each.row)] for each in rows],
    }
    return {**seal, "hash": seal_hash(seal)}


def head() -> Operation[tuple[int, str]]:
    """Number and hash of the newest seal."""
    state = yield from audit.seal_state()
    return state.number, state.hash


def sealed_after(number: int, limit: int) -> Operation[list[Sealed]]:
    """The seals that follow one, each with the rows that are there for it now."""
    yield from audit.in_utc()
    found = yield from audit.seals(number, limit)
    if not found:
        return []
    by_seal: dict[int, Sealed] = {seal["number"]: ({**seal, "rows": []}, []) for seal in found}
    for each in (yield from audit.sealed(found[0]["number"], found[-1]["number"])):
        if each.seal in by_seal:
            seal, rows = by_seal[each.seal]
            seal["rows"].append([each.kind, each.row_id, each.row_hash])
            if each.row is not None:
                rows.append((each.kind, each.row))
    return list(by_seal.values())


def _next(after: int) -> Operation[list[Sealed]]:
    """Some of the seals that follow one. Raises PrunedMeanwhile.

    The checkpoint is read last: whatever of them is gone by then, it came with that.
    """
    found = yield from sealed_after(after, SEALS_AT_ONCE)
    begun = yield from audit_pruning.checkpoint()
    if begun is not None and begun.seal > after:
        raise PrunedMeanwhile(
            f"seals {after + 1} to {begun.seal} were pruned while they were read: try again"
        )
    return found


def outside_the_chain() -> Operation[tuple[list[Finding], int]]:
    """What is listed for no seal that exists or was slipped in; and how many rows just wait to be sealed."""
    findings = [
        Finding(f"seal {seal}, {kind} {row_id}", "listed for a seal that is not there")
        for seal, kind, row_id in (yield from audit.orphans(MOST_LISTED))
    ]
    state = yield from audit.seal_state()
    slipped_in = (yield from audit.inserted(state, MOST_LISTED)) if state.same_cluster else []
    findings += [
        Finding(f"{each.kind} {each.row_id}", "extra: in a sealed range, but no seal lists it")
        for each in slipped_in
    ]
    return findings, (yield from audit.count_unsealed()) - len(slipped_in)


Policies = dict[int, str]
"""Hashes of versions of policies, as seals list them."""


def pruned() -> Operation[tuple[Checkpoint | None, Policies, list[Finding]]]:
    """Where the chain begins that is still here, which policies of the pruned part stayed, and what is wrong there."""
    yield from audit.in_utc()
    begun = yield from audit_pruning.checkpoint()
    if begun is None:
        return None, {}, []
    findings = [
        Finding(f"seal {seal}, {kind} {number}", f"extra: up to seal {begun.seal} all was pruned")
        for seal, kind, number in (yield from audit_pruning.left_behind(begun.seal, MOST_LISTED))
    ]
    kept = yield from audit_pruning.kept_policies(begun.seal)
    for number, hashed, row in kept:
        if row is None:
            findings.append(Finding(f"policy {number}", "missing"))
        elif row_hash("policy", row) != hashed:
            findings.append(Finding(f"policy {number}", "changed since it was sealed"))
    return begun, {number: hashed for number, hashed, _ in kept}, findings


def _unlike(archived: Policies, kept: Policies, later: Policies) -> Iterator[Finding]:
    """Policies of the pruned part that are not as its archive has them; later: those of the seals that are here."""
    for number, hashed in sorted(kept.items()):
        if archived.get(number) != hashed:
            yield Finding(f"policy {number}", "the archive does not have it so")
    for number in sorted(archived.keys() - kept.keys() - later.keys()):
        yield Finding(f"policy {number}", "missing, though the archive has it")


class Verification:
    """A check of the whole chain in the database: iterate for findings, then read the counts."""

    def __init__(self, database: Database, head: str | None = None, archive: Sequence[str] = ()) -> None:
        self._database = database
        self._head = head
        self._archive = archive
        self.chain = Chain(head)
        self.pruned = 0
        """Up to which seal nothing is in the database any more."""
        self.unsealed = 0

    def __iter__(self) -> Iterator[Finding]:
        while True:
            try:
                yield from self._findings()
            except PrunedMeanwhile:
                self.chain = Chain(self._head)
            else:
                return

    def _findings(self) -> Iterator[Finding]:
        yield from verify_parts(self._archive, self.chain)
        archived, self.chain.policies = self.chain.policies, {}
        begun, kept, findings = self._database.run(pruned)
        yield from findings
        if begun is not None:
            self.pruned = begun.seal
            yield from self.chain.go_on("checkpoint", begun.seal, begun.hash)
        elif self._archive:
            yield from self.chain.go_on("the database", 0, GENESIS)
        for seal, rows in _stream(self._database, self.pruned):
            yield from self.chain.seal(seal, rows)
        if self._archive:
            yield from _unlike(archived, kept, self.chain.policies)
        yield from self.chain.end()
        findings, self.unsealed = self._database.run(outside_the_chain)
        yield from findings


def verify(database: Database, head: str | None = None, archive: Sequence[str] = ()) -> Verification:
    """The findings of a check of the whole chain, read in batches; none when every sealed row is as it was.

    `head`, a hash or NUMBER:HASH kept elsewhere, also shows that the chain was not cut off or made anew.
    archive: files of what was pruned, oldest first; without them, the checkpoint is believed.
    """
    return Verification(database, head, archive)


def export(database: Database, from_seal: int = 1, to_seal: int | None = None) -> Iterator[str]:
    """The chain from a seal on as lines of JSON, all that is needed to verify it included.

    From seal 1 is from the first that was not pruned. Raises LookupError where there is no such seal, or where the next
    one is pruned meanwhile.
    """
    begun = database.run(checkpoint)
    after = max(from_seal, 1) - 1
    if begun is not None and after in (0, begun.seal):
        after, hashed = begun.seal, begun.hash
    else:
        hashed = _hash_of(database, after)
    number = after
    yield _line("export", {"format": 1, "after_seal": after, "previous": hashed})
    for seal, rows in _stream(database, after):
        if to_seal is not None and seal["number"] > to_seal:
            break
        number, hashed = seal["number"], seal["hash"]
        yield _line("seal", seal)
        for kind, row in rows:
            yield _line(kind, row)
    yield _line("head", {"number": number, "hash": hashed})


def _hash_of(database: Database, number: int) -> str:
    """A seal's hash. Raises LookupError where it is not there."""
    if number == 0:
        return GENESIS
    found = database.run(sealed_after, number - 1, 1)
    if not found or found[0][0]["number"] != number:
        raise LookupError(f"there is no seal {number}")
    return str(found[0][0]["hash"])


def _stream(database: Database, after: int) -> Iterator[Sealed]:
    while found := database.run(_next, after):
        yield from found
        after = found[-1][0]["number"]


def _line(kind: str, contents: dict[str, Any]) -> str:
    return canonical({kind: contents}).decode()
