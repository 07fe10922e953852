"""What Prometheus is told: every metric's name, and how a process, or several that belong together, show theirs.

Each metric has a label, so a process shows only what it has counted itself. Labels are of a deployment's own words
(jobs, queues, routes) and of fixed ones: never of keys, tenants, agents or paths, of which there is no end. A job's
is `job_name`, since `job` is what Prometheus itself calls what it scrapes.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import re
import shutil
import tempfile
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: the directory in which processes that belong together keep their figures."""

# The time of each series' creation would be a second one for each.
disable_created_metrics()  # type: ignore[no-untyped-call]
logger = logging.getLogger(__name__)
M = TypeVar("M", Counter, Gauge, Histogram)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DELAY_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800)
_RUN_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)

HTTP_REQUESTS = Counter(
    "onceonly_http_requests", "Answered requests", ["method", "route", "status"], registry=REGISTRY
)
HTTP_SECONDS = Histogram(
    "onceonly_http_request_seconds",
    "Seconds until the answer began, long polls included",
    ["method", "route"],
    buckets=_REQUEST_S,
    registry=REGISTRY,
)
CHECK_LOCKS = Counter(
    "onceonly_check_locks", "Answers of check-lock: locked, duplicate", ["status"], registry=REGISTRY
)
MESSAGES = Counter(
    "onceonly_messages",
    "Messages that workers took: claimed, stale, unreachable",
    ["outcome"],
    registry=REGISTRY,
)
DIRECT_CLAIMS = Counter(
    "onceonly_direct_claims",
    "Runs that workers took without a message: claimed, given_back",
    ["outcome"],
    registry=REGISTRY,
)
START_DELAY = Histogram(
    "onceonly_start_delay_seconds",
    "Seconds from when an attempt was due until it was claimed",
    ["job_name"],
    buckets=_DELAY_S,
    registry=REGISTRY,
)
ATTEMPTS = Counter(
    "onceonly_attempts",
    "Ended attempts: completed, failed, retried, cancelled, unknown, lost, handed_back",
    ["job_name", "outcome"],
    registry=REGISTRY,
)
ATTEMPT_SECONDS = Histogram(
    "onceonly_attempt_seconds",
    "Seconds from an attempt's claim to its end",
    ["job_name"],
    buckets=_RUN_S,
    registry=REGISTRY,
)
HEARTBEATS = Counter(
    "onceonly_heartbeats", "Heartbeats of claims: kept, stopped, unanswered", ["outcome"], registry=REGISTRY
)
TOOL_CALLS = Counter(
    "onceonly_tool_calls",
    "Calls of HTTP tools: executed, tool_error, unknown",
    ["outcome"],
    registry=REGISTRY,
)
TOOL_SECONDS = Histogram(
    "onceonly_tool_call_seconds",
    "Seconds that a call took, with its retries",
    ["outcome"],
    buckets=_REQUEST_S,
    registry=REGISTRY,
)
CLAIMS_EXPIRED = Counter(
    "onceonly_claims_expired",
    "Runs taken back from lost workers: queued, ended",
    ["outcome"],
    registry=REGISTRY,
)
PUBLICATIONS = Counter(
    "onceonly_publications",
    "Runs for the broker: published, failed, left to the relay",
    ["outcome"],
    registry=REGISTRY,
)
RELAY_TICKS = Counter(
    "onceonly_relay_ticks", "Rounds of the relay: ok, failed", ["outcome"], registry=REGISTRY
)
RELAY_FAILURES = Counter(
    "onceonly_relay_failures", "Steps of the relay that failed", ["step"], registry=REGISTRY
)
SCHEDULE_TICKS = Counter(
    "onceonly_schedule_ticks",
    "Ticks of schedules: fired, skipped, misfired, refused",
    ["state"],
    registry=REGISTRY,
)
TICK_DELAY = Histogram(
    "onceonly_schedule_tick_delay_seconds",
    "Seconds from a tick's time until it was served",
    ["state"],
    buckets=_DELAY_S,
    registry=REGISTRY,
)
PRUNED_ROWS = Counter(
    "onceonly_pruned_rows",
    "Old rows deleted: runs, run_actions, locks, run_events, feed_events, workers",
    ["kind"],
    registry=REGISTRY,
)
QUEUE_MESSAGES = Gauge(
    "onceonly_queue_messages",
    "Messages in the broker's queue, as the relay last saw it",
    ["queue"],
    registry=REGISTRY,
    multiprocess_mode="livemax",
)
HINTS = Counter(
    "onceonly_hints",
    "News of finished runs: sent, failed, received; lost: subscriptions that broke",
    ["event"],
    registry=REGISTRY,
)
DATABASE_CONNECTIONS = Gauge(
    "onceonly_database_connections",
    "Postgres connections of the process: in_use, limit",
    ["state"],
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
BUILD = Gauge(
    "onceonly_build_info", "1, by version", ["version"], registry=REGISTRY, multiprocess_mode="livemax"
)


# Held while a figure changes, and during a fork: a child would inherit the library's own lock as it is just then, and
# wait for ever where another thread had it. Reentrant, for a destructor may count in the midst of it.
_counting = threading.RLock()
os.register_at_fork(
    before=_counting.acquire, after_in_parent=_counting.release, after_in_child=_counting.release
)


@lru_cache(maxsize=4096)
def _labelled(metric: M, labels: tuple[str, ...]) -> M:
    """The metric with these labels. Looking it up costs more than adding to it."""
    labelled: M = metric.labels(*labels)
    return labelled


def count(metric: Counter | Gauge, *labels: str, by: float = 1) -> None:
    """Add to a metric. Never raises, as the other two don't: a figure that can't be kept, its directory being gone or
    full, is no reason to fail what was done."""
    try:
        with _counting:
            _labelled(metric, labels).inc(by)
    except Exception as error:
        _not_kept(error)


def observe(metric: Histogram, *labels: str, seconds: float) -> None:
    """Add an observation. Never raises."""
    try:
        with _counting:
            _labelled(metric, labels).observe(seconds)
    except Exception as error:
        _not_kept(error)


def put(metric: Gauge, *labels: str, value: float) -> None:
    """Set a gauge. Never raises."""
    try:
        with _counting:
            _labelled(metric, labels).set(value)
    except Exception as error:
        _not_kept(error)


def _not_kept(error: Exception) -> None:
    logger.debug("a figure was not kept: %s", error)


def share_between_processes() -> Path | None:
    """Let this process and those that it will start add up what they count; before any of them counts.

    Returns the directory that `forget` removes; None where the operator has set one, whose it then is.
    """
    if os.environ.get(SHARED):
        return None
    directory = Path(tempfile.mkdtemp(prefix="onceonly-metrics-"))
    os.environ[SHARED] = str(directory)
    # Read at the library's import, which Celery's plugins may have caused long ago.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
    return directory


def forget(directory: Path | None) -> None:
    """Remove what processes that have ended have shared. Whatever this one becomes is to share anew."""
    if directory is not None:
        os.environ.pop(SHARED, None)
        shutil.rmtree(directory, ignore_errors=True)


def exposition() -> bytes:
    """The figures of this process, or of all that share theirs, in Prometheus' text format."""
    directory = os.environ.get(SHARED)
    if not directory:
        return generate_latest(REGISTRY)
    for pid in _dead(Path(directory)):
        mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]
    together = CollectorRegistry()
    MultiProcessCollector(together, directory)  # type: ignore[no-untyped-call]
    return generate_latest(together)


