"""Calls of unknown outcome as a user meets them: lost by a real tool, listed and settled over HTTP and by command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from onceonly import OnceOnly
from support.sdk_tenants import Tenant
from support.tool_server import Behaviour, ToolServer, broken_off, ok, status

from onceonly_jobs.domain.signatures import verify
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.store.database import Database

AGENT = "accountant"
SECRET = "a shared secret"


class Books:
    """A tenant with an irreversible tool `pay`, and a tool back-end that counts for itself."""

    def __init__(self, system: LocalSystem, tenant: Tenant, tool: ToolServer) -> None:
        self.system, self.tenant, self.tool = system, tenant, tool
        headers = {"Authorization": f"Bearer {tenant.api_key}"}
        self.http = httpx.Client(base_url=system.base_url, headers=headers, timeout=40)
        self.sdk = OnceOnly(api_key=tenant.api_key, base_url=system.base_url, timeout=40)
        auth = {"type": "hmac_sha256", "secret": SECRET}
        self.sdk.gov.create_tool(
            {"name": "pay", "url": tool.url, "scope_id": "global", "auth": auth, "effect": "irreversible"}
        )
        confirm_url = f"{tool.url}/confirm"
        self.sdk.gov.create_tool(
            {
                "name": "ship",
                "url": tool.url,
                "scope_id": "global",
                "auth": auth,
                "effect": "reconcilable",
                "confirm_url": confirm_url,
            }
        )

    def pay(self, **args: Any) -> Any:
        return self.sdk.ai.run_tool(agent_id=AGENT, tool="pay", args=args, spend_usd=0.5)

    def ship(self, **args: Any) -> Any:
        return self.sdk.ai.run_tool(agent_id=AGENT, tool="ship", args=args, spend_usd=0.5)

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


@pytest.mark.parametrize(
    ("answer", "decision", "result"),
    [
        ({"happened": True, "result": {"parcel": 1}}, "dedup", {"parcel": 1}),
        ({"happened": False}, "executed", {"parcel": 2}),
    ],
)
def test_a_reconcilable_call_is_settled_by_its_tool(
    books: Books, answer: dict[str, Any], decision: str, result: dict[str, Any]
) -> None:
    books.tool.script(broken_off(), ok(answer), ok({"parcel": 2}))
    assert books.ship(to="e").policy_reason == "outcome_unknown"
    [item] = books.unknown()
    _until(lambda: books.unknown() == [])
    call, question = books.tool.requests
    verify(SECRET, question.body, question.headers, time.time())
    assert question.path.endswith("/confirm")
    assert question.json == {
        "idempotency_key": call.json["idempotency_key"],
        "tool": "ship",
        "agent_id": AGENT,
        "args": {"to": "e"},
    }
    settled = books.http.get(f"/runs/{item['run_id']}").json()["events"][-1]
    assert (settled["type"], settled["data"]["actor"]) == ("settled", "confirmer")
    assert books.spent() == (0.5 if answer["happened"] else 0)
    again = books.ship(to="e")
    assert (again.decision, again.result) == (decision, result)


@pytest.mark.parametrize(
    "answer",
    [
        status(500),
        status(404),
        broken_off(),
        status(200, b"happened"),
        ok({"happened": None}),
        ok({"happened": 1, "result": {}}),
        ok({"happened": True}),
        ok({"happened": False, "result": {}}),
        ok([True]),
    ],
)
def test_a_confirmer_that_can_not_tell_settles_nothing(
    books: Books, accounts: Database, answer: Behaviour
) -> None:
    books.tool.script(broken_off(), answer)
    books.ship(to="f")
    [item] = books.unknown()
    hurry(accounts, item)
    _until(lambda: len(books.tool.requests) == 2)
    time.sleep(0.3)
    [item] = books.unknown()
    assert (item["confirmations"], item["confirm_at"] is None) == (1, False)
    books.tool.script(ok({"happened": True, "result": {"parcel": 3}}))
    hurry(accounts, item)
    _until(lambda: books.unknown() == [])


def hurry(accounts: Database, item: dict[str, Any]) -> None:
    """Have the tool asked at once."""
    query = sa.text(
        "UPDATE runs SET confirm_at = onceonly_now() WHERE decision_id = :id AND state = 'unknown'"
    )
    with accounts.engine.begin() as connection:
        assert connection.execute(query, {"id": item["decision_id"]}).rowcount == 1


def _until(done: Callable[[], bool], within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.1)
