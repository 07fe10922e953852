"""A tool is registered once per scope, within the plan, and its secret is readable here alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from support.storms import storm

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.tools import ToolRequest
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import (
    FeatureNotAvailable,
    Refusal,
    SecretUnreadable,
    ToolNotRegistered,
    TooManyTools,
    Unsupported,
)
from onceonly_jobs.services import tools
from onceonly_jobs.store import tools as store
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.tools import Tool
from onceonly_jobs.store.vault import Vault
from tests.conftest import make_account

URL = "https://tools.example.com/send"
SECRET = "a-long-shared-secret"
KEY = "the key of this server, at least 16 long"
VAULT = Vault(KEY)
AS_IS = {"name": "send", "url": URL, "auth": {"type": "hmac_sha256"}}


class Registry:
    """One tenant's tools, over a real database."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self.db, self.caller = db, caller

    def ask(self, name: str = "send", vault: Vault | None = VAULT, **fields: Any) -> Tool | None:
        secret = fields.pop("secret", SECRET)
        auth = {"type": "hmac_sha256"} if secret is None else {"type": "hmac_sha256", "secret": secret}
        request = ToolRequest.model_validate({"name": name, "url": URL, "auth": auth, **fields})
        return self.db.run(tools.put, self.caller, request, vault)

    def put(self, name: str = "send", vault: Vault | None = VAULT, **fields: Any) -> Tool:
        tool = self.ask(name, vault, **fields)
        assert tool is not None
        return tool

    def get(self, name: str = "send", scope_id: str = "global") -> Tool:
        return self.db.run(tools.get, self.caller, scope_id, name)

    def toggle(self, enabled: bool, name: str = "send", scope_id: str = "global") -> Tool:
        return self.db.run(tools.toggle, self.caller, scope_id, name, enabled)

    def delete(self, name: str = "send", scope_id: str = "global") -> Tool:
        return self.db.run(tools.delete, self.caller, scope_id, name)

    def names(self, scope_id: str = "global") -> list[str]:
        return [tool.name for tool in self.db.run(tools.list_tools, self.caller, scope_id)]

    def called(self, agent_id: str, name: str = "send") -> Tool | None:
        return self.db.run(lambda: iter(store.for_call(self.caller.tenant_id, agent_id, name)))

    def rows(self, query: str) -> list[Any]:
        with self.db.engine.connect() as connection:
            return list(connection.execute(sa.text(query)))

    def events(self) -> list[Any]:
        return self.rows("SELECT type, tool, agent_id, data FROM feed_events ORDER BY id")


@pytest.fixture
def registry(db: Database, caller: Caller) -> Registry:
    return Registry(db, caller)


def of_plan(db: Database, plan: Plan) -> Registry:
    return Registry(db, make_account(db, f"t_{plan}", plan).caller)


def at_once(size: int, question: Callable[[int], object]) -> Counter[str]:
    """How many answered and how many were refused, by class, of that many threads."""
    numbers = itertools.count()

    def one() -> str:
        try:
            return type(question(next(numbers))).__name__
        except Refusal as refusal:
            return type(refusal).__name__

    return Counter(storm(size, one))


def test_a_new_tool_has_the_contracts_defaults(registry: Registry) -> None:
    tool = registry.put()
    assert tool == registry.get()
    assert (tool.timeout_ms, tool.max_retries, tool.enabled) == (15_000, 2, True)
    assert (tool.description, tool.effect, tool.confirm_url) == (None, Effect.IDEMPOTENT, None)
    assert (tool.scope_id, tool.name, tool.url, tool.auth_type) == ("global", "send", URL, "hmac_sha256")
    assert tool.secret.mask == "***ret"
    assert tools.secret_of(tool, VAULT) == SECRET


def test_an_update_changes_what_it_says_and_nothing_else(registry: Registry) -> None:
    first = registry.put(timeout_ms=300, max_retries=0, description="mails", effect="irreversible")
    second = registry.put(secret=None, url="https://other.example.com", max_retries=7)
    assert second == registry.get()
    assert (second.url, second.max_retries) == ("https://other.example.com", 7)
    assert (second.timeout_ms, second.description, second.effect) == (300, "mails", Effect.IRREVERSIBLE)
    assert second.secret == first.secret


