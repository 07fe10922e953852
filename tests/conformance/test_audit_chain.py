"""Whoever rewrites the audit trail is found out: by the database's own check and by an export's, away from it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.storms import storm
from typer.testing import CliRunner

from onceonly_jobs import audit_verifier
from onceonly_jobs.audit_verifier import Chain, Finding, verify_export
from onceonly_jobs.cli.main import build
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.dispatch.relay import Relay
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import audit, governance
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.tables import audit_decisions, audit_outcomes, audit_seals, policy_versions

DECIDE = """
INSERT INTO audit_decisions (tenant_id, actor, agent_id, tool, run_key, allowed, decision, policy_reason,
                             policy_code, risk_level, args_hash, spend_micro_usd, policy_version)
VALUES ('t', 'key_1', 'bot', 'wörk "1"', 'k', true, 'executed', 'ok', 'ok', 'low', 'abc', 70000, 3) RETURNING id
"""
CONCLUDE = """
INSERT INTO audit_outcomes (decision_id, tenant_id, outcome, error_code, spend_micro_usd, latency_ms)
VALUES (%s, 't', 'completed', 'none', 70000, 12)
"""


def decide(connection: sa.Connection, outcome: bool = True) -> int:
    decision = int(connection.exec_driver_sql(DECIDE).scalar_one())
    if outcome:
        connection.exec_driver_sql(CONCLUDE, (decision,))
    return decision


class Trail:
    """An audit trail, and its owner, who may do to it what he likes."""

    def __init__(self, db: Database, owner: sa.Engine) -> None:
        self.db = db
        self.owner = owner

    def grow(self, decisions: int = 1) -> None:
        with self.db.engine.begin() as connection:
            for _ in range(decisions):
                decide(connection)

    def attack(self, *statements: str) -> None:
        with self.owner.begin() as connection:
            for statement in statements:
                assert connection.exec_driver_sql(statement).rowcount > 0, f"changed nothing: {statement}"

    def found(self, head: str | None = None) -> list[str]:
        return [str(finding) for finding in audit.verify(self.db, head)]

    def head(self) -> str:
        number, hashed = self.db.run(audit.head)
        return f"{number}:{hashed}"

    def column(self, query: str) -> list[Any]:
        with self.owner.connect() as connection:
            return list(connection.exec_driver_sql(query).scalars())


@pytest.fixture
def trail(db: Database, owner_url: str) -> Iterator[Trail]:
    owner = sa.create_engine(owner_url, poolclass=sa.NullPool)
    yield Trail(db, owner)
    owner.dispose()


@pytest.fixture
def sealed(trail: Trail) -> Trail:
    """Three seals over decisions 1 to 9 and their outcomes: 1-3, 4-6, 7-9."""
    for _ in range(3):
        trail.grow(3)
        assert trail.db.run(audit.seal) == 6
    assert trail.found() == []
    return trail


def test_a_whole_chain_is_found_whole(sealed: Trail) -> None:
    checked = audit.verify(sealed.db, sealed.head())
    assert list(checked) == []
    assert (checked.chain.number, checked.chain.rows, checked.unsealed) == (3, 18, 0)
    sealed.grow()
    assert list(checked := audit.verify(sealed.db)) == []
    assert checked.unsealed == 2


def _flipped(column: sa.Column[Any]) -> str:
    """SQL that changes a column's value by the least that can be."""
    name = column.name
    if isinstance(column.type, sa.Boolean):
        return f"NOT {name}"
    if isinstance(column.type, sa.BigInteger | sa.Integer):
        return f"{name} # 1"
    if isinstance(column.type, sa.Text):
        return f"chr(ascii({name}) # 1) || substr({name}, 2)"
    return f"{name} + interval '1 microsecond'"


COLUMNS = [(table, column) for table in (audit_decisions, audit_outcomes) for column in table.columns]


