"""What `mypy --strict` makes of users' code: typed code passes, and each misuse is found where it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import dataclasses
from typing import Any, assert_type
from pydantic import BaseModel
from onceonly_jobs import CheckLockResult, OnceOnly, idempotent, idempotent_ai
from onceonly_jobs.ai_models import AiResult, AiRun, AiToolResult
from onceonly_jobs.client import Lease, Lock, current_lease
from onceonly_jobs.exceptions import ApiError, OverLimitError
from onceonly_jobs.models import AgentLogItem, AgentMetrics, Policy

client = OnceOnly("once_live_x", "http://localhost:8080", ttl=60)

class Report(BaseModel):
    total: int

@idempotent(client)
def notify(to: str, *, urgent: bool = False) -> int:
    return 1

@idempotent(client, return_value_on_duplicate="seen")
async def notify_later(to: str) -> int:
    return 1

@idempotent(client, on_duplicate=lambda to: 0)
def count(to: str) -> int:
    return 1

@idempotent_ai(client, key_fn=lambda day: f"report:{day}")
def outcome(day: str) -> Report:
    return Report(total=1)

@idempotent_ai(client, key="k")
async def outcome_later(day: str) -> Report:
    return Report(total=1)

@idempotent_ai(client, key_fn=lambda day: f"report:{day}", unwrap=True)
def report(day: str) -> Report:
    return Report(total=1)

@idempotent_ai(client, key="k", unwrap=True)
async def report_later(day: str) -> Report:
    return Report(total=1)
"""

ACCEPTED = """
def plain() -> None:
    assert_type(client.check_lock("k", ttl=60, meta={"a": 1}), CheckLockResult)
    assert_type(client.ai.run("k", ttl=60), AiRun)
    assert_type(client.ai.run(agent_id="a", tool="t"), AiToolResult)
    assert_type(client.ai.run_tool(tool="t", args={"a": 1}, spend_usd=0.1), AiToolResult)
    assert_type(client.ai.run_and_wait("k", timeout=1), AiResult)
    assert_type(client.ai.run_and_wait(agent_id="a", tool="t"), AiToolResult)
    assert_type(client.ai.run_fn("k", lambda: 1), AiResult)
    assert_type(client.gov.agent_logs("a")[0], AgentLogItem)
    assert_type(client.gov.agent_metrics("a", period="week"), AgentMetrics)
    assert_type(client.gov.upsert_policy({"agent_id": "a"}), Policy)
    assert_type(notify("a", urgent=True), int | None)
    assert_type(count("a"), int)
    assert_type(outcome("today"), AiResult)
    assert_type(report("today"), Report)
    with client.lock("k", ttl=60) as lock:
        assert_type(lock, Lock)
    with client.lease("k", ttl=60) as lease:
        assert_type(lease, Lease)
        lease.set_result({"n": 1})
    assert_type(current_lease(), Lease | None)
    try:
        client.me()
    except OverLimitError as error:
        assert_type(error.detail, dict[str, Any])
    except ApiError as error:
        assert_type(error.status_code, int | None)

async def later() -> None:
    assert_type(await client.check_lock_async("k"), CheckLockResult)
    assert_type(await client.ai.run_async("k"), AiRun)
    assert_type(await client.ai.run_and_wait_async("k"), AiResult)
    assert_type(await notify_later("a"), int | str)
    assert_type(await outcome_later("today"), AiResult)
    assert_type(await report_later("today"), Report)
    async with client, client.lease("k") as lease:
        assert_type(lease, Lease)
"""

REFUSED = {
    "client.check_lock(7)": "arg-type",
    'client.check_lock("k", ttl="60")': "arg-type",
    'client.check_lock("k", tttl=60)': "call-arg",
    'client.gov.agent_metrics("a", period="year")': "arg-type",
    'client.ai.complete("k")': "call-arg",
    'client.ai.run_and_wait("k").total': "attr-defined",
    'client.ai.run_tool(agent_id="a")': "call-arg",
    "OnceOnly(api_key=7)": "arg-type",
    'OnceOnly("k", retries=3)': "call-arg",
    "notify(7)": "arg-type",
    'notify("a", True)': "call-arg",
    'notify("a") + 1': "operator",
    'report("today").totl': "attr-defined",
    "report(7)": "arg-type",
    'outcome("today").total': "attr-defined",
    'idempotent(client, prefix="x")': "call-overload",
    "idempotent_ai(client, key=7)": "call-overload",
    'client.lease("k").set_result(1)': "attr-defined",
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """The codes of mypy's errors, by line, from one run over everything."""
    folder = tmp_path_factory.mktemp("user")
    code = f"{HEAD}{ACCEPTED}\n" + "\n".join(REFUSED) + "\n"
    (folder / "code.py").write_text(code)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"),
            *(
                "--config-file",
                "",
                "--cache-dir",
                str(root / ".mypy_cache" / "users"),
                str(folder / "code.py"),
            ),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[int, list[str]] = {}
    for line, error in re.findall(r"code\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE):
        found.setdefault(int(line), []).append(error)
    return found


FIRST_MISUSE = f"{HEAD}{ACCEPTED}\n".count("\n") + 1


@pytest.mark.timeout(300)
def test_typed_code_is_accepted(complaints: dict[int, list[str]]) -> None:
    assert {line: codes for line, codes in complaints.items() if line < FIRST_MISUSE} == {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("line", "code"), list(enumerate(REFUSED.values(), FIRST_MISUSE)), ids=REFUSED)
def test_misuse_is_found(complaints: dict[int, list[str]], line: int, code: str) -> None:
    assert set(complaints.get(line, [])) == {code}
