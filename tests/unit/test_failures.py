"""docs/FAILURES.md is kept: all rows are there, and each names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODES = 27
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.*?) \| (.+) \|$", re.MULTILINE)
CANVAS = {"chord", "chain", "group", "chunks", "xmap", "starmap", "signature", "countdown", "eta"}

ROWS = {
    int(number): (failure, shown)
    for number, failure, _, shown in ROW.findall((ROOT / "docs/FAILURES.md").read_text())
}


@cache
def names_in(path: str) -> frozenset[str]:
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(file.read_text()))
    return frozenset(n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_failure_mode_has_a_row() -> None:
    assert sorted(ROWS) == list(range(1, MODES + 1))


@pytest.mark.parametrize("number", range(1, MODES + 1))
def test_what_a_row_names_exists(number: int) -> None:
    _, shown = ROWS[number]
    named = NAMED.findall(shown)
    assert named, "a test, by path and name"
    assert shown.count("::") == len(named), "each in the one form that is checked"
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    assert missing == []


def test_no_celery_canvas_and_no_eta_is_used() -> None:
    """Their bookkeeping counts a redelivered member twice, and the visibility timeout repeats what has an ETA.

    The integration for Celery is left out: it sends a user's own task again, in the user's own app.
    """
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("onceonly_jobs", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if path != ROOT / "onceonly_jobs/integrations/celery.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if uses_canvas(node)
    ]
    assert found == []


def uses_canvas(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "celery":
        return any(alias.name in CANVAS for alias in node.names) or "canvas" in (node.module or "")
    if isinstance(node, ast.Call):
        return any(keyword.arg in {"eta", "countdown"} for keyword in node.keywords)
    return False
