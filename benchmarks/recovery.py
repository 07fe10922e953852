"""How long a run waits after its worker was killed: python -m benchmarks.recovery [--rounds N]

Two workers serve a whole system. In each round the one that executes a run is killed with SIGKILL, the whole process
group; measured is the time until the other one has claimed the run, by the database's clock, and until the waiting
caller has its result.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.local.unwinding import unwound_by_signals

JOBS = """
import os, time
from onceonly_jobs import JobContext, job
from onceonly_jobs.worker.app import create_worker


@job("whoami")
def whoami(ctx: JobContext) -> dict[str, int]:
    ctx.log("started", pid=os.getppid())
    if ctx.attempt == 1:
        time.sleep(120)
    return {"attempt": ctx.attempt}


app = create_worker()
"""


def start_worker(system: LocalSystem, folder: Path) -> subprocess.Popen[bytes]:
    ready = folder / f"ready-{time.monotonic_ns()}"
    env = {**os.environ, **system.variables, "PYTHONPATH": str(folder), "ONCEONLY_READY_FILE": str(ready)}
    command = [
        sys.executable,
        "-m",
        "onceonly_jobs.cli.main",
        "worker",
        "--app",
        "recovery_jobs",
        "--queues",
        "onceonly",
    ]
    log = (folder / "worker.log").open("ab")
    worker = subprocess.Popen([*command, "--concurrency", "1"], env=env, stderr=log, start_new_session=True)
    while not ready.exists():
        if worker.poll() is not None:
            sys.exit((folder / "worker.log").read_text())
        time.sleep(0.05)
    return worker


def one_round(
    api: httpx.Client, db: sa.Engine, workers: list[subprocess.Popen[bytes]], key: str
) -> tuple[float, float]:
    api.post("/ai/run", json={"key": key, "ttl": 300, "metadata": {"task": "whoami"}}).raise_for_status()
    pid = None
    while pid is None:
        pid = next((e["data"]["pid"] for e in timeline(api, key) if e["type"] == "log"), None)
        time.sleep(0.02)
    victim = next(worker for worker in workers if worker.pid == pid)
    with db.connect() as connection:
        killed_at = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    started = time.monotonic()
    os.killpg(victim.pid, signal.SIGKILL)
    result: dict[str, Any] = {"status": "in_progress"}
    while result["status"] == "in_progress":
        result = api.get("/ai/result", params={"key": key, "wait": 30}).json()
    waited_s = time.monotonic() - started
    assert result["result"] == {"attempt": 2}, result
    assert [e["type"] for e in timeline(api, key)].count("run_finished") == 1
    with db.connect() as connection:
        claimed = sa.text("SELECT max(at) FROM run_events WHERE run_id = :key AND type = 'run_started'")
        claimed_at = connection.execute(claimed, {"key": key}).scalar_one()
    workers.remove(victim)
    return (claimed_at - killed_at).total_seconds(), waited_s


def timeline(api: httpx.Client, key: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = api.get(f"/runs/{key}").json()["events"]
    return events


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with (
        unwound_by_signals(),
        tempfile.TemporaryDirectory() as name,
        LocalSystem(data_dir=Path(name) / "data", workers=1) as system,
    ):
        folder = Path(name)
        (folder / "recovery_jobs.py").write_text(JOBS)
        own = next(p for p in psutil.Process(system.pid).children(recursive=True) if "worker" in p.cmdline())
        workers = [start_worker(system, folder), start_worker(system, folder)]
        own.suspend()  # its worker knows nothing of this job, and would drop the messages
        headers = {"Authorization": f"Bearer {system.api_key}"}
        db = sa.create_engine(sqlalchemy_url(system.database_url))
        with httpx.Client(base_url=system.base_url, headers=headers, timeout=60) as api:
            figures = []
            for number in range(rounds):
                figures.append(one_round(api, db, workers, f"recovery:{number}"))
                print(
                    f"round {number}: claimed again after {figures[-1][0]:.2f} s, answered after {figures[-1][1]:.2f} s"
                )
                workers.append(start_worker(system, folder))
        for which, values in zip(("claimed again", "answered"), zip(*figures, strict=True), strict=True):
            print(
                f"{which}: median {statistics.median(values):.2f} s, longest {max(values):.2f} s (worker lease 15 s)"
            )
        own.resume()
        for worker in workers:
            os.killpg(worker.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
