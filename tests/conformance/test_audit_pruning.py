"""The oldest part of the audit trail moves to a file, and the proof goes on over both."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from onceonly_jobs import audit_verifier
from onceonly_jobs.cli.main import build
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import audit, audit_pruning, claims, governance, runs
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock

ECHO = JobSpec(name="echo", queue="q", max_attempts=1)
DAY_S = 86_400


class Trail:
    """An audit trail that grows by real runs, its owner, and the files that its oldest parts went to."""

    def __init__(
        self, db: Database, caller: Caller, clock: Clock, urls: tuple[str, str], directory: Path
    ) -> None:
        self.db, self.caller, self.clock, self.directory = db, caller, clock, directory
        self.env = {"ONCEONLY_DATABASE_URL": urls[0], "ONCEONLY_MIGRATION_DATABASE_URL": urls[1]}
        self.owner = sa.create_engine(urls[1], poolclass=sa.NullPool)
        self.files: list[str] = []
        self.numbers = itertools.count(1)

    def start(self, key: str) -> Any:
        taking = runs.job_taking(self.caller, ECHO, key=key, ttl_s=60, metadata=None)
        run = self.db.run(runs.take, self.caller, taking).run.id
        return self.db.run(claims.claim, run, "echo", 15.0, None)

    def end(self, claim: Any) -> None:
        assert self.db.run(claims.complete, claim, {}, 3600) is Ending.STORED

    def seal(self) -> None:
        assert self.db.run(audit.seal) > 0

    def days(self, count: int) -> None:
        """Each with two runs, a policy change and a seal."""
        for _ in range(count):
            for _ in range(2):
                self.end(self.start(f"k{next(self.numbers)}"))
            self.db.run(governance.set_policy, self.caller, "bot", PolicyRequest(max_actions_per_hour=5))
            self.seal()
            self.clock.advance(DAY_S + 1)

    def column(self, query: str) -> list[Any]:
        with self.owner.begin() as connection:
            return list(connection.exec_driver_sql(query).scalars())

    def attack(self, *statements: str) -> None:
        with self.owner.begin() as connection:
            for statement in statements:
                assert connection.exec_driver_sql(statement).rowcount > 0, f"changed nothing: {statement}"

    def command(self, *words: str) -> str:
        done = CliRunner().invoke(build(["audit"]), ["audit", *words], env=self.env)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    def prune(self, keep_days: int) -> str:
        path = str(self.directory / f"archive-{len(self.files)}.jsonl")
        said = self.command("prune", "--keep-days", str(keep_days), "--export", path)
        if Path(path).exists():
            self.files.append(path)
        return said

    @contextmanager
    def pruned_before(self, statement: int) -> Iterator[list[str]]:
        """Whoever reads is overtaken by a prune before his statement of this number; what that said."""
        numbers, said = itertools.count(), list[str]()

        def reading(*_: object) -> None:
            if next(numbers) == statement:
                said.append(self.prune(keep_days=1))

        sa.event.listen(self.db.engine, "before_cursor_execute", reading)
        yield said
        sa.event.remove(self.db.engine, "before_cursor_execute", reading)

    def found(self, head: str | None = None, archive: bool = False) -> list[str]:
        return [str(finding) for finding in audit.verify(self.db, head, self.files if archive else ())]

    def head(self) -> str:
        number, hashed = self.db.run(audit.head)
        return f"{number}:{hashed}"


@pytest.fixture
def trail(
    db: Database, caller: Caller, clock: Clock, database_url: str, owner_url: str, tmp_path: Path
) -> Iterator[Trail]:
    """Four days' seals, each with a policy version, two decisions and their outcomes; now it is the fifth day."""
    trail = Trail(db, caller, clock, (database_url, owner_url), tmp_path)
    trail.days(4)
    yield trail
    trail.owner.dispose()


def test_the_chain_is_verified_from_the_checkpoint_on_and_with_its_archive(trail: Trail) -> None:
    head = trail.head()
    assert trail.prune(keep_days=3).startswith("8 rows deleted, of seals 1 to 2")
    assert trail.column("SELECT number FROM audit_seals ORDER BY 1") == [3, 4]
    assert trail.column("SELECT id FROM audit_decisions ORDER BY 1") == [5, 6, 7, 8]
    assert trail.column("SELECT decision_id FROM audit_outcomes ORDER BY 1") == [5, 6, 7, 8]
    assert trail.column("SELECT seal || ' ' || rows_pruned FROM audit_checkpoints") == ["2 8"]
    trail.days(1)
    assert trail.found(head) == trail.found(head, archive=True) == []
    assert trail.prune(keep_days=2).startswith("8 rows deleted, of seals 3 to 4")
    trail.days(1)
    assert trail.found() == trail.found(head, archive=True) == []
    assert "up to seal 4" in trail.command("verify")
    [first, second] = trail.files
    said = trail.command("verify", "--head", head, "--archive", first, "--archive", second)
    assert said.startswith("ok: 30 rows")
    assert "believed" not in said