def test_a_repeated_registration_does_not_switch_a_tool_on_again(registry: Registry) -> None:
    registry.put()
    registry.toggle(False)
    assert registry.put().enabled is False
    assert registry.put(enabled=True).enabled is True


def test_effect_and_its_confirmer_change_together(registry: Registry) -> None:
    confirm = "https://tools.example.com/happened"
    registry.put(effect="reconcilable", confirm_url=confirm)
    assert registry.put().confirm_url == confirm
    assert registry.put(effect="reconcilable", confirm_url=confirm + "2").confirm_url == confirm + "2"
    changed = registry.put(effect="read")
    assert (changed.effect, changed.confirm_url) == (Effect.READ, None)


def test_a_new_secret_is_a_new_id_and_the_same_one_is_not(registry: Registry) -> None:
    first = registry.put()
    assert registry.put().secret == first.secret
    second = registry.put(secret="another-secret-xyz")
    assert second.secret.id != first.secret.id
    assert second.secret.mask == "***xyz"
    assert tools.secret_of(registry.get(), VAULT) == "another-secret-xyz"


def test_a_new_tool_needs_a_secret(registry: Registry) -> None:
    assert registry.ask(secret=None) is None
    assert registry.names() == []
    assert registry.events() == []


def test_scopes_are_apart_and_an_agents_own_tool_wins(registry: Registry) -> None:
    registry.put(url="https://all.example.com")
    registry.put(url="https://bot.example.com", scope_id="agent:bot", secret="secret of the bot")
    registry.put("only", scope_id="agent:bot")
    assert (registry.names(), registry.names("agent:bot"), registry.names("agent:x")) == (
        ["send"],
        ["only", "send"],
        [],
    )
    own, other = registry.called("bot"), registry.called("other")
    assert own is not None
    assert other is not None
    assert (own.scope_id, other.scope_id) == ("agent:bot", "global")
    assert (tools.secret_of(own, VAULT), tools.secret_of(other, VAULT)) == ("secret of the bot", SECRET)
    assert registry.called("other", "only") is None
    assert registry.called("bot", "none") is None


def test_a_disabled_tool_of_an_agent_hides_the_global_one(registry: Registry) -> None:
    registry.put()
    registry.put(scope_id="agent:bot")
    registry.toggle(False, scope_id="agent:bot")
    found = registry.called("bot")
    assert found is not None
    assert (found.scope_id, found.enabled) == ("agent:bot", False)
    registry.delete(scope_id="agent:bot")
    assert registry.called("bot") == registry.get()


def test_an_agent_named_global_has_a_scope_of_its_own(registry: Registry) -> None:
    registry.put(scope_id="agent:global")
    assert registry.called("bot") is None
    assert registry.called("global") is not None


def test_what_is_not_there_is_not_found(registry: Registry) -> None:
    registry.put(scope_id="agent:bot")
    for ask in (registry.get, registry.delete, lambda: registry.toggle(True)):
        with pytest.raises(ToolNotRegistered):
            ask()
    assert [event.type for event in registry.events()] == ["tool_created"]


def test_tenants_neither_see_nor_change_each_others_tools(db: Database, registry: Registry) -> None:
    other = of_plan(db, Plan.AGENCY)
    mine = registry.put()
    assert other.names() == []
    assert other.called("bot") is None
    for ask in (other.get, other.delete, lambda: other.toggle(False)):
        with pytest.raises(ToolNotRegistered):
            ask()
    other.put(secret="the other's secret")
    other.toggle(False)
    other.delete()
    assert registry.get() == mine
    assert tools.secret_of(registry.get(), VAULT) == SECRET


@pytest.mark.parametrize("plan", [Plan.FREE, Plan.STARTER])
def test_a_plan_without_a_registry_is_refused_everywhere(db: Database, plan: Plan) -> None:
    registry = of_plan(db, plan)
    asks = (registry.put, registry.names, registry.get, registry.delete, lambda: registry.toggle(True))
    for ask in asks:
        with pytest.raises(FeatureNotAvailable):
            ask()
    assert registry.rows("SELECT FROM tools") == []


