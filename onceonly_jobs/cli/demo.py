"""`onceonly-jobs demo`: the three-minute tour, against a running system or a temporary one."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import typer

from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.devenv import read_dev_env
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.local.unwinding import unwound_by_signals
from onceonly_jobs.services import account, audit, runs
from onceonly_jobs.store.database import Database

RUN_TIMEOUT_S = 60.0
LONG_POLL_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """The system that the tour shows. Without a database URL it shows what HTTP shows."""

    base_url: str
    api_key: str
    database_url: str | None


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(demo)


def demo() -> None:
    """Show an idempotency key at work: a lock, its duplicate, a run executed once and answered twice.

    Uses the system named by ONCEONLY_BASE_URL and ONCEONLY_API_KEY, or the one that `up` runs in .onceonly;
    where neither answers, a temporary one is started and ended.
    """
    with _system() as target, _client(target) as client:
        tour = uuid.uuid4().hex[:8]
        _locks(client, f"demo:order:{tour}")
        _run(client, target, f"demo:report:{tour}")


@contextmanager
def _system() -> Iterator[Target]:
    found = _running()
    if found is not None:
        typer.echo(f"Using the system at {found.base_url}\n")
        yield found
        return
    typer.echo("Starting a temporary system: PostgreSQL, Redis, API, worker, scheduler ...", nl=False)
    started = time.monotonic()
    with (
        unwound_by_signals(),
        tempfile.TemporaryDirectory(prefix="onceonly-demo-") as folder,
        LocalSystem(data_dir=Path(folder), flower=False, workers=1) as system,
    ):
        typer.echo(f" up after {time.monotonic() - started:.1f} s\n")
        yield Target(system.base_url, system.api_key, system.database_url)
        typer.echo("\nEnding the temporary system. To keep one: onceonly-jobs up")


def _running() -> Target | None:
    """The system that the environment or `up` in this directory names, if it answers."""
    named = dict(os.environ)
    if "ONCEONLY_BASE_URL" not in named:
        named = read_dev_env(Path(".onceonly/dev.env"))
    if "ONCEONLY_BASE_URL" not in named or "ONCEONLY_API_KEY" not in named:
        return None
    target = Target(named["ONCEONLY_BASE_URL"], named["ONCEONLY_API_KEY"], named.get("ONCEONLY_DATABASE_URL"))
    try:
        with _client(target) as client:
            client.get("/me").raise_for_status()
    except httpx.HTTPError as error:
        if "ONCEONLY_BASE_URL" in os.environ:
            raise ConfigError(
                f"ONCEONLY_BASE_URL: {target.base_url} does not serve this key: {error}"
            ) from None
        return None
    return target


def _client(target: Target) -> httpx.Client:
    headers = {"Authorization": f"Bearer {target.api_key}"}
    return httpx.Client(base_url=target.base_url, headers=headers, timeout=LONG_POLL_S + 5)


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return _answer(client.post(path, json=body))


def _answer(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise ConfigError(f"{response.url.path} answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def _locks(client: httpx.Client, key: str) -> None:
    typer.echo(f"1. A lock: POST /v1/check-lock {key}")
    for mark, name in (("✅", "First call"), ("❌", "Second call")):
        status = _post(client, "/check-lock", {"key": key, "ttl": 60})["status"]
        typer.echo(f"{mark} {name}: locked={status == 'locked'}, duplicate={status == 'duplicate'}")
    typer.echo("✨ Idempotency working!\n")


def _run(client: httpx.Client, target: Target, key: str) -> None:
    typer.echo(f"2. A run: POST /v1/ai/run {key}")
    request = {"key": key, "ttl": 120, "metadata": {"task": "daily_summary"}}
    first = _post(client, "/ai/run", request)
    typer.echo(f"   accepted: status={first['status']}, charged={first['charged']}")
    result = _wait(client, key)
    typer.echo(f"✅ executed by a worker: status={result['status']}, result={result['result']}")
    again = _post(client, "/ai/run", request)
    same = again.get("result") == result["result"]
    typer.echo(f"❌ asked again: status={again['status']}, charged={again['charged']}, same result={same}")
    timeline = _answer(client.get(f"/runs/{key}"))["events"]
    starts = sum(event["type"] == "run_started" for event in timeline)
    typer.echo(f"   timeline: {' → '.join(event['type'] for event in timeline)} (executed {starts} time)")
    if target.database_url is not None:
        _stored(target.database_url, target.api_key, key)
    if result["status"] != "completed" or again["charged"] != 0 or not same or starts != 1:
        raise ConfigError("the tour did not go as it should; see the lines above")
    typer.echo("✨ One execution, one result, however often it is asked for!")


def _wait(client: httpx.Client, key: str) -> dict[str, Any]:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while True:
        result = _answer(client.get("/ai/result", params={"key": key, "wait": LONG_POLL_S}))
        if result["status"] != "in_progress":
            return result
        if time.monotonic() > deadline:
            raise ConfigError(f"run {key} is not finished after {RUN_TIMEOUT_S:.0f} s: is a worker running?")


def _stored(database_url: str, api_key: str, key: str) -> None:
    """Show what Postgres kept: the run's row and its audit row."""
    db = Database(sqlalchemy_url(database_url), pool_size=1)
    tenant_id = db.run(account.authenticate, api_key).tenant_id
    run = db.run(runs.find, tenant_id, key)
    entry = db.run(audit.decisions_of, tenant_id, key)[0]
    db.close()
    typer.echo(
        f"   Postgres, runs:  {run.state}, fencing token {run.fencing_token}, result hash {run.result_hash}"
    )
    typer.echo(
        f"   Postgres, audit: #{entry.decision_id} {entry.decision} ({entry.policy_reason}), "
        f"outcome {entry.outcome} after {entry.latency_ms} ms"
    )
