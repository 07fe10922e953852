"""The application over HTTP, in this process: real Postgres, real Redis, nothing replaced.

Tests share one running application, and each has tenants of its own. Those that move the clock or need other
settings start another one, over a database of their own.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from anyio.from_thread import start_blocking_portal
from starlette.types import Message, Receive, Scope, Send

from onceonly_jobs.api.app import create_app
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services import account, claims, runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from tests.conftest import PATIENT

WORKER_LEASE_S = 15
WEEK_S = 7 * 86_400
SPARE_SLOT = 99
"""A row of the counters that no request adds to."""

_numbers = itertools.count(1)


class App:
    """The application with its lifespan, on an event loop in a thread of its own. Any thread may call it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.asgi = create_app(settings)
        self._open = ExitStack()

    def __enter__(self) -> App:
        self._portal = self._open.enter_context(start_blocking_portal())
        lifespan = self.asgi.router.lifespan_context(self.asgi)
        self._open.enter_context(self._portal.wrap_async_context_manager(lifespan))
        transport = httpx.ASGITransport(self._in_one, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        self._client = self._open.enter_context(self._portal.wrap_async_context_manager(client))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    async def _in_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application with a body as a server gives it, whole; httpx sends an empty piece behind it."""
        message = await receive()
        if message.get("more_body"):
            last = await receive()
            message = {**message, "body": message["body"] + last["body"], "more_body": last["more_body"]}
        first = [message]

        async def receiving() -> Message:
            return first.pop() if first else await receive()

        await self.asgi(scope, receiving, send)

    def request(self, method: str, path: str, **sent: Any) -> httpx.Response:
        return self._portal.call(partial(self._client.request, method, path, **sent))


@dataclass(frozen=True)
class Api:
    """The application as one API key sees it. Paths are below /v1."""

    app: App
    db: Database
    caller: Caller
    api_key: str

    @property
    def tenant_id(self) -> str:
        return self.caller.tenant_id

    def request(self, method: str, path: str, **sent: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.api_key}"} | dict(sent.pop("headers", {}))
        return self.app.request(method, f"/v1{path}", headers=headers, **sent)

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.request("GET", path, params=params)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.request("POST", path, json=body)

    def at_once(self, times: int, call: Callable[[int], httpx.Response]) -> list[httpx.Response]:
        """Answers of that many calls from as many threads."""
        with ThreadPoolExecutor(times) as pool:
            return list(pool.map(call, range(times)))

    def claim(self, key: str, lease_s: float = WORKER_LEASE_S) -> Claim:
        """Take the run under a key as a worker does."""
        run = self.db.run(runs.find, self.tenant_id, key)
        job = self.app.settings.default_job
        claim = self.db.run(claims.claim, run.id, job, lease_s, None)
        assert claim is not None, "the run is queued and due"
        return claim

    def work(self, key: str, result: dict[str, Any] | None = None, error_code: str | None = None) -> None:
        """Run the run under a key to its end, as a worker does."""
        claim = self.claim(key)
        if error_code is None:
            ending = self.db.run(claims.complete, claim, result or {}, WEEK_S)
        else:
            ending = self.db.run(claims.fail, claim, error_code, None, WEEK_S)
        assert ending is claims.Ending.STORED

    def forget(self, key: str) -> None:
        """Let the key be free again, as after its retention time."""
        query = sa.text(
            "UPDATE runs SET retain_until_at = onceonly_now() WHERE tenant_id = :tenant_id AND key = :key"
        )
        with self.db.engine.begin() as connection:
            connection.execute(query, {"tenant_id": self.tenant_id, "key": key})

    def usage(self, kind: str) -> dict[str, Any]:
        """This month's counters of a kind."""
        body: dict[str, Any] = self.get("/usage/all").json()
        return dict(body[kind])

    def use_up(self, kind: str, usage: int) -> None:
        """Let that much more of this month's quota have been used."""
        query = sa.text(
            "INSERT INTO usage_counters (tenant_id, kind, day, slot, usage, requests_total)"
            " VALUES (:tenant_id, :kind, (onceonly_now() AT TIME ZONE 'UTC')::date, :slot, :usage, :usage)"
        )
        params = {"tenant_id": self.tenant_id, "kind": kind, "slot": SPARE_SLOT, "usage": usage}
        with self.db.engine.begin() as connection:
            connection.execute(query, params)

    def rows(self, table: str) -> int:
        """How many rows of a table are this tenant's."""
        query = sa.text(f"SELECT count(*) FROM {table} WHERE tenant_id = :tenant_id")
        with self.db.engine.connect() as connection:
            return int(connection.execute(query, {"tenant_id": self.tenant_id}).scalar_one())


def new_api(app: App, db: Database, plan: Plan = Plan.AGENCY, rate_limit: str | None = None) -> Api:
    """A new tenant of that plan with a key."""
    tenant_id = f"tenant_{next(_numbers)}"
    db.run(account.ensure_tenant, tenant_id, plan)
    api_key = db.run(account.create_key, tenant_id, rate_limit).api_key
    return Api(app, db, db.run(account.authenticate, api_key), api_key)


NewApi = Callable[..., Api]


@pytest.fixture(scope="session")
def shared_settings(servers: Any, template: str) -> Iterator[Settings]:
    """A database for every test that can do with a tenant of its own."""
    name = f"onceonly_shared_{os.getpid()}"
    admin = sa.create_engine(servers.postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("ONCEONLY_")]:
            patch.delenv(variable)
        role = "onceonly_test_app"
        yield Settings.load(
            database_url=servers.database(name, role), broker_url=servers.redis_url, **PATIENT
        )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def shared_db(shared_settings: Settings) -> Iterator[Database]:
    database = Database(shared_settings.require_database_url(), pool_size=5)
    yield database
    database.close()


@pytest.fixture(scope="session")
def shared_app(shared_settings: Settings) -> Iterator[App]:
    with App(shared_settings) as app:
        yield app


@pytest.fixture(scope="session")
def new_tenant(shared_app: App, shared_db: Database) -> NewApi:
    """Makes tenants: `new_tenant(Plan.FREE)`."""
    return partial(new_api, shared_app, shared_db)


@pytest.fixture(scope="session")
def tenant_on() -> NewApi:
    """Makes tenants on a module's own application: `tenant_on(app, shared_db)`."""
    return new_api


@pytest.fixture(scope="session")
def new_tenant_with_tools(shared_settings: Settings, shared_db: Database) -> Iterator[NewApi]:
    """Makes tenants of a server that has a key for the secrets of tools."""
    with App(shared_settings.model_copy(update={"secret_key": "a key of the server"})) as app:
        yield partial(new_api, app, shared_db)


@pytest.fixture
def api(new_tenant: NewApi) -> Api:
    """A new agency tenant."""
    return new_tenant()


@pytest.fixture
def serve(settings: Settings, db: Database) -> Iterator[Callable[..., Api]]:
    """Starts an application over this test's own database, with other settings if given: a tenant of it."""
    with ExitStack() as running:

        def start(plan: Plan = Plan.AGENCY, **changed: Any) -> Api:
            app = running.enter_context(App(settings.model_copy(update=changed)))
            return new_api(app, db, plan)

        yield start


class _Recent:
    """Equals every timestamp of the contract's form (§1.8) from the last minute."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", other):
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(other)
        return -1 < age.total_seconds() < 60

    def __repr__(self) -> str:
        return "<a recent timestamp>"


class _LeaseId:
    """Equals every opaque lease id (§3.4)."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and re.fullmatch(r"lease_[\w-]{20,}", other) is not None

    def __repr__(self) -> str:
        return "<a lease id>"


@pytest.fixture(scope="session")
def recent() -> _Recent:
    return _Recent()


@pytest.fixture(scope="session")
def a_lease_id() -> _LeaseId:
    return _LeaseId()
