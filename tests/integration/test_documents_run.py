"""The Python in the documents does what they say, against a real server."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.integrations.idempotency import Idempotency
from onceonly_jobs.local.fresh_system import FreshSystem
from onceonly_jobs.services import claims
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock
from onceonly_jobs.worker.jobs import default_registry

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
"""A block of Python, and what it prints, where that follows."""


@dataclass
class Report:
    day: str


@pytest.fixture
def reader(
    onceonly_client: OnceOnly, onceonly_system: FreshSystem, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What a reader of any document has at hand; a worker of theirs has announced its jobs."""
    for name, value in onceonly_system.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(default_registry, "_jobs", dict(default_registry._jobs))
    known = [JobSpec(name=name, queue="onceonly") for name in ("daily_summary", "send_invoice")]
    database = Database(onceonly_system.owner_url, pool_size=1)
    database.run(claims.announce, known)
    database.close()
    engine = sa.create_engine(onceonly_system.owner_url)
    orders = sa.orm.registry().generate_base()
    order = type(
        "Order", (orders,), {"__tablename__": "orders", "id": sa.Column(sa.Integer, primary_key=True)}
    )
    orders.metadata.create_all(engine)
    with Session(engine) as session:
        yield {
            "__name__": "document",
            "client": onceonly_client,
            "make_invoice": lambda: {"invoice": 42},
            "order": order(id=1),
            "session": session,
            "Report": Report,
        }
    orders.metadata.drop_all(engine)
    engine.dispose()


@pytest.mark.parametrize("name", ["README.md", "docs/CLIENT.md", "docs/INTEGRATIONS.md"])
def test_every_block_of_python_runs(
    name: str,
    reader: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    onceonly_client: OnceOnly,
    onceonly_clock: Clock,
    onceonly_system: FreshSystem,
) -> None:
    """One after the other, as they are read. Tests among them are run with their fixtures."""
    text = (ROOT / name).read_text()
    fixtures = {
        "onceonly_client": onceonly_client,
        "onceonly_clock": onceonly_clock,
        "onceonly_system": onceonly_system,
    }
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 0
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], name, "exec"), reader)
        if block[2] is not None:
            assert capsys.readouterr().out == block[2]
        for test in re.findall(r"^def (test_\w+)", block[1], re.MULTILINE):
            fixtures["onceonly_client"] = OnceOnly(onceonly_system.new_key(), onceonly_system.base_url)
            wanted = inspect.signature(reader[test]).parameters
            reader[test](**{fixture: fixtures[fixture] for fixture in wanted})
    onceonly_system.stop_worker()


def test_the_document_of_the_guards_names_every_option_and_refusal() -> None:
    text = (ROOT / "docs/INTEGRATIONS.md").read_text()
    code = (ROOT / "onceonly_jobs/integrations/idempotency.py").read_text()
    kinds = re.findall(r"problem\(\s*\d+, \"([\w-]+)\"", code)
    assert len(kinds) >= 7
    for word in [*inspect.signature(Idempotency).parameters, *kinds]:
        assert re.search(rf"`{word}`", text), word