@pytest.mark.parametrize(
    ("table", "column"), COLUMNS, ids=[f"{table.name}.{column.name}" for table, column in COLUMNS]
)
def test_one_changed_byte_of_any_column_is_found(
    sealed: Trail, table: sa.Table, column: sa.Column[Any]
) -> None:
    key = next(iter(table.primary_key)).name
    kind = "decision" if table is audit_decisions else "outcome"
    if column.name == key:  # 5 ^ 1 is 4: its row has to make room
        sealed.attack(f"DELETE FROM {table.name} WHERE {key} = 4")
    value = _flipped(column)
    sealed.attack(f"UPDATE {table.name} SET {column.name} = {value} WHERE {key} = 5")
    found = sealed.found()
    first = 4 if column.name == key else 5
    assert found[0] == f"seal 2, {kind} {first}: changed since it was sealed"
    if column.name == key:
        assert f"seal 2, {kind} 5: missing" in found


@pytest.mark.parametrize("table", [audit_decisions, audit_outcomes], ids=lambda table: table.name)
def test_a_value_made_null_or_given_to_a_null_is_found(sealed: Trail, table: sa.Table) -> None:
    key = next(iter(table.primary_key)).name
    optional = [column.name for column in table.columns if column.nullable]
    assert optional
    for name in optional:
        with sealed.owner.connect() as connection:  # rolled back each time
            connection.exec_driver_sql(f"UPDATE {table.name} SET {name} = NULL WHERE {key} = 5")
            rows = connection.exec_driver_sql(
                f"SELECT to_jsonb(r) FROM {table.name} r WHERE {key} = 5"
            ).scalars()
            kind = "decision" if table is audit_decisions else "outcome"
            hashed = audit_verifier.row_hash(kind, next(iter(rows)))
        listed = sealed.column(f"SELECT row_hash FROM audit_sealed WHERE row_id = 5 AND kind = '{kind}'")
        assert [hashed] != listed, name


def test_a_dropped_row_is_found(sealed: Trail) -> None:
    sealed.attack("DELETE FROM audit_decisions WHERE id = 5")
    assert sealed.found() == ["seal 2, decision 5: missing"]


def test_a_dropped_row_and_its_place_in_the_seal_are_found(sealed: Trail) -> None:
    sealed.attack(
        "DELETE FROM audit_outcomes WHERE decision_id = 5",
        "DELETE FROM audit_sealed WHERE kind = 'outcome' AND row_id = 5",
    )
    assert [line.split(":")[0] for line in sealed.found()] == ["seal 2", "seal 2"]


@pytest.mark.parametrize("transaction_id", ["transaction_id", "1", "transaction_id + 1000000000"])
def test_a_row_put_among_sealed_ones_is_found(sealed: Trail, transaction_id: str) -> None:
    """Also one that pretends to be of a transaction to come, which would never be sealed."""
    columns = ", ".join(c.name for c in audit_decisions.columns if c.name not in ("id", "transaction_id"))
    sealed.attack(
        f"INSERT INTO audit_decisions (id, transaction_id, {columns}) "
        f"SELECT 500, {transaction_id}, {columns} FROM audit_decisions WHERE id = 5"
    )
    assert sealed.found() == ["decision 500: extra: in a sealed range, but no seal lists it"]
    assert sealed.db.run(audit.seal) == 0 or transaction_id == "transaction_id"


def test_what_commits_during_a_check_is_no_finding(sealed: Trail) -> None:
    """The check asks in several statements, and each sees what was committed before it."""
    operation = audit.outside_the_chain()
    with sealed.db.engine.connect() as connection:
        statement = next(operation)
        while True:
            answer = statement.read(connection.execute(statement.query, statement.params))
            sealed.grow()
            try:
                statement = operation.send(answer)
            except StopIteration as done:
                findings, _ = done.value
                break
    assert findings == []


def test_a_row_put_into_a_seal_is_found(sealed: Trail) -> None:
    columns = ", ".join(c.name for c in audit_decisions.columns if c.name != "id")
    sealed.attack(
        f"INSERT INTO audit_decisions (id, {columns}) SELECT 500, {columns} FROM audit_decisions WHERE id = 5",
        "INSERT INTO audit_sealed SELECT 'decision', 500, 2, 99, row_hash FROM audit_sealed "
        "WHERE kind = 'decision' AND row_id = 5",
    )
    assert sealed.found()[0] == "seal 2, decision 500: changed since it was sealed"


