"""Checks an exported audit trail: `python audit_verifier.py export.jsonl [...] [--head N:HASH]`.

Needs Python 3.11 and nothing else: no database, no other file of this project. docs/AUDIT.md has the format.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENESIS = "0" * 64
"""What the first seal names as its predecessor's hash."""

KEYS = {"decision": "id", "outcome": "decision_id", "policy": "id"}
"""The kinds of rows, and which column names one."""

MOST_SHOWN = 100

Row = tuple[str, dict[str, Any]]
"""A kind and the row's columns."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


def canonical(value: dict[str, Any]) -> bytes:
    """The JSON that is hashed: keys sorted, no spaces, UTF-8, integers in full."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def row_hash(kind: str, row: dict[str, Any]) -> str:
    """SHA-256 of a row's columns, NULLs left out: a column added later leaves older hashes as they are."""
    return _sha256({kind: _known(row)})


def seal_hash(seal: dict[str, Any]) -> str:
    """SHA-256 of all that a seal says, its predecessor's hash and its list of row hashes included."""
    return _sha256({"seal": _known({name: value for name, value in seal.items() if name != "hash"})})


def _known(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}


def _sha256(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def row_id(kind: str, row: dict[str, Any]) -> int | None:
    """The id that names the row among its kind; None where it has none."""
    value = row.get(KEYS[kind])
    return value if type(value) is int else None


def order(kind: str, row: dict[str, Any]) -> tuple[int, str, int]:
    """Where a row belongs within its seal."""
    return (row["transaction_id"], kind, row[KEYS[kind]])


class Chain:
    """Checks seals one after the other, first to last, and counts what it saw."""

    def __init__(self, head: str | None = None) -> None:
        """`head` is a seal's hash, or `NUMBER:HASH`, kept from earlier: the chain has to lead there."""
        number, _, self._head_hash = (
            head.strip().lower().rpartition(":") if head is not None else ("", "", "")
        )
        self._head_number = int(number) if number.isdecimal() else None
        self._head_found = head is None or self._head_hash == GENESIS
        self.number = 0
        self.hash = GENESIS
        self.rows = 0
        self._begins_after: int | None = None
        self._again: tuple[int, str] | None = None
        self.policies: dict[int, str] = {}
        """Hashes of the policy versions that were listed: these stay when a part of the trail is archived."""

    def start(self, number: int, previous: str) -> None:
        """Take the chain up after seal `number`, believing that its hash is `previous`."""
        if self._begins_after is None:
            self._begins_after = number
        self.number, self.hash = number, previous
        self._note_head()

    def go_on(self, where: str, number: int, previous: str) -> Iterator[Finding]:
        """Go on with another part, which says that it comes after seal `number` with the hash `previous`.

        A part may begin before the last one's end: then it has to come by that end.
        """
        if self._begins_after is not None:
            if number > self.number:
                yield Finding(
                    where, f"begins after seal {number}, but what came before ends with {self.number}"
                )
            elif number == self.number and previous != self.hash:
                yield Finding(where, f"broken link: it does not begin with the hash of seal {self.number}")
            elif number < self.number:
                self._again = (self.number, self.hash)
        self.start(number, previous)

    def seal(self, seal: dict[str, Any], rows: list[Row]) -> Iterator[Finding]:
        """What is wrong with a seal, given the rows found for it, in their order."""
        self.rows += len(rows)
        yield from self._link(seal)
        yield from check_rows(seal, rows)
        where = f"seal {seal['number']}"
        if seal["row_count"] != len(seal["rows"]):
            yield Finding(where, f"covers {seal['row_count']} rows, but lists {len(seal['rows'])}")
        if seal_hash(seal) != seal["hash"]:
            yield Finding(
                where, "its hash is not that of its contents: the seal or its list of rows was changed"
            )
        self.number, self.hash = seal["number"], seal["hash"]
        if self._again is not None and self._again[0] == self.number:
            if self._again[1] != self.hash:
                yield Finding(where, "two parts have different seals of this number")
            self._again = None
        self.policies.update({number: hashed for kind, number, hashed in seal["rows"] if kind == "policy"})
        self._note_head()

    def end(self) -> Iterator[Finding]:
        """What only shows at the end: that the chain does not lead to the head it should."""
        if self._again is not None:
            yield Finding(f"seal {self._again[0]}", "missing, though an earlier part has it")
        if (self._head_number or 0) < (self._begins_after or 0) and not self._head_found:
            begins = f"what is checked here begins after seal {self._begins_after}"
            yield Finding("head", f"not shown: {begins}, so the parts before it are needed")
        elif not self._head_found:
            named = f"seal {self._head_number}" if self._head_number is not None else "head"
            yield Finding(
                named,
                f"no such seal with the hash {self._head_hash}: the chain was cut off or rewritten; "
                f"it ends with {self.number}:{self.hash}",
            )

    def _link(self, seal: dict[str, Any]) -> Iterator[Finding]:
        where = f"seal {seal['number']}"
        if seal["number"] != self.number + 1:
            yield Finding(where, f"follows seal {self.number}: seals are missing or out of order")
        if seal["previous"] != self.hash:
            yield Finding(where, f"broken link: it does not name the hash of seal {self.number}")

    def _note_head(self) -> None:
        if self.hash == self._head_hash and self._head_number in (None, self.number):
            self._head_found = True


def check_rows(seal: dict[str, Any], rows: list[Row]) -> Iterator[Finding]:
    """What is wrong with a seal's rows: changed, missing, extra or in another order."""
    found = {(kind, row_id(kind, row)): row for kind, row in reversed(rows)}
    listed = {(kind, number): hashed for kind, number, hashed in seal["rows"]}
    where = f"seal {seal['number']}"
    for (kind, number), hashed in listed.items():
        row = found.get((kind, number))
        if row is None:
            yield Finding(f"{where}, {kind} {number}", "missing")
        elif row_hash(kind, row) != hashed:
            yield Finding(f"{where}, {kind} {number}", "changed since it was sealed")
    seen = set()
    for kind, row in rows:
        name = (kind, row_id(kind, row))
        if name not in listed or name in seen:
            yield Finding(f"{where}, {kind} {name[1]}", "extra: the seal does not list it")
        seen.add(name)
    yield from _check_order(where, seal, rows)


def _check_order(where: str, seal: dict[str, Any], rows: list[Row]) -> Iterator[Finding]:
    """The first row out of place: by the seal's own list, or against the order in which rows are sealed."""
    listed = [(kind, number) for kind, number, _ in seal["rows"]]
    present = {(kind, row_id(kind, row)): row for kind, row in rows}
    names = [
        name for name in dict.fromkeys((kind, row_id(kind, row)) for kind, row in rows) if name in set(listed)
    ]
    for expected, name in zip((name for name in listed if name in present), names, strict=False):
        if expected != name:
            yield Finding(f"{where}, {name[0]} {name[1]}", "reordered: it stands in another row's place")
            return
    before: tuple[int, str, int] | None = None
    for kind, number in listed:
        row = present.get((kind, number))
        place = order(kind, row) if row is not None and type(row.get("transaction_id")) is int else None
        if before is not None and place is not None and place < before:
            yield Finding(f"{where}, {kind} {number}", "reordered: it is listed after rows that follow it")
            return
        before = place or before


class BadExport(Exception):
    """A line is not what an export has there."""


def read_export(lines: Iterable[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Line number, kind and contents of each line. Raises BadExport where it is no line of an export."""
    for number, line in enumerate(lines, 1):
        try:
            [(kind, contents)] = json.loads(line).items()
            _check_shape(kind, contents)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise BadExport(f"line {number}: not a line of an export: {error}") from None
        yield number, kind, contents


_SEAL_SHAPE = {"number": int, "previous": str, "hash": str, "row_count": int, "rows": list}


def _check_shape(kind: str, contents: dict[str, Any]) -> None:
    if kind == "seal":
        for name, shape in _SEAL_SHAPE.items():
            if type(contents[name]) is not shape:
                raise TypeError(f"{name} is not {shape.__name__}")
        for row_kind, number, hashed in contents["rows"]:
            if row_kind not in KEYS or type(number) is not int or type(hashed) is not str:
                raise TypeError("not a list of rows")
    elif kind == "export":
        if contents["format"] != 1:
            raise ValueError(f"unknown format {contents['format']}")
        if type(contents["after_seal"]) is not int or type(contents["previous"]) is not str:
            raise TypeError("after_seal or previous is wrong")
    elif kind == "head":
        if type(contents["number"]) is not int or type(contents["hash"]) is not str:
            raise TypeError("number or hash is wrong")
    elif kind not in KEYS or type(contents) is not dict:
        raise ValueError(f"unknown kind {kind}")


def verify_export(lines: Iterable[str], chain: Chain) -> Iterator[Finding]:
    """What is wrong with an export, in its order. Holds one seal and its rows at a time."""
    yield from verify_part(lines, chain)
    yield from chain.end()


def verify_part(lines: Iterable[str], chain: Chain) -> Iterator[Finding]:
    """What is wrong with an export that others, or the database, go on from."""
    try:
        yield from _verify_lines(lines, chain)
    except BadExport as error:
        yield Finding("export", str(error))


def verify_parts(paths: Iterable[str], chain: Chain) -> Iterator[Finding]:
    """What is wrong with exports that continue each other, oldest first; findings name the file."""
    for path in paths:
        with Path(path).open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for finding in verify_part(lines, chain):
                yield Finding(f"{path}: {finding.where}", finding.problem)


def _verify_lines(lines: Iterable[str], chain: Chain) -> Iterator[Finding]:
    seal: dict[str, Any] | None = None
    rows: list[Row] = []
    ended = False
    for number, kind, contents in read_export(lines):
        if (number == 1) != (kind == "export") or ended:
            raise BadExport(f"line {number}: {kind} in a place where it cannot be")
        if kind in KEYS and seal is not None:
            rows.append((kind, contents))
            continue
        if kind in KEYS:
            yield Finding(f"{kind} {row_id(kind, contents)}", "extra: it comes before any seal")
            continue
        if seal is not None:
            yield from chain.seal(seal, rows)
        seal, rows = (contents if kind == "seal" else None), []
        if kind == "export":
            yield from chain.go_on("export", contents["after_seal"], contents["previous"])
            if contents["after_seal"] == 0 and contents["previous"] != GENESIS:
                yield Finding("export", "its start is not the chain's start")
        elif kind == "head":
            ended = True
            if (contents["number"], contents["hash"]) != (chain.number, chain.hash):
                yield Finding(
                    "export", f"its last seal is {chain.number}, its head says {contents['number']}"
                )
    if not ended:
        if seal is not None:
            yield from chain.seal(seal, rows)
        yield Finding("export", "cut off: its last line is not the head")


def report(findings: Iterable[Finding]) -> int:
    """Print a line per finding. Returns how many there were."""
    count = 0
    for count, finding in enumerate(findings, 1):
        if count <= MOST_SHOWN:
            print(finding, flush=True)
    if count > MOST_SHOWN:
        print(f"and {count - MOST_SHOWN} more")
    return count


def report_exports(paths: list[str], head: str | None) -> int:
    """Check the exports in files, oldest first, and print what was found. Returns the exit status, 0: all is well."""
    chain = Chain(head)

    def findings() -> Iterator[Finding]:
        if len(paths) == 1:
            with Path(paths[0]).open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
                yield from verify_part(lines, chain)
        else:
            yield from verify_parts(paths, chain)
        yield from chain.end()

    if report(findings()):
        return 1
    print(f"ok: {chain.rows} rows, head {chain.number}:{chain.hash}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Check an exported audit trail, away from the database.")
    parser.add_argument(
        "export", nargs="+", help="files written by `onceonly-jobs audit export` or `prune`, oldest first"
    )
    parser.add_argument("--head", help="hash, or NUMBER:HASH, of a seal that has to be in it")
    given = parser.parse_args()
    return report_exports(given.export, given.head)


if __name__ == "__main__":
    sys.exit(main())
