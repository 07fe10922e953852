"""Calls of unknown outcome as a user meets them: lost by a real tool, listed and settled over HTTP and by command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from onceonly import OnceOnly
from support.sdk_tenants import Tenant
from support.tool_server import ToolServer, broken_off, ok

from onceonly_jobs.local.subprocess_system import LocalSystem

AGENT = "accountant"


class Books:
    """A tenant with an irreversible tool `pay`, and a tool back-end that counts for itself."""

    def __init__(self, system: LocalSystem, tenant: Tenant, tool: ToolServer) -> None:
        self.system, self.tenant, self.tool = system, tenant, tool
        headers = {"Authorization": f"Bearer {tenant.api_key}"}
        self.http = httpx.Client(base_url=system.base_url, headers=headers, timeout=40)
        self.sdk = OnceOnly(api_key=tenant.api_key, base_url=system.base_url, timeout=40)
        auth = {"type": "hmac_sha256", "secret": "a shared secret"}
        self.sdk.gov.create_tool(
            {"name": "pay", "url": tool.url, "scope_id": "global", "auth": auth, "effect": "irreversible"}
        )

    def pay(self, **args: Any) -> Any:
        return self.sdk.ai.run_tool(agent_id=AGENT, tool="pay", args=args, spend_usd=0.5)

    def lose(self, **args: Any) -> dict[str, Any]:
        """Pay, and lose the answer; the call as it is listed."""
        self.tool.script(broken_off())
        assert self.pay(**args).policy_reason == "outcome_unknown"
        found: dict[str, Any] = self.unknown()[-1]
        return found

    def unknown(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.http.get("/ai/unknown").json()["items"]
        return items

    def spent(self) -> float:
        return float(self.sdk.gov.agent_metrics(AGENT).total_spend_usd)

    def command(self, *words: str, status: int = 0) -> str:
        env = {k: v for k, v in os.environ.items() if not k.startswith("ONCEONLY_")}
        done = subprocess.run(
            [sys.executable, "-m", "onceonly_jobs.cli.main", "unknown", *words],
            env=env | {"ONCEONLY_DATABASE_URL": self.system.database_url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def books(system: LocalSystem, tenant: Tenant) -> Iterator[Books]:
    with ToolServer() as tool:
        made = Books(system, tenant, tool)
        yield made
        made.http.close()
        made.sdk.close()


def test_a_lost_payment_that_happened_is_settled_and_never_sent_again(books: Books) -> None:
    item = books.lose(to="a")
    [request] = books.tool.requests
    assert item["idempotency_key"] == request.json["idempotency_key"], "what the tool can be asked for"
    assert (item["tool"], item["args"], item["reserved_usd"]) == ("pay", {"to": "a"}, 0.5)
    settled = books.http.post(
        "/ai/settle", json={"key": item["key"], "happened": True, "result": {"receipt": 7}, "cost_usd": 0.25}
    )
    assert (settled.status_code, settled.json()["outcome"]) == (200, "completed")
    again = books.pay(to="a")
    assert (again.ok, again.decision, again.result) == (True, "dedup", {"receipt": 7})
    assert len(books.tool.requests) == 1
    assert books.spent() == 0.25
    assert books.unknown() == []


def test_a_lost_payment_that_did_not_happen_may_be_made_again(books: Books) -> None:
    item = books.lose(to="b")
    assert books.http.post("/ai/settle", json={"key": item["key"], "happened": False}).status_code == 200
    assert books.spent() == 0
    books.tool.script(ok({"receipt": 8}))
    again = books.pay(to="b")
    assert (again.decision, again.result) == ("executed", {"receipt": 8})
    first, second = books.tool.requests
    assert first.json["idempotency_key"] == second.json["idempotency_key"]
    assert books.spent() == 0.5


def test_a_person_settles_at_the_command_line(books: Books) -> None:
    item, tenant = books.lose(to="c"), books.tenant.id
    listed = books.command("list", "--tenant", tenant)
    assert item["key"] in listed
    assert str(item["decision_id"]) in listed
    said = books.command(
        "settle", item["key"], "--happened", "--result", '{"receipt": 9}', "--tenant", tenant
    )
    assert "completed, settled by cli" in said
    assert books.pay(to="c").result == {"receipt": 9}
    assert item["key"] not in books.command("list", "--tenant", tenant)
    told = books.http.get(f"/runs/{item['run_id']}").json()["events"][-1]
    assert told["type"] == "settled"
    assert told["data"]["actor"].startswith("cli")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["settle", "nope", "--happened"], "no run or lease under this key"),
        (["settle", "nope", "--happened", "--result", "{"], "--result is not JSON"),
        (["settle", "nope", "--happened", "--result", "[1]"], "valid dictionary"),
        (["settle", "nope", "--did-not-happen", "--cost-usd", "1"], "has no result and no cost_usd"),
        (["settle", "nope"], "happened"),
    ],
)
def test_a_mistake_at_the_command_line_settles_nothing_and_says_why(
    books: Books, words: list[str], says: str
) -> None:
    said = books.command(*words, status=2)
    assert says in said
    assert "Traceback" not in said


def test_the_command_line_does_not_overturn_a_settlement(books: Books) -> None:
    item, tenant = books.lose(to="d"), books.tenant.id
    books.command("settle", item["key"], "--did-not-happen", "--tenant", tenant)
    said = books.command("settle", item["key"], "--happened", "--tenant", tenant, status=2)
    assert "already been settled the other way" in said
