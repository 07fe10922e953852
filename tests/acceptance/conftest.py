"""One system, started as a user starts it, for all acceptance tests that take it as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
from support.clients import OUR_FACES, PUBLISHED_FACES, Face, Sdk, connected, unique
from support.sdk_tenants import NewTenant, Tenant, make_tenant
from support.worker_fixtures import (  # noqa: F401
    beat,
    celery_backend_cluster,
    celery_broker_cluster,
    celery_worker_cluster,
    celery_worker_cluster_config,
    extra_env,
    parts,
    serving,
    worker,
)

from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.store.database import Database


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """`onceonly-jobs up`, shared by the session: keys have to be unique, and nobody moves its clock."""
    data_dir = tmp_path_factory.mktemp("system") / "data"
    with LocalSystem(data_dir=data_dir, port=0, flower=False, workers=2) as running:
        yield running


@pytest.fixture(scope="session")
def accounts(system: LocalSystem) -> Iterator[Database]:
    """The system's database, to make tenants in."""
    database = Database(sqlalchemy_url(system.database_url), pool_size=1)
    yield database
    database.close()


@pytest.fixture
def new_tenant(accounts: Database) -> NewTenant:
    """Makes tenants: no counter or key of another test is in them."""
    return partial(make_tenant, accounts)


@pytest.fixture
def tenant(new_tenant: NewTenant) -> Tenant:
    return new_tenant()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key, or the prefix of keys, that no other test uses."""
    return unique(request.node.originalname.removeprefix("test_")[:100])


@pytest.fixture(params=[*PUBLISHED_FACES, *OUR_FACES], ids=str)
def face(request: pytest.FixtureRequest) -> Face:
    """The published SDK's sync methods, then its async ones; then our client's."""
    chosen: Face = request.param
    return chosen


@pytest.fixture
async def sdk(system: LocalSystem, tenant: Tenant, face: Face) -> AsyncIterator[Sdk]:
    """A client as a tenant of its own."""
    async with connected(system.base_url, tenant.api_key, face) as client:
        yield client
