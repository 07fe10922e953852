"""The processes of a system: the embedded servers, API, worker, scheduler and Flower."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from onceonly_jobs.config import Settings
from onceonly_jobs.local.children import Child, answers, exists
from onceonly_jobs.local.embedded import EmbeddedServer
from onceonly_jobs.local.leftovers import MARK
from onceonly_jobs.local.ports import LOOPBACK

LOCAL_TOOLS = "loopback"
"""Whoever tries this out has the tools on the same machine."""
READY_FILE = "ONCEONLY_READY_FILE"

# What is said at each start and end, and means nothing.
_ROUTINE = {
    "postgres": re.compile(
        r"^LOG:  (starting PostgreSQL|listening on|database system (was shut down|is ready|is shut down)"
        r"|received (fast|immediate) shutdown|aborting any active|shutting down|background worker .* exited)"
        r"|^FATAL:  (the database system is|terminating connection due to administrator)"
        r"|^DETAIL:  Consistent recovery state"
    ),
    "redis": re.compile(
        r"Redis is starting|Redis version=|Configuration loaded|Server initialized|Memory overcommit"
        r"|SIGTERM scheduling shutdown|User requested shutdown|Redis is now ready to exit|oom-score-adj"
    ),
    "flower": re.compile(r"Inspect method \w+ failed"),  # it asks workers that are still starting
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the system listens."""

    host: str
    port: int
    flower_port: int | None
    worker_metrics_port: int
    scheduler_metrics_port: int

    @property
    def api_url(self) -> str:
        """The API for a client on this machine: an address that means all of them cannot be called."""
        host = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def flower_url(self) -> str | None:
        return f"http://{LOOPBACK}:{self.flower_port}" if self.flower_port else None

    def metrics_urls(self, host: str) -> list[str]:
        """Where Prometheus finds the API, the worker and the scheduler."""
        ports = (self.worker_metrics_port, self.scheduler_metrics_port)
        return [f"{self.api_url}/metrics", *(f"http://{host}:{port}/metrics" for port in ports)]


def server(embedded: EmbeddedServer, data_dir: Path) -> Child:
    """An embedded server as a child."""
    return Child(
        name=embedded.name,
        argv=embedded.argv,
        cwd=embedded.cwd,
        env={MARK: str(data_dir)},
        is_ready=embedded.is_ready,
        stop_signal=embedded.stop_signal,
        insist_after_s=4,
        kill_after_s=6,
        hide=_ROUTINE[embedded.name],
    )


def parts(settings: Settings, addresses: Addresses, data_dir: Path, workers: int | None) -> list[Child]:
    """API, worker, scheduler and, where it has a port, Flower."""
    env = _environment(settings, data_dir)
    concurrency = workers or max(2, min(4, os.cpu_count() or 1))
    drained_s = settings.drain_s + settings.time_limit_grace_s  # so long a handler may resist
    worker_ready, beat_ready = data_dir / "run" / "worker.ready", data_dir / "run" / "beat.ready"
    children = [
        Child(
            name="api",
            argv=_command("api", "--host", addresses.host, "--port", str(addresses.port)),
            env=env,
            is_ready=answers(f"{addresses.api_url}/ready"),
            kill_after_s=15,
        ),
        Child(
            name="worker",
            argv=_command("worker", "--concurrency", str(concurrency)),
            env={
                **env,
                READY_FILE: str(worker_ready),
                "ONCEONLY_WORKER_METRICS_PORT": str(addresses.worker_metrics_port),
            },
            is_ready=exists(worker_ready),
            ready_file=worker_ready,
            insist_after_s=drained_s + 3,  # it should have ended long before
            kill_after_s=drained_s + 8,
        ),
        Child(
            name="beat",
            argv=_command("beat"),
            env={
                **env,
                READY_FILE: str(beat_ready),
                "ONCEONLY_SCHEDULER_METRICS_PORT": str(addresses.scheduler_metrics_port),
            },
            is_ready=exists(beat_ready),
            ready_file=beat_ready,
            kill_after_s=15,
        ),
    ]
    if addresses.flower_port:
        children.append(
            Child(
                name="flower",
                argv=_command("flower", "--port", str(addresses.flower_port), "--address", LOOPBACK),
                env=env,
                is_ready=answers(f"{addresses.flower_url}/healthcheck"),
                kill_after_s=10,
                hide=_ROUTINE["flower"],
            )
        )
    return children


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "onceonly_jobs.cli.main", *words]


def _environment(settings: Settings, data_dir: Path) -> dict[str, str]:
    """What the parts are told beyond the environment of `up` itself."""
    return {
        "ONCEONLY_DATABASE_URL": settings.database_url or "",
        "ONCEONLY_MIGRATION_DATABASE_URL": "",  # the owner's rights are for `migrate` alone
        "ONCEONLY_BROKER_URL": settings.broker_url or "",
        "ONCEONLY_SECRET_KEY": settings.secret_key or "",
        "ONCEONLY_TOOL_ALLOW": settings.tool_allow or LOCAL_TOOLS,
        "PYTHONUNBUFFERED": "1",
        MARK: str(data_dir),
    }