def _dead(directory: Path) -> set[int]:
    """Processes that have left a gauge and are gone: what they counted stays, what they held does not."""
    found = (re.fullmatch(r"gauge_live\w+_(\d+)\.db", path.name) for path in directory.iterdir())
    return {pid for pid in {int(name[1]) for name in found if name} if not _alive(pid)}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def permitted(authorization: str, token: str) -> bool:
    """Whether an Authorization header carries the token."""
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


class Exporter:
    """`/metrics` of a process that serves nothing else, from a thread of its own."""

    def __init__(self, host: str, port: int, token: str | None) -> None:
        """Listens at once; port 0 is any free one. Raises OSError where it can't."""
        self._server = ThreadingHTTPServer((host, port), _handler(token))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_port

    def leave(self) -> None:
        """In a forked child: let go of the port, which is the parent's."""
        with contextlib.suppress(OSError):
            self._server.socket.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(token: str | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self._answer(404, b"see /metrics\n")
            elif token is not None and not permitted(self.headers.get("Authorization", ""), token):
                self._answer(401, b"a Bearer token is needed\n")
            else:
                self._show()

        def _show(self) -> None:
            try:
                figures = exposition()
            except Exception as error:  # the directory that processes share is gone, or is being written
                logger.warning("figures not shown: %s", error)
                self._answer(500, b"see the log\n")
            else:
                self._answer(200, figures, CONTENT_TYPE)

        def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape is nothing to tell of."""

    return Handler