def test_two_rows_swapped_are_found(sealed: Trail) -> None:
    sealed.attack(
        "UPDATE audit_decisions SET id = -1 WHERE id = 5",
        "UPDATE audit_decisions SET id = 5 WHERE id = 6",
        "UPDATE audit_decisions SET id = 6 WHERE id = -1",
    )
    assert sealed.found()[:2] == [f"seal 2, decision {n}: changed since it was sealed" for n in (5, 6)]


def test_two_places_in_a_seal_swapped_are_found(sealed: Trail) -> None:
    sealed.attack(
        "UPDATE audit_sealed SET position = -1 WHERE kind = 'decision' AND row_id = 5",
        "UPDATE audit_sealed SET position = 2 WHERE kind = 'decision' AND row_id = 6 AND position = 3",
        "UPDATE audit_sealed SET position = 3 WHERE position = -1",
    )
    assert sealed.found()[0] == "seal 2, decision 5: reordered: it is listed after rows that follow it"


@pytest.mark.parametrize("column", [c.name for c in audit_seals.columns])
def test_a_changed_seal_is_found(sealed: Trail, column: str) -> None:
    flipped = _flipped(audit_seals.columns[column])
    if column == "number":
        flipped = "20"
    sealed.attack(f"UPDATE audit_seals SET {column} = {flipped} WHERE number = 2")
    found = sealed.found()
    assert found
    assert found[0].startswith(("seal 2:", "seal 3: follows seal 1"))


@pytest.mark.parametrize(
    "change", ["row_hash = md5('x')", "row_id = 1000", "kind = 'outcomes'", "seal = 77", "position = 90"]
)
def test_a_changed_list_of_rows_is_found(sealed: Trail, change: str) -> None:
    sealed.attack(f"UPDATE audit_sealed SET {change} WHERE kind = 'outcome' AND row_id = 5")
    assert any(line.startswith("seal 2") for line in sealed.found())


def test_a_row_listed_for_no_seal_is_named(sealed: Trail) -> None:
    sealed.attack("UPDATE audit_sealed SET seal = 77 WHERE kind = 'outcome' AND row_id = 5")
    assert "seal 77, outcome 5: listed for a seal that is not there" in sealed.found()


def test_a_row_changed_with_its_hash_still_breaks_the_seal(sealed: Trail) -> None:
    sealed.attack("UPDATE audit_decisions SET allowed = false WHERE id = 5")
    with sealed.owner.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT to_jsonb(d) FROM audit_decisions d, set_config('TimeZone', 'UTC', false) WHERE id = 5"
        ).scalar_one()
    forged = audit_verifier.row_hash("decision", row)
    sealed.attack(f"UPDATE audit_sealed SET row_hash = '{forged}' WHERE kind = 'decision' AND row_id = 5")
    [finding] = sealed.found()
    assert finding.startswith("seal 2: its hash is not that of its contents")


def test_a_seal_made_anew_does_not_fit_the_next_one(sealed: Trail) -> None:
    """Whoever rewrites a row has to rewrite every later seal; then only a head kept elsewhere tells."""
    [_, (seal, rows), _] = sealed.db.run(audit.sealed_after, 0, 3)
    rows[0][1]["allowed"] = False
    listed = [
        [kind, number, audit_verifier.row_hash(kind, row)]
        for (kind, number, _), (_, row) in zip(seal["rows"], rows, strict=True)
    ]
    hashed = audit_verifier.seal_hash({**seal, "rows": listed})
    sealed.attack(
        "UPDATE audit_decisions SET allowed = false WHERE id = 4",
        f"UPDATE audit_sealed SET row_hash = '{listed[0][2]}' WHERE seal = 2 AND position = 1",
        f"UPDATE audit_seals SET hash = '{hashed}' WHERE number = 2",
    )
    assert sealed.found() == ["seal 3: broken link: it does not name the hash of seal 2"]


