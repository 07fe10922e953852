"""What `onceonly-jobs doctor` looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from celery import Celery

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.celeryconf import producer_conf
from onceonly_jobs.errors import OnceOnlyError
from onceonly_jobs.services import dead, health, runs, workers
from onceonly_jobs.store import revisions
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.dead import Wanted

OLDEST_POSTGRES = 150_000
PING_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    found: str


def all_checks(settings: Settings) -> Iterator[Check]:
    """Every check, each with what was found; one that fails stops none of the others."""
    db = Database(settings.require_database_url(), pool_size=1, connect_timeout_s=int(CONNECT_TIMEOUT_S))
    yield _checked("database", lambda: _postgres(db))
    yield _checked("schema", lambda: _schema(db))
    yield _checked("jobs", lambda: _jobs(db))
    yield _checked("dead letters", lambda: _dead_letters(db))
    yield _checked("broker", lambda: _broker(settings))
    yield _checked("hints", lambda: _hints(settings))
    yield _checked("workers", lambda: _workers(settings))
    yield _checked("consuming", lambda: consuming(db))
    db.close()


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Exception as error:  # whatever goes wrong is what the check is to show
        return Check(name, False, " ".join(str(error).split())[:300] or type(error).__name__)


def _postgres(db: Database) -> str:
    version = db.run(health.server_version)
    if version < OLDEST_POSTGRES:
        raise OnceOnlyError(f"PostgreSQL {version // 10_000} is too old; 15 is the oldest supported")
    return f"PostgreSQL {version // 10_000}.{version % 10_000} answers"


def _schema(db: Database) -> str:
    at, head = db.run(health.schema_revision), revisions.head()
    if not revisions.serves(at):
        raise OnceOnlyError(f"at {at or 'nothing'}, this version needs {head}: run `onceonly-jobs migrate`")
    return (
        f"at {at}, as this version needs" if at == head else f"at {at}, a newer version's: upgrade this one"
    )


def _jobs(db: Database) -> str:
    known = [spec.name for spec in db.run(runs.registered_jobs)]
    if not known:
        raise OnceOnlyError("no worker has registered a job yet: start `onceonly-jobs worker`")
    return ", ".join(known)


def _dead_letters(db: Database) -> str:
    total, _ = db.run(dead.letters, Wanted(tenant_id=None), 0, 0)
    return f"{total}: see `onceonly-jobs dead list`" if total else "none"


def _celery(settings: Settings) -> Celery:
    app = Celery("onceonly", set_as_current=False)
    app.conf.update(producer_conf(settings))
    return app


def _broker(settings: Settings) -> str:
    with _celery(settings).connection_for_write(connect_timeout=CONNECT_TIMEOUT_S) as connection:
        connection.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT_S)
        return f"{connection.as_uri()} answers"


def _hints(settings: Settings) -> str:
    if settings.hints_url is None:
        return "no Redis: long polls re-read the database every second"
    import redis

    with redis.Redis.from_url(settings.hints_url, socket_connect_timeout=CONNECT_TIMEOUT_S) as client:
        client.ping()
    return "Redis answers"


def _workers(settings: Settings) -> str:
    replies = _celery(settings).control.ping(timeout=PING_TIMEOUT_S)
    names = sorted(name for reply in replies or [] for name in reply)
    if not names:
        raise OnceOnlyError("none answers: start `onceonly-jobs worker`")
    return ", ".join(names)


def consuming(db: Database) -> str:
    """A worker may answer and take no runs all the same."""
    found = db.run(workers.listed)
    stuck = [worker.name for worker in found if worker.state == workers.WorkerState.STUCK]
    lost = [worker.name for worker in found if workers.is_lost(worker) and worker.name not in stuck]
    serving = len(found) - len(stuck) - len(lost)
    notes = [f"{len(names)} {what} lately" for what, names in (("stuck", stuck), ("lost", lost)) if names]
    told = ", ".join([f"{serving} at work", *notes])
    if not serving:
        raise OnceOnlyError(f"{told}: see `onceonly-jobs workers list`")
    return told
