"""Every part is restarted under load, one after another: nothing is lost, nothing done twice, nobody waits for a lease.

ONCEONLY_TEST_RESTARTS=100 with `-s` goes on with so many restarts of workers, and shows how long handing back took.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from support.process_nodes import Process
from support.sdk_tenants import make_tenant
from support.worker_system import System

from onceonly_jobs.config import new_secret
from onceonly_jobs.local.children import answers
from onceonly_jobs.local.ports import free_port

MORE = int(os.environ.get("ONCEONLY_TEST_RESTARTS", "0"))
PAUSE_S = 0.02

pytestmark = pytest.mark.timeout(180 + 30 * MORE)


@pytest.fixture
def extra_env() -> dict[str, str]:
    return {
        "ONCEONLY_DRAIN_S": "0.5",
        "ONCEONLY_WORKER_LEASE_S": "30",
        "ONCEONLY_WORKER_HEARTBEAT_S": "5",
        "ONCEONLY_SECRET_KEY": new_secret(),
    }


class Callers:
    """Two threads that ask for runs through whichever API process answers, until they are told to stop."""

    def __init__(self, parts: System, base_urls: list[str]) -> None:
        self._parts = parts
        self._base_urls = base_urls
        headers = {"Authorization": f"Bearer {make_tenant(parts.db).api_key}"}
        self._http = httpx.Client(headers=headers, timeout=30)
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self.accepted: list[str] = []
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(2)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._http.close()

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            key = f"k{next(self._numbers)}"
            self.ask(key, "effect")
            self._until_done(key)

    def ask(self, key: str, job: str) -> None:
        """Ask until it is acknowledged; which of the processes does that is all the same."""
        payload = {"witness": str(self._parts.witness(key)), "sleep_s": 0.02}
        body = {"key": key, "ttl": 600, "metadata": {"task": job, "payload": payload}}
        self._answered(lambda base_url: self._http.post(f"{base_url}/v1/ai/run", json=body))
        self.accepted.append(key)

    def _until_done(self, key: str) -> None:
        params = {"key": key, "wait": 5}
        status = "in_progress"
        while status == "in_progress" and not self._stop.is_set():
            answer = self._answered(lambda url: self._http.get(f"{url}/v1/ai/status", params=params))
            status = answer.json()["status"]

    def _answered(self, ask: Callable[[str], httpx.Response]) -> httpx.Response:
        for base_url in itertools.cycle(self._base_urls):
            with contextlib.suppress(httpx.TransportError):  # it is just being restarted
                answer = ask(base_url)
                if answer.status_code < 500:
                    return answer.raise_for_status()
            time.sleep(PAUSE_S)
        raise AssertionError("unreachable")


@pytest.fixture
def fleet(parts: System) -> Iterator[dict[str, list[Process]]]:
    """Two of each part."""
    ports = [free_port(), free_port()]
    api = ["-m", "onceonly_jobs.cli.main", "api", "--port"]
    running = {
        "api": [parts.started_as("api", *api, str(port), ONCEONLY_TEST_PORT=str(port)) for port in ports],
        "worker": [parts.process("worker", "--concurrency", "2") for _ in range(2)],
        "beat": [parts.process("beat") for _ in range(2)],
    }
    with ExitStack() as stack:
        for process in itertools.chain(*running.values()):
            stack.callback(process.teardown)
            process.start()
        for process in itertools.chain(*running.values()):
            until_serving(parts, process)
        yield running


def base_url(process: Process) -> str | None:
    """Of an API process."""
    port = process.env.get("ONCEONLY_TEST_PORT")
    return None if port is None else f"http://127.0.0.1:{port}"


def until_serving(parts: System, process: Process) -> None:
    url = base_url(process)
    if url is None:
        process.ready()
    else:
        parts.until(answers(f"{url}/ready"), f"{process.name} serves")


def held_by(parts: System, key: str, process: Process) -> bool:
    path: Path = parts.witness(key)
    return path.exists() and os.getpgid(int(path.read_text().split()[-1])) == process.pid


def restart(parts: System, process: Process) -> None:
    process.signal_main("SIGTERM")
    assert process.wait() in (0, -signal.SIGTERM), process.logs()  # uvicorn ends by the signal that ended it
    process.start()
    until_serving(parts, process)


def start_long(parts: System, callers: Callers, key: str) -> None:
    """A run that its worker can't finish in time when that is restarted."""
    callers.ask(key, "slow_first")
    parts.until(lambda: parts.starts(key) == 1, f"{key} started")


def test_every_part_is_restarted_under_load(parts: System, fleet: dict[str, list[Process]]) -> None:
    urls = [url for process in fleet["api"] if (url := base_url(process)) is not None]
    with Callers(parts, urls) as callers, ThreadPoolExecutor() as pool:
        for number in range(2):
            start_long(parts, callers, f"slow{number}")
        for one_of_each in zip(*fleet.values(), strict=True):
            list(pool.map(lambda process: restart(parts, process), one_of_each))
        for number in range(2, 2 + MORE):
            start_long(parts, callers, f"slow{number}")
            [holder] = [worker for worker in fleet["worker"] if held_by(parts, f"slow{number}", worker)]
            restart(parts, holder)
    assert len(callers.accepted) > 4
    for key in callers.accepted:
        assert parts.finished(key)["state"] == "completed", key
        assert parts.starts(key) == (2 if key.startswith("slow") else 1), key
    told = {
        row["type"]: row["count"] for row in parts.rows("SELECT type, count(*) FROM run_events GROUP BY 1")
    }
    assert told["run_finished"] == len(callers.accepted)
    assert told["run_retried"] == 2 + MORE
    assert not {"lease_expired", "stale_write_refused"} & set(told)
    waits_s = sorted(row["wait_s"] for row in parts.rows(HANDED_BACK))
    print(
        f"{len(waits_s)} runs handed back, {len(callers.accepted)} runs in all; started elsewhere after: median "
        f"{statistics.median(waits_s):.3f} s, longest {waits_s[-1]:.3f} s"
    )


HANDED_BACK = """
SELECT extract(epoch FROM started.at - retried.at)::double precision AS wait_s
FROM run_events retried JOIN run_events started ON started.run_id = retried.run_id AND started.id > retried.id
WHERE retried.type = 'run_retried' AND started.type = 'run_started'
"""


def test_workers_of_one_name_are_three(parts: System, beat: Process) -> None:
    """As containers and autoscaled machines have it. Each run is done once, and the workers are told apart."""
    app = [
        "-m",
        "celery",
        "--app",
        "support.worker_app",
        "worker",
        "--pool",
        "solo",
        "--hostname",
        "one@host",
    ]
    workers = [parts.started_as("worker", *app) for _ in range(3)]
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.teardown)
            worker.start()
        for worker in workers:
            worker.ready()
        keys = [f"k{number}" for number in range(30)]
        for key in keys:
            parts.enqueue("effect", key, witness=str(parts.witness(key)), sleep_s=0.05)
        for key in keys:
            assert parts.finished(key)["state"] == "completed"
            assert parts.starts(key) == 1
        listed = parts.rows("SELECT id, name, pid FROM workers")
        assert {row["name"] for row in listed} == {"one@host"}
        assert {row["pid"] for row in listed} == {worker.pid for worker in workers}
        assert len({row["id"] for row in listed}) == 3
        claimed = {row["worker_id"] for row in parts.rows("SELECT worker_id FROM runs")}
        assert claimed <= {row["id"] for row in listed}