def test_nothing_that_is_empty_has_the_hash_of_null() -> None:
    hashes = {audit_verifier.row_hash("decision", {"a": value}) for value in (None, False, 0, "")}
    assert len(hashes) == 4


def test_a_removed_seal_is_found(sealed: Trail) -> None:
    sealed.attack("DELETE FROM audit_seals WHERE number = 2")
    assert sealed.found()[0].startswith("seal 3: follows seal 1")


CUT_OFF = (
    "DELETE FROM audit_decisions WHERE id IN (SELECT row_id FROM audit_sealed WHERE seal = 3)",
    "DELETE FROM audit_outcomes WHERE decision_id IN (SELECT row_id FROM audit_sealed WHERE seal = 3)",
    "DELETE FROM audit_sealed WHERE seal = 3",
    "DELETE FROM audit_seals WHERE number = 3",
)


def test_an_end_cut_off_is_found_by_a_head_kept_elsewhere(sealed: Trail) -> None:
    head = sealed.head()
    sealed.attack(*CUT_OFF)
    assert sealed.found() == [], "without a head, a chain that merely ends earlier is a chain"
    for kept in (head, head.partition(":")[2]):
        [finding] = sealed.found(kept)
        assert "cut off or rewritten" in finding
    sealed.grow(3)
    sealed.db.run(audit.seal)
    assert sealed.head().startswith("3:")
    assert sealed.found() == []
    assert "cut off or rewritten" in sealed.found(head)[0]


def test_an_older_head_still_holds_while_the_chain_grows(sealed: Trail) -> None:
    head = sealed.head()
    sealed.grow()
    sealed.db.run(audit.seal)
    assert sealed.found(head) == []
    assert sealed.found("0:" + audit_verifier.GENESIS) == []
    assert sealed.found(head.replace("3:", "2:")) != []


def test_everything_written_while_sealing_is_sealed_exactly_once(trail: Trail) -> None:
    """16 writers, whose ids commit out of order; half roll every fifth transaction back."""
    over = threading.Event()

    def write(number: int) -> None:
        for turn in range(20):
            with trail.db.engine.connect() as connection:
                for _ in range(number % 3 + 1):
                    decide(connection, outcome=turn % 2 == 0)
                over.wait(0.002 * (number % 4))
                if number % 2 and turn % 5 == 0:
                    connection.rollback()
                else:
                    connection.commit()

    def seal() -> None:
        while not over.is_set():
            trail.db.run(audit.seal, 7)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    sealers = [threading.Thread(target=seal) for _ in range(2)]
    for thread in writers + sealers:
        thread.start()
    for thread in writers:
        thread.join()
    while trail.db.run(audit.seal, 1000):
        pass
    over.set()
    for thread in sealers:
        thread.join()
    while trail.db.run(audit.seal):
        pass
    checked = audit.verify(trail.db)
    assert list(checked) == []
    written = sorted(trail.column("SELECT id FROM audit_decisions"))
    assert sorted(trail.column("SELECT row_id FROM audit_sealed WHERE kind = 'decision'")) == written
    assert checked.unsealed == 0
    assert checked.chain.rows == len(written) + trail.column("SELECT count(*) FROM audit_outcomes")[0]
    assert trail.column("SELECT max(number) - count(*) FROM audit_seals") == [0]


@pytest.mark.parametrize("batch", [2, 100])
def test_a_late_commit_is_sealed_later_and_never_skipped(trail: Trail, batch: int) -> None:
    with trail.db.engine.connect() as late:
        early_id = decide(late)
        trail.grow()
        assert trail.db.run(audit.seal) == 2, "a transaction that is not over is not sealed"
        trail.grow()
        assert trail.db.run(audit.seal, batch) == 2
        late.commit()
    assert trail.found() == []
    assert trail.db.run(audit.seal) == 2
    assert trail.column(f"SELECT seal FROM audit_sealed WHERE row_id = {early_id}") == [3, 3]
    assert trail.found() == []


