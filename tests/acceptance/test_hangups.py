"""Workers that end and begin anew: on SIGHUP, as every Celery worker does, unless under nohup; and within a program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from support.process_nodes import Process
from support.worker_system import LONG, System

from onceonly_jobs.local.ports import free_port

pytestmark = pytest.mark.timeout(240)

WORKER = ("-m", "onceonly_jobs.cli.main", "worker", "--app", "support.worker_app", "--concurrency", "1")
STARTED = """import os, signal, sys
signal.signal(signal.SIGHUP, signal.{hangups})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""
ATTEMPT = 'onceonly_attempt_seconds_count{job_name="slow_first"} 1.0'


@contextmanager
def serving(worker: Process) -> Iterator[Process]:
    worker.start()
    try:
        worker.ready()
        yield worker
    finally:
        worker.teardown()


def counted(port: int) -> bool:
    try:
        return ATTEMPT in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.TransportError:
        return False


@pytest.fixture
def extra_env() -> dict[str, str]:
    return {**LONG, "ONCEONLY_DRAIN_S": "0.5"}


def test_a_worker_hands_back_what_it_has_and_begins_anew(parts: System, beat: Process) -> None:
    port = free_port()
    started = ("-c", STARTED.format(hangups="SIG_DFL"), *WORKER)
    with serving(parts.started_as("worker", *started, ONCEONLY_WORKER_METRICS_PORT=str(port))) as worker:
        parts.enqueue("slow_first", "k", witness=str(parts.witness("k")))
        parts.until(lambda: parts.starts("k") == 1, "first start")
        worker.signal_main("SIGHUP")
        row = parts.finished("k")
        assert (row["state"], row["attempt"], row["crashes"]) == ("completed", 2, 0)
        assert worker.status == "running"
        parts.until(lambda: counted(port), "its second attempt is counted")


def test_a_worker_goes_on_where_hangups_are_ignored(parts: System, beat: Process) -> None:
    go = parts.directory / "go"
    with serving(parts.started_as("worker", "-c", STARTED.format(hangups="SIG_IGN"), *WORKER)) as worker:
        parts.enqueue("waits_first", "k", witness=str(parts.witness("k")), file=str(go))
        parts.until(lambda: parts.starts("k") == 1, "first start")
        worker.signal_main("SIGHUP")
        go.touch()
        parts.enqueue("effect", "after")
        assert [parts.finished(key)["attempt"] for key in ("k", "after")] == [1, 1]
        assert "Restarting" not in worker.logs()


def test_a_program_may_have_one_worker_after_another(parts: System, beat: Process) -> None:
    """What the first one was told at its end does not hold for the second."""
    with serving(parts.started_as("program", "-m", "support.embedding", str(parts.directory))) as program:
        for number in range(2):
            key = f"k{number}"
            parts.until(lambda begun=number + 1: program.logs().count(" ready.") == begun, "it serves")
            parts.enqueue("effect", key, witness=str(parts.witness(key)))
            row = parts.finished(key)
            assert (row["state"], row["attempt"], parts.starts(key)) == ("completed", 1, 1)
            (parts.directory / f"over{number}").touch()
        assert program.wait() == 0