def test_ten_tools_of_the_pro_plan_are_exactly_ten(db: Database) -> None:
    registry = of_plan(db, Plan.PRO)
    counts = at_once(16, lambda n: registry.put(f"tool{n}", scope_id="global" if n % 2 else "agent:bot"))
    assert counts == {"Tool": 10, "TooManyTools": 6}
    assert len(registry.rows("SELECT FROM tools")) == 10
    assert len(registry.events()) == 10


def test_one_tool_registered_by_many_takes_one_place(db: Database) -> None:
    registry = of_plan(db, Plan.PRO)
    for n in range(9):
        registry.put(f"tool{n}")
    assert at_once(16, lambda _: registry.put()) == {"Tool": 16}
    assert Counter(event.type for event in registry.events()) == {"tool_created": 10, "tool_updated": 15}
    assert tools.secret_of(registry.get(), VAULT) == SECRET


def test_a_full_plan_still_changes_its_tools_and_deleting_frees_a_place(db: Database) -> None:
    registry = of_plan(db, Plan.PRO)
    for n in range(10):
        registry.put(f"tool{n}")
    registry.put("tool0", timeout_ms=500, secret="rotated-secret")
    with pytest.raises(TooManyTools, match=r"^PRO plan limit: max 10 tools$"):
        registry.put("tool0", scope_id="agent:bot")
    registry.delete("tool3")
    registry.put("tool0", scope_id="agent:bot")
    with pytest.raises(TooManyTools):
        registry.put("tool3")


def test_the_agency_plan_has_five_hundred(db: Database, registry: Registry) -> None:
    registry.put()
    copies = sa.text("""
        INSERT INTO tools (tenant_id, scope_id, name, url, auth_type, secret_id, secret_mask, secret_sealed,
                           timeout_ms, max_retries, enabled, effect)
        SELECT tenant_id, scope_id, name || n, url, auth_type, secret_id, secret_mask, secret_sealed,
               timeout_ms, max_retries, enabled, effect FROM tools, generate_series(1, 498) n
    """)
    with db.engine.begin() as connection:
        connection.execute(copies)
    registry.put("the_500th")
    with pytest.raises(TooManyTools, match=r"^AGENCY plan limit: max 500 tools$"):
        registry.put("the_501st")


def test_a_switch_thrown_during_an_update_waits_for_it(db: Database, registry: Registry) -> None:
    """Else the update would write back that the tool is on."""
    registry.put()
    update = tools.put(registry.caller, ToolRequest.model_validate(AS_IS), None)
    answer: Any = None
    with db.engine.connect() as updating, updating.begin():
        while (statement := update.send(answer)).name != "tools.put":
            answer = statement.read(updating.execute(statement.query, statement.params))
        with db.engine.connect() as switching:
            switching.execute(sa.text("SET LOCAL lock_timeout = '50ms'"))
            with pytest.raises(OperationalError, match="lock timeout"):
                on(switching, tools.toggle(registry.caller, "global", "send", False))
    assert registry.toggle(False).enabled is False


def test_each_change_is_in_the_feed_with_its_actor(registry: Registry) -> None:
    created = registry.put()
    registry.put("other", scope_id="agent:bot:7")
    rotated = registry.put(secret="another-secret")
    registry.toggle(False)
    registry.toggle(True)
    registry.delete()
    actor = registry.caller.key_id
    assert [(event.type, event.tool, event.agent_id) for event in registry.events()] == [
        ("tool_created", "send", None),
        ("tool_created", "other", "bot:7"),
        ("tool_updated", "send", None),
        ("tool_disabled", "send", None),
        ("tool_enabled", "send", None),
        ("tool_deleted", "send", None),
    ]
    assert registry.events()[0].data == {
        "actor": actor,
        "scope_id": "global",
        "secret_id": created.secret.id,
    }
    assert registry.events()[2].data["secret_id"] == rotated.secret.id
    assert {event.data["actor"] for event in registry.events()} == {actor}


def test_secrets_are_nowhere_in_the_database(registry: Registry) -> None:
    registry.put()
    registry.put(secret="another-secret")
    registry.delete()
    registry.put()
    for table in ("tools", "feed_events"):
        text = "".join(row[0] for row in registry.rows(f"SELECT t::text FROM {table} t"))
        assert "send" in text
        assert SECRET not in text
        assert SECRET.encode().hex() not in text
        assert "another-secret" not in text