def test_a_transaction_larger_than_a_batch_is_sealed_whole(trail: Trail) -> None:
    trail.grow(10)
    assert [trail.db.run(audit.seal, 6) for _ in range(5)] == [6, 6, 6, 2, 0]
    assert trail.found() == []


def test_two_sealers_at_once_never_fork(trail: Trail) -> None:
    for _ in range(10):
        trail.grow(2)
        assert sorted(storm(4, lambda: trail.db.run(audit.seal))) == [0, 0, 0, 4]
    assert trail.column("SELECT count(*) FROM audit_seals") == [10]
    assert trail.found() == []


def test_the_chain_goes_on_after_a_restore_into_another_cluster(trail: Trail) -> None:
    """There, transaction ids start anew: neither old rows nor new ones may be skipped."""
    trail.grow(2)
    trail.db.run(audit.seal, 2)
    trail.attack(
        "UPDATE audit_decisions SET transaction_id = transaction_id + 1000000",
        "UPDATE audit_outcomes SET transaction_id = transaction_id + 1000000",
        "DELETE FROM audit_sealed",
        "DELETE FROM audit_seals",
    )
    assert trail.db.run(audit.seal, 2) == 2
    assert trail.column("SELECT cluster FROM audit_seals") == [0]
    trail.grow()
    assert [trail.db.run(audit.seal, 3) for _ in range(3)] == [3, 1, 0]
    trail.grow()
    assert trail.db.run(audit.seal, 3) == 2
    assert trail.found() == []


def test_the_serving_role_cannot_rewrite_the_seals(trail: Trail) -> None:
    for table in ("audit_seals", "audit_sealed"):
        for attack in (f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with trail.db.engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError):
                connection.exec_driver_sql(attack)


def _verified(path: Path, *options: str) -> tuple[int, list[str]]:
    """The independent verifier, copied away and run by a Python that knows nothing of this project."""
    alone = path.parent / "elsewhere.py"
    alone.write_text(Path(audit_verifier.__file__).read_text())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(alone), str(path), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent,
        env={},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def _exported(trail: Trail, from_seal: int = 1) -> list[str]:
    return list(audit.export(trail.db, from_seal))