def test_policies_stay_and_stay_proven(trail: Trail) -> None:
    trail.prune(keep_days=2)
    assert trail.column("SELECT count(*) FROM policy_versions") == [4]
    trail.attack("UPDATE policy_versions SET actor = 'somebody' WHERE id = 1")
    assert trail.found() == ["policy 1: changed since it was sealed"]
    trail.attack("DELETE FROM policy_versions WHERE id = 1")
    assert trail.found() == ["policy 1: missing"]
    trail.attack("DELETE FROM audit_sealed WHERE kind = 'policy' AND row_id = 1")
    assert trail.found() == [], "without the archive nobody can know"
    assert trail.found(archive=True) == ["policy 1: missing, though the archive has it"]


def test_what_was_pruned_cannot_be_forged_with_the_archive_at_hand(trail: Trail) -> None:
    """Whoever owns the tables may delete what he likes and say that it was exported: not what was in the archive."""
    trail.prune(keep_days=3)
    head = trail.head()
    trail.attack("UPDATE audit_checkpoints SET hash = repeat('a', 64)")
    assert trail.found() == ["seal 3: broken link: it does not name the hash of seal 2"]
    trail.attack(
        "UPDATE audit_checkpoints SET seal = 3, hash = (SELECT hash FROM audit_seals WHERE number = 3)",
        "DELETE FROM audit_decisions WHERE id IN (5, 6)",
        "DELETE FROM audit_outcomes WHERE decision_id IN (5, 6)",
        "DELETE FROM audit_sealed WHERE seal = 3 AND kind <> 'policy'",
        "DELETE FROM audit_seals WHERE number = 3",
    )
    assert trail.found(head) == [], "without the archive nobody can know"
    assert trail.found(head, archive=True) == [
        "checkpoint: begins after seal 3, but what came before ends with 2",
        "policy 3: the archive does not have it so",
    ]