def test_a_representation_shows_no_secret(registry: Registry) -> None:
    tool = registry.put()
    request = ToolRequest.model_validate(
        {"name": "send", "url": URL, "auth": {"type": "hmac_sha256", "secret": SECRET}}
    )
    assert SECRET not in repr(request)
    assert tool.secret.sealed not in repr(tool)


@pytest.mark.parametrize("column", ["tenant_id", "scope_id", "name", "secret_id"])
def test_a_secret_moved_to_another_row_is_unreadable(db: Database, registry: Registry, column: str) -> None:
    """What somebody could do who may write the table and has no key."""
    registry.put("elsewhere", scope_id="agent:elsewhere")
    with db.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE tools SET {column} = 'moved'"))
    with db.engine.connect() as connection:
        columns = ", ".join(f"tools.{name}" for name in ("tenant_id", "scope_id", "name"))
        place = connection.execute(sa.text(f"SELECT {columns} FROM tools")).one()
        moved = on(connection, iter(store.find(*place)))
    assert moved is not None
    with pytest.raises(SecretUnreadable, match="another row"):
        tools.secret_of(moved, VAULT)


def test_a_row_that_stays_itself_is_readable(registry: Registry) -> None:
    registry.put(scope_id="agent:x", name="agent:x")
    assert tools.secret_of(registry.get("agent:x", "agent:x"), VAULT) == SECRET


def test_another_key_reads_nothing_and_says_so(registry: Registry) -> None:
    tool = registry.put()
    other = Vault("another key of a server, also long")
    for vault in (other, None):
        with pytest.raises(SecretUnreadable, match="ONCEONLY_SECRET_KEY"):
            tools.secret_of(tool, vault)
    again = registry.put(vault=other)
    assert again.secret.id != tool.secret.id
    assert tools.secret_of(again, other) == SECRET


def test_without_a_key_all_is_possible_but_keeping_a_secret(registry: Registry) -> None:
    with pytest.raises(Unsupported, match="ONCEONLY_SECRET_KEY"):
        registry.put(vault=None)
    assert registry.names() == []
    tool = registry.put()
    for secret in (SECRET, "another-secret"):
        with pytest.raises(Unsupported):
            registry.put(vault=None, secret=secret)
    assert registry.put(vault=None, secret=None, timeout_ms=999).secret == tool.secret
    assert registry.toggle(False).enabled is False
    assert registry.delete().name == "send"


def test_a_sealed_secret_names_its_key_and_never_repeats_itself() -> None:
    first, second = VAULT.seal(SECRET, "a"), VAULT.seal(SECRET, "a")
    assert first != second
    assert first.split(".")[:2] == second.split(".")[:2]
    assert first.split(".")[0] == "v1"
    assert Vault("another key of a server, also long").seal(SECRET, "a").split(".")[1] != first.split(".")[1]
    assert VAULT.open(first, "a") == VAULT.open(second, "a") == SECRET


def test_a_place_is_its_parts_and_not_their_sum() -> None:
    sealed = VAULT.seal(SECRET, "ab", "c")
    for place in (("a", "bc"), ("abc",), ("ab", "c", ""), ("c", "ab"), ()):
        with pytest.raises(SecretUnreadable):
            VAULT.open(sealed, *place)


def test_a_damaged_secret_is_unreadable_whatever_the_damage() -> None:
    sealed = VAULT.seal("gr\u00fc\u00df \U0001f511 12345", "a")
    assert VAULT.open(sealed, "a") == "gr\u00fc\u00df \U0001f511 12345"
    header = sealed.rpartition(".")[0]
    swapped = sealed[:-3] + ("A" if sealed[-3] != "A" else "B") + sealed[-2:]
    for damaged in (
        "",
        "v1",
        header,
        header + ".",
        header + ".AAAA",
        header + ".\u00fc",
        sealed[:-8],
        swapped,
    ):
        with pytest.raises(SecretUnreadable):
            VAULT.open(damaged, "a")


def test_the_servers_key_is_the_settings() -> None:
    assert tools.vault_of(Settings.load()) is None
    vault = tools.vault_of(Settings.load(secret_key=KEY))
    assert vault is not None
    assert vault.open(VAULT.seal(SECRET, "a"), "a") == SECRET