def test_an_export_is_verified_away_from_the_database(sealed: Trail, tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text("\n".join(_exported(sealed)) + "\n")
    assert _verified(path, "--head", sealed.head()) == (0, [f"ok: 18 rows, head {sealed.head()}"])
    assert _verified(path, "--head", "f" * 64)[0] == 1
    path.write_text("\n".join(_exported(sealed, from_seal=3)) + "\n")
    assert _verified(path, "--head", sealed.head()) == (0, [f"ok: 6 rows, head {sealed.head()}"])
    lines = _exported(sealed)
    path.write_text("\n".join(lines).replace('"outcome":"completed"', '"outcome":"failed"', 1) + "\n")
    assert _verified(path) == (1, ["seal 1, outcome 1: changed since it was sealed"])


def _export_findings(lines: list[str], head: str | None = None) -> list[Finding]:
    return list(verify_export(lines, Chain(head)))


def test_every_changed_value_of_an_export_is_found(sealed: Trail) -> None:
    lines = _exported(sealed)
    assert _export_findings(lines) == []
    tried = 0
    for index, line in enumerate(lines):
        [(kind, contents)] = json.loads(line).items()
        for name, value in contents.items():
            changed = {**contents, name: _other(value)}
            tampered = [*lines[:index], json.dumps({kind: changed}), *lines[index + 1 :]]
            if changed == contents:
                continue
            assert _export_findings(tampered), f"line {index + 1}, {name}"
            tried += 1
    assert tried > 200


def _other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value[:-1] + chr(ord(value[-1]) ^ 1)
        case list():
            return [*value[:-1], [value[-1][0], value[-1][1], "0" * 64]]
        case _:
            return "x"


TAMPERINGS: dict[str, Callable[[list[str]], list[str]]] = {
    "a row dropped": lambda lines: [*lines[:3], *lines[4:]],
    "a row added": lambda lines: [*lines[:3], lines[3].replace('"id":', '"id":1'), *lines[3:]],
    "a row doubled": lambda lines: [*lines[:4], *lines[3:]],
    "two rows swapped": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "a seal dropped": lambda lines: [*lines[:8], *lines[9:]],
    "a seal and its rows dropped": lambda lines: [*lines[:8], *lines[15:]],
    "seals swapped": lambda lines: [lines[0], *lines[8:15], *lines[1:8], *lines[15:]],
    "the end cut off": lambda lines: lines[:15],
    "the head dropped": lambda lines: lines[:-1],
    "the start dropped": lambda lines: lines[1:],
    "nothing left": lambda _: [],
    "no JSON": lambda lines: [*lines[:5], "{", *lines[5:]],
    "something after the end": lambda lines: [*lines, lines[2]],
    "a lone surrogate": lambda lines: [lines[0], lines[1], lines[2].replace("bot", "\\ud800"), *lines[3:]],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_each_tampering_with_an_export_is_found(sealed: Trail, name: str) -> None:
    lines = _exported(sealed)
    assert len(lines) == 23
    assert _export_findings(TAMPERINGS[name](lines))


def test_an_export_cut_off_with_a_new_head_line_needs_the_head_kept_elsewhere(sealed: Trail) -> None:
    lines = _exported(sealed)
    seal = json.loads(lines[8])["seal"]
    cut = [*lines[:15], json.dumps({"head": {"number": 2, "hash": seal["hash"]}})]
    assert _export_findings(cut) == []
    assert "cut off" in _export_findings(cut, sealed.head())[0].problem


def test_the_database_and_its_export_are_judged_alike(sealed: Trail) -> None:
    sealed.attack("UPDATE audit_decisions SET tool = 'x' WHERE id IN (2, 8)")
    assert [str(finding) for finding in _export_findings(_exported(sealed))] == sealed.found()


def test_hashes_do_not_depend_on_the_sessions_settings(sealed: Trail) -> None:
    [name] = sealed.column("SELECT current_database()")
    with sealed.owner.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET TimeZone = 'Asia/Kolkata'")
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET DateStyle = 'SQL, DMY'")
    sealed.db.close()
    assert sealed.column("SHOW TimeZone") == ["Asia/Kolkata"]
    assert sealed.found() == []
    sealed.grow()
    sealed.db.run(audit.seal)
    assert sealed.found() == []


def _relay(settings: Settings, db: Database) -> Relay:
    return Relay(settings, db, Publisher(settings), HintSender(settings))


def test_the_relay_seals_at_a_bounded_rate(settings: Settings, trail: Trail) -> None:
    relay = _relay(settings.model_copy(update={"audit_seal_s": 3600.0}), trail.db)
    for _ in range(3):
        trail.grow()
        relay.tick()
    assert trail.column("SELECT row_count FROM audit_seals") == [2]
    _relay(settings, trail.db).tick()
    assert trail.column("SELECT row_count FROM audit_seals ORDER BY number") == [2, 4]


def test_a_sealer_that_fails_does_not_slow_the_relay(settings: Settings, trail: Trail) -> None:
    with trail.owner.begin() as connection:
        connection.exec_driver_sql("DROP TABLE audit_sealed")
    trail.grow()
    relay = _relay(settings, trail.db)
    assert [relay.tick() for _ in range(3)] == [settings.relay_interval_s] * 3


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`onceonly-jobs audit` in this process: exit status and what it printed."""
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", database_url)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(build(["audit"]), ["audit", *words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return run


def test_the_commands_say_what_holds_and_what_does_not(
    sealed: Trail, command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    sealed.grow()
    head, path = sealed.head(), str(tmp_path / "export.jsonl")
    assert command("head") == (0, f"{head}\n")
    assert command("verify", "--head", head) == (0, f"ok: 18 rows, head {head}; not yet sealed: 2\n")
    assert command("export", "--to", path) == (0, "")
    assert command("export")[1] == Path(path).read_text()
    assert command("verify", "--file", path, "--head", head) == (0, f"ok: 18 rows, head {head}\n")
    sealed.attack("UPDATE audit_decisions SET allowed = false WHERE id = 5")
    assert command("verify") == (1, "seal 2, decision 5: changed since it was sealed\n")
    sealed.attack(*CUT_OFF)
    status, printed = command("verify", "--head", head)
    assert (status, "seal 3: no such seal with the hash" in printed) == (1, True)
    with pytest.raises(ConfigError, match="there is no seal 8"):
        command("export", "--from-seal", "9")


def test_an_export_that_fails_leaves_no_file_behind(
    sealed: Trail, command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text("last month's")
    with pytest.raises(ConfigError):
        command("export", "--from-seal", "9", "--to", str(path))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["last month's"]


def test_an_untouched_trail_has_the_head_of_nothing(
    trail: Trail, command: Callable[..., tuple[int, str]]
) -> None:
    assert command("head") == (0, f"0:{audit_verifier.GENESIS}\n")
    assert command("verify")[0] == 0
    assert _export_findings(_exported(trail)) == []


POLICY = """
INSERT INTO policy_versions (tenant_id, agent_id, version, actor, change, reason, policy)
VALUES ('t', 'bot', %s, 'key_1', 'upsert', 'why', '{"max_spend_usd_per_day": 0.10000000000000000001}')
"""


@pytest.fixture
def with_policies(trail: Trail) -> Trail:
    """Policy versions 1 to 3, each sealed with a decision and its outcome."""
    for version in range(1, 4):
        with trail.db.engine.begin() as connection:
            connection.exec_driver_sql(POLICY, (version,))
            decide(connection)
        assert trail.db.run(audit.seal) == 3
    assert trail.found() == []
    return trail


@pytest.mark.parametrize("column", [column.name for column in policy_versions.columns if column.name != "id"])
def test_a_changed_policy_version_is_found(with_policies: Trail, column: str) -> None:
    """To the last digit of its numbers: what is read as a double would hide that."""
    value = (
        """'{"max_spend_usd_per_day": 0.1}'"""
        if column == "policy"
        else _flipped(policy_versions.columns[column])
    )
    if column == "version":
        value = "9"
    with_policies.attack(f"UPDATE policy_versions SET {column} = {value} WHERE id = 2")
    assert with_policies.found()[0] == "seal 2, policy 2: changed since it was sealed"


def test_a_dropped_or_inserted_policy_version_is_found(with_policies: Trail) -> None:
    with_policies.attack("DELETE FROM policy_versions WHERE id = 2")
    assert with_policies.found() == ["seal 2, policy 2: missing"]
    with_policies.attack(
        "INSERT INTO policy_versions (tenant_id, agent_id, version, change, transaction_id) "
        "SELECT 't', 'bot', 7, 'enabled', transaction_id FROM policy_versions WHERE id = 1"
    )
    assert "policy 4: extra: in a sealed range, but no seal lists it" in with_policies.found()


def test_an_exported_policy_version_is_checked_away_from_the_database(with_policies: Trail) -> None:
    lines = list(audit.export(with_policies.db))
    chain = Chain(with_policies.head())
    assert (list(verify_export(lines, chain)), chain.rows) == ([], 9)
    [first, *_] = [number for number, line in enumerate(lines) if line.startswith('{"policy"')]
    assert "0.10000000000000000001" in lines[first]
    forged = lines[first].replace("0.10000000000000000001", "0.1")
    [finding] = verify_export([*lines[:first], forged, *lines[first + 1 :]], Chain())
    assert str(finding) == "seal 1, policy 1: changed since it was sealed"


def test_what_governance_writes_is_sealed(trail: Trail, caller: Caller) -> None:
    trail.db.run(governance.set_policy, caller, "bot", PolicyRequest(max_spend_usd_per_day=0.1))
    trail.db.run(governance.disable, caller, "bot", SwitchRequest(reason="odd"), 60)
    assert trail.db.run(audit.seal) == 2
    assert trail.found() == []
    assert trail.column("SELECT kind FROM audit_sealed") == ["policy", "policy"]