def test_what_is_pruned_while_it_is_verified_is_not_missing(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before whichever of the statements."""
    monkeypatch.setattr(audit, "SEALS_AT_ONCE", 2)
    for statement in itertools.count():
        trail.days(2)
        with trail.pruned_before(statement) as said:
            assert trail.found() == [], f"before statement {statement}"
        if not said:
            break
    assert statement > 10


def test_an_export_that_a_prune_overtakes_is_none(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a chain would look like an attack."""
    monkeypatch.setattr(audit, "SEALS_AT_ONCE", 1)
    with trail.pruned_before(6), pytest.raises(LookupError, match="seals 2 to 3 were pruned"):
        list(audit.export(trail.db))


def test_an_older_head_needs_the_archive(trail: Trail) -> None:
    number, hashed = 1, trail.column("SELECT hash FROM audit_seals WHERE number = 1")[0]
    trail.prune(keep_days=2)
    assert trail.found(f"{number}:{hashed}") == [
        "head: not shown: what is checked here begins after seal 3, so the parts before it are needed"
    ]
    assert trail.found(f"{number}:{hashed}", archive=True) == []


def test_a_changed_archive_is_found(trail: Trail) -> None:
    trail.prune(keep_days=3)
    path = Path(trail.files[0])
    path.write_text(path.read_text().replace('"allowed":true', '"allowed":false', 1))
    assert trail.found(archive=True) == [f"{path}: seal 1, decision 1: changed since it was sealed"]


def test_what_is_put_back_below_the_checkpoint_is_found(trail: Trail) -> None:
    trail.prune(keep_days=3)
    trail.attack("INSERT INTO audit_sealed SELECT 'decision', 1, 1, 1, 'x'")
    assert trail.found() == ["seal 1, decision 1: extra: up to seal 2 all was pruned"]


def test_parts_are_verified_together_away_from_the_database(trail: Trail, tmp_path: Path) -> None:
    trail.prune(keep_days=3)
    trail.prune(keep_days=2)
    rest = tmp_path / "rest.jsonl"
    trail.command("export", "--to", str(rest))
    verifier = [sys.executable, audit_verifier.__file__]

    def status(*paths: str) -> int:
        words = [*verifier, *paths, "--head", trail.head()]
        return subprocess.run(words, capture_output=True, check=False).returncode

    assert status(*trail.files, str(rest)) == 0
    assert status(trail.files[0], str(rest)) == 1, "a part is missing"
    assert status(trail.files[1], trail.files[0], str(rest)) == 1, "out of order"


def test_a_part_that_overlaps_the_next_is_fine_where_both_agree(trail: Trail, tmp_path: Path) -> None:
    """A prune that was killed between two transactions has exported more than it has deleted."""
    lines = list(audit.export(trail.db, 1, 3))
    wide = tmp_path / "wide.jsonl"
    wide.write_text("".join(f"{line}\n" for line in lines))
    trail.prune(keep_days=3)
    trail.files = [str(wide)]
    assert trail.found(archive=True) == []
    other = json.loads(lines[-1]) | {"head": {"number": 3, "hash": "b" * 64}}
    seals = [n for n, line in enumerate(lines) if line.startswith('{"seal"')]
    lines[seals[2]] = lines[seals[2]].replace(json.loads(lines[seals[2]])["seal"]["hash"], "b" * 64)
    wide.write_text("".join(f"{line}\n" for line in [*lines[:-1], json.dumps(other)]))
    assert "seal 3: two parts have different seals of this number" in trail.found(archive=True)


def test_it_stops_at_the_first_decision_whose_run_goes_on(trail: Trail) -> None:
    claim = trail.start("goes on")
    trail.seal()
    trail.clock.advance(30 * DAY_S)
    trail.days(2)
    trail.attack("UPDATE runs SET lease_until_at = NULL WHERE key = 'goes on'")
    assert "seal 5 has the decision on goes on" in trail.prune(keep_days=0)
    assert trail.column("SELECT min(number) FROM audit_seals") == [5]
    trail.attack("UPDATE runs SET state = 'completed', done_at = onceonly_now() WHERE key = 'goes on'")
    trail.prune(keep_days=0)
    assert trail.column("SELECT number FROM audit_seals") == [7], "the newest seal stays"
    assert claim is not None


def test_it_stops_at_the_first_dead_letter_that_may_be_replayed(trail: Trail) -> None:
    """A replay reads who asked for the run, and the decision on it."""
    claim = trail.start("dead")
    trail.db.run(claims.fail, claim, "x", None, 3 * DAY_S, dead_lettered=True)
    trail.seal()
    trail.clock.advance(DAY_S)
    trail.days(1)
    assert "seal 5 has the decision on dead" in trail.prune(keep_days=0)
    trail.clock.advance(2 * DAY_S)
    trail.prune(keep_days=0)
    assert trail.column("SELECT number FROM audit_seals") == [6], "its retention time is over"


def test_an_outcome_that_is_sealed_after_its_decision_was_pruned_is_verified(trail: Trail) -> None:
    claim = trail.start("k")
    trail.seal()
    trail.days(1)
    trail.attack(
        "UPDATE runs SET state = 'completed' WHERE key = 'k'",
        f"INSERT INTO audit_outcomes (decision_id, tenant_id, outcome) VALUES ({claim.decision_id}, 't', 'completed')",
    )
    trail.prune(keep_days=0)
    trail.seal()
    assert trail.found() == trail.found(archive=True) == []
    assert claim.decision_id not in trail.column("SELECT id FROM audit_decisions")
    assert claim.decision_id in trail.column("SELECT decision_id FROM audit_outcomes")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_decisions SET tool = 'x' WHERE id = 2",
        "DELETE FROM audit_outcomes WHERE decision_id = 2",
        "UPDATE audit_seals SET row_count = 9 WHERE number = 1",
    ],
)
def test_a_trail_that_does_not_hold_is_not_pruned(trail: Trail, statement: str) -> None:
    trail.attack(statement)
    with pytest.raises(ConfigError, match=r"nothing was deleted: .*seal 1"):
        trail.prune(keep_days=2)
    assert trail.column("SELECT number FROM audit_seals ORDER BY 1") == [1, 2, 3, 4]


def test_rows_that_changed_after_the_export_are_not_deleted(trail: Trail, tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    owner = Database(trail.env["ONCEONLY_MIGRATION_DATABASE_URL"], pool_size=1)
    plan = owner.run(audit_pruning.plan, None, 2)
    path.write_text("".join(f"{line}\n" for line in audit.export(trail.db, 1, plan.last)))
    trail.attack("DELETE FROM audit_outcomes WHERE decision_id = 2")
    with pytest.raises(ConfigError, match="not what was exported"):
        audit_pruning.prune(owner, plan, path)
    owner.close()
    assert trail.column("SELECT count(*) FROM audit_seals") == [4]


def test_the_serving_role_may_not_prune(trail: Trail) -> None:
    del trail.env["ONCEONLY_MIGRATION_DATABASE_URL"]
    with pytest.raises(ConfigError, match="only the owner"):
        trail.prune(keep_days=2)
    assert not trail.files


@pytest.mark.parametrize("words", [[], ["--before", "2026-01-01", "--keep-days", "3"]])
def test_how_much_is_kept_has_to_be_said_once(trail: Trail, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="either"):
        trail.command("prune", "--export", str(trail.directory / "x"), *words)


def test_a_time_may_be_given_and_a_file_is_never_overwritten(trail: Trail) -> None:
    path = trail.directory / "x"
    prune = ["prune", "--export", str(path), "--before"]
    assert "nothing to prune" in trail.command(*prune, "2020-01-01")
    assert "of seals 1 to 3" in trail.command(*prune, "2100-01-01")
    with pytest.raises(ConfigError, match="is there already"):
        trail.command(*prune, "2100-01-01")
