"""Our client in many threads, processes and event loops, over a fork, and while the server is restarted."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.client_storm import PROCESSES, THREADS, Receipt, call_from_everywhere
from support.sdk_parts import Part, api, command
from support.sdk_tenants import Tenant

from onceonly_jobs import OnceOnly
from onceonly_jobs.client.exceptions import OverLimitError, Unreachable
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.local.subprocess_system import LocalSystem

PATIENCE_S = 40.0


@pytest.fixture
def client(system: LocalSystem, tenant: Tenant) -> Iterator[OnceOnly]:
    with OnceOnly(tenant.api_key, system.base_url, fail_open=False) as made:
        yield made


@pytest.mark.timeout(180)
def test_a_function_called_from_everywhere_runs_once_and_all_get_its_result(
    system: LocalSystem, client: OnceOnly, key: str, tmp_path: Path
) -> None:
    """50 threads in each of 4 processes, at two API processes."""
    effects = tmp_path / "effects"
    with api(system.variables, tmp_path) as second:
        other = OnceOnly(client.api_key, second, fail_open=False)
        answers = call_from_everywhere(client, other, key, effects)
    assert answers == [Receipt(order=7, charged=1)] * (PROCESSES * THREADS)
    assert effects.read_text() == "7\n"
    assert client.usage("ai")["usage"] == 1


def test_a_result_is_seen_when_it_is_there(client: OnceOnly, key: str) -> None:
    """Not at the next poll, which would be 30 s later."""
    lease_id = client.ai.lease(key, ttl=60)["lease_id"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.ai.wait, key, poll_min=30, poll_max=30, timeout=PATIENCE_S)
        client.ai.complete(key, lease_id, result={"n": 1})
        assert waiting.result(20).result == {"n": 1}


def test_a_forked_process_has_connections_of_its_own(client: OnceOnly, key: str) -> None:
    """Both use the same client at the same moment; neither gets the other's answers."""
    client.me()  # connects
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()

    def use(who: str) -> None:
        names = [f"{key}:{who}:{n}" for n in range(30)]
        outcomes.put((who, [client.check_lock(name, ttl=60).key for name in names] == names))

    children = [context.Process(target=use, args=(who,), daemon=True) for who in ("a", "b")]
    for child in children:
        child.start()
    use("parent")
    assert dict(outcomes.get(timeout=PATIENCE_S) for _ in range(3)) == dict.fromkeys(
        ("a", "b", "parent"), True
    )
    for child in children:
        child.join(PATIENCE_S)
        assert child.exitcode == 0
    assert client.me()["requests_total_all_time"] == 90


def test_a_fork_while_another_thread_connects_does_not_hang(client: OnceOnly) -> None:
    """The child's lock is its own, whoever held the parent's."""
    with client._connections._lock:
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if client.me()["plan"] else 1)
            finally:
                os._exit(2)
    deadline = time.monotonic() + PATIENCE_S
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_one_client_serves_many_event_loops(client: OnceOnly, key: str) -> None:
    async def use(loop: int) -> list[bool]:
        names = [f"{key}:{loop}:{n}" for n in range(5)]
        try:
            return [lock.locked for lock in await asyncio.gather(*map(client.check_lock_async, names))]
        finally:
            await client._connections.aclose()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda loop: asyncio.run(use(loop)), range(8)))
    assert found == [[True] * 5] * 8


@pytest.fixture
def lone_api(system: LocalSystem, tmp_path: Path) -> Iterator[tuple[str, Any, Any]]:
    """An API process at a fixed port, with what starts and kills it."""
    port, running = free_port(), []

    def start() -> None:
        argv = command("api", "--port", str(port))
        running.append(Part(argv, system.variables, tmp_path / "api.log"))

    def kill() -> None:
        running.pop().kill()

    yield f"http://127.0.0.1:{port}/v1", start, kill
    while running:
        kill()


def test_work_and_waiting_outlive_a_restart_of_the_server(
    client: OnceOnly, lone_api: tuple[str, Any, Any], key: str
) -> None:
    """The result is stored, so that the function need not run again, and whoever waits for it gets it."""
    base_url, start, kill = lone_api
    start()
    ran: list[str] = []
    waiting = threading.Event()

    def work() -> dict[str, int]:
        ran.append(key)
        waiting.wait(PATIENCE_S)
        kill()
        start()
        return {"n": len(ran)}

    async def wait() -> Any:
        async with OnceOnly(client.api_key, base_url, retry_max_backoff=0.2) as waiter:
            assert (await waiter.ai.status_async(key)).status == "in_progress"
            waiting.set()
            return await waiter.ai.wait_async(key, timeout=PATIENCE_S)

    with OnceOnly(client.api_key, base_url, retry_max_backoff=0.2) as worker, ThreadPoolExecutor(2) as pool:
        deadline = time.monotonic() + PATIENCE_S
        while not worker.ready():
            assert time.monotonic() < deadline
        working = pool.submit(worker.ai.run_fn, key, work, ttl=60)
        while not ran:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        waited = pool.submit(asyncio.run, wait())
        assert working.result(PATIENCE_S).result == {"n": 1}
        assert waited.result(PATIENCE_S).result == {"n": 1}
    assert client.ai.run_fn(key, work, ttl=60).result == {"n": 1}
    assert ran == [key]


def test_a_server_that_is_not_there(tenant: Tenant, key: str) -> None:
    with OnceOnly(tenant.api_key, f"http://127.0.0.1:{free_port()}", retry_backoff=0.01) as lonely:
        assert not lonely.ready()
        assert lonely.check_lock(key, ttl=60).failed_open
        with pytest.raises(Unreachable) as caught:
            lonely.me()
    assert "ONCEONLY_BASE_URL" in "".join(caught.value.__notes__)


def test_what_only_our_server_has(client: OnceOnly, key: str) -> None:
    """A job by name with a payload, timelines, fingerprints, calls of unknown outcome."""
    assert client.ready()
    run = client.enqueue("daily_summary", key=key, payload={"day": "2026-03-01"}, ttl=60)
    assert (run.status, run.key) == ("acquired", key)
    assert client.ai.wait(key, timeout=PATIENCE_S).ok
    assert [item["run_id"] for item in client.runs(q=key)["items"]] == [key]
    assert client.check_lock(key, ttl=60, fingerprint="a").locked
    with pytest.raises(Exception, match="fingerprint_mismatch"):
        client.check_lock(key, ttl=60, fingerprint="b")
    assert client.ai.unknown() == {"total": 0, "items": []}
    with pytest.raises(Exception, match=r"settlement_conflict|not_found"):
        client.ai.settle(key, happened=False)


def test_a_budgets_words_are_the_errors(client: OnceOnly, key: str) -> None:
    client.gov.create_tool(
        {
            "name": "send_email",
            "scope_id": "global",
            "url": "http://127.0.0.1:9/never",
            "auth": {"type": "hmac_sha256", "secret": "long enough"},
        }
    )
    client.gov.upsert_policy({"agent_id": "support-bot", "max_spend_usd_per_day": 1.0})
    with pytest.raises(OverLimitError) as caught:
        client.ai.run_tool(agent_id="support-bot", tool="send_email", spend_usd=1.01)
    assert str(caught.value) == "Daily spend limit exceeded ($1.00)"
    assert caught.value.code == "daily_spend_exceeded"
    assert caught.value.request_id
