"""The database's clock decides: which code may read the clock of its own process, and for what."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PRODUCT = Path(__file__).parents[2] / "onceonly_jobs"
WALL_CLOCK = re.compile(
    r"\btime\.(time|time_ns|gmtime|localtime|ctime|strftime|asctime)$|\b(datetime|date)\.(now|utcnow|today)$"
)
ANY_CLOCK = re.compile(WALL_CLOCK.pattern + r"|\btime\.(monotonic|perf_counter|process_time)(_ns)?$")
SQL_CLOCK = re.compile(
    r"(?<!def )\b(now|clock_timestamp|transaction_timestamp|statement_timestamp)\(|\bcurrent_(timestamp|date|time)\b",
    re.I,
)
DECIDING = ("store", "services", "domain", "contracts")
WHERE_THE_CLOCK_IS_DEFINED = "store/tables.py"

# What is written on something, and decides nothing here.
SHOWN = {
    "worker/tool_call.py": "the time in a signature, which the tool compares with its own clock",
    "worker/held.py": "when a run began, in the events for monitors",
    "worker/turns.py": "when a run ended, in the same events",
    "api/ratelimit.py": "Retry-After of a limit per process, which is counted by this clock alone",
}

MEASURED = {
    "store/database.py": "how long an answer took, for the breaker before a database that is silent",
    "store/silence.py": "how long to wait for an answer, before the connection is taken for lost",
}
MEASURED_BY_SQL = {"store/governance.py": "how long a statement has waited for its agent"}


def reads(path: Path, clock: re.Pattern[str]) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    calls = (ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call))
    return [call for call in calls if clock.search(call)]


def asked_of(folders: tuple[str, ...], clock: re.Pattern[str]) -> dict[str, list[str]]:
    paths = [path for folder in folders for path in sorted((PRODUCT / folder).rglob("*.py"))]
    found = {path.relative_to(PRODUCT).as_posix(): reads(path, clock) for path in paths}
    return {path: calls for path, calls in found.items() if calls}


def test_no_decision_reads_the_clock_of_its_process() -> None:
    assert asked_of(DECIDING, WALL_CLOCK) == {}
    assert set(asked_of(DECIDING, ANY_CLOCK)) == set(MEASURED)


def test_the_time_of_day_is_read_only_to_be_shown() -> None:
    """Lengths of time are another matter: they come from the monotonic clock, which nobody sets."""
    assert set(asked_of(("api", "dispatch", "worker"), WALL_CLOCK)) == set(SHOWN)


def test_sql_asks_one_function_for_the_time() -> None:
    found = {
        path.relative_to(PRODUCT).as_posix()
        for path in (PRODUCT / "store").rglob("*.py")
        if SQL_CLOCK.search(path.read_text().replace("onceonly_now(", ""))
    }
    assert found == {WHERE_THE_CLOCK_IS_DEFINED, *MEASURED_BY_SQL}


def test_a_read_of_the_clock_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "x = time.time()\ny = dt.datetime.now(UTC)\nz = time.monotonic()\nw = f.now()\n"
    )
    assert reads(tmp_path / "a.py", WALL_CLOCK) == ["time.time", "dt.datetime.now"]
    assert reads(tmp_path / "a.py", ANY_CLOCK) == ["time.time", "dt.datetime.now", "time.monotonic"]
