"""What an operator sees of a system whose every part is a process of its own: metrics, traces, logs and Flower."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.parser import text_string_to_metric_families
from support.process_nodes import Process, RedisServer
from support.tool_server import ToolServer, ok
from support.trace_collector import Span, TraceCollector
from support.worker_fixtures import new_database
from support.worker_system import System, system_over

from onceonly_jobs import OnceOnly
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.services import account

pytestmark = pytest.mark.timeout(240)

TOKEN = "let-prometheus-in"
FLOWER = ("operator", "a-flower-password")
TOOL_SECRET = "the tool's own secret"
PAYLOAD = "nobody's business but the tool's"


@dataclass(frozen=True)
class Site:
    """A running system, and where its parts listen."""

    system: System
    parts: dict[str, Process]
    ports: dict[str, int]
    broker_url: str
    collector: TraceCollector
    tool: ToolServer
    api_key: str
    http: httpx.Client
    """A connection for each request: of several processes any may take it."""

    def url(self, part: str) -> str:
        return f"http://127.0.0.1:{self.ports[part]}"

    def call(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """POST to the API."""
        sent = {"Authorization": f"Bearer {self.api_key}", **headers}
        return self.http.post(f"{self.url('api')}/v1{path}", json=body, headers=sent)

    def figure(self, part: str, name: str, **labels: str) -> float:
        """A metric of a part, summed over the labels that are not given."""
        answer = self.http.get(f"{self.url(part)}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        return sum(
            sample.value
            for family in text_string_to_metric_families(answer.raise_for_status().text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def flower(self, path: str) -> Any:
        return self.http.get(f"{self.url('flower')}{path}", auth=FLOWER).raise_for_status().json()

    def task(self, key: str) -> list[dict[str, Any]]:
        """What Flower knows of the messages of a key, oldest first."""
        found = [
            task for task in self.flower("/api/tasks").values() if task["kwargs"] and key in task["kwargs"]
        ]
        return sorted(found, key=lambda task: task["received"] or 0)


@pytest.fixture(scope="module")
def site(servers: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    ports = {part: free_port() for part in ("api", "worker", "beat", "flower")}
    with ExitStack() as running:
        http = running.enter_context(
            httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0), verify=False)
        )
        collector = running.enter_context(TraceCollector())
        tool = running.enter_context(ToolServer())
        tool.otherwise = lambda _: ok({"sent": True})
        broker = RedisServer(directory / "redis")
        running.callback(broker.teardown)
        broker_url = broker.celeryconfig["url"]
        database_url = running.enter_context(new_database(servers, template))
        env = {
            "ONCEONLY_METRICS_TOKEN": TOKEN,
            "ONCEONLY_WORKER_METRICS_PORT": str(ports["worker"]),
            "ONCEONLY_SCHEDULER_METRICS_PORT": str(ports["beat"]),
            "ONCEONLY_FLOWER_AUTH": ":".join(FLOWER),
            "ONCEONLY_TOOL_ALLOW": "loopback",
            "ONCEONLY_SECRET_KEY": "a key for secrets at rest",
            "ONCEONLY_LOG_FORMAT": "json",
            "ONCEONLY_LOG_LEVEL": "DEBUG",
            "ONCEONLY_OTEL": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "ONCEONLY_WORKER_LEASE_S": "15",
        }
        system = running.enter_context(system_over(database_url, broker_url, directory, **env))
        main = ("-m", "onceonly_jobs.cli.main")
        parts = {
            "flower": system.started_as("flower", *main, "flower", "--port", str(ports["flower"])),
            "beat": system.process("beat"),
            "worker": system.process("worker", "--concurrency", "2"),
            "api": system.started_as("api", *main, "api", "--port", str(ports["api"]), "--workers", "2"),
        }
        for part in parts.values():
            part.start()
            running.callback(part.teardown)
        parts["beat"].ready()
        parts["worker"].ready()
        system.db.run(account.ensure_tenant, "t", Plan.AGENCY)
        api_key = system.db.run(account.create_key, "t").api_key
        site = Site(system, parts, ports, broker_url, collector, tool, api_key, http)
        for part, path in (("api", "/ready"), ("flower", "/healthcheck")):
            system.until(lambda part=part, path=path: _answers(site.url(part) + path), f"{part} answers")
        system.until(lambda: site.flower("/api/workers?refresh=1"), "Flower knows the worker")
        yield site


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def governed_call(site: Site, number: int, **headers: str) -> dict[str, Any]:
    """A call of the tool through the API, a worker and HTTP."""
    secret = {"type": "hmac_sha256", "secret": TOOL_SECRET}
    assert site.call("/tools", {"name": "mail", "url": site.tool.url, "auth": secret}).status_code == 200
    args = {"to": PAYLOAD, "number": number}
    answer = site.call("/ai/run", {"agent_id": "bot", "tool": "mail", "args": args}, **headers)
    body: dict[str, Any] = answer.json()
    assert body["ok"], body
    return body


def test_one_trace_leads_from_the_client_to_the_tool(site: Site) -> None:
    secret = {"type": "hmac_sha256", "secret": TOOL_SECRET}
    with OnceOnly(site.api_key, site.url("api"), timeout=30) as sdk:
        sdk.gov.create_tool({"name": "mail", "url": site.tool.url, "auth": secret})
        with TracerProvider().get_tracer("client").start_as_current_span("client") as client:
            answer = sdk.ai.run_tool(agent_id="bot", tool="mail", args={"to": PAYLOAD, "number": 1})
    assert answer.ok, answer
    context = client.get_span_context()
    trace_id, client_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    names = ("POST /v1/ai/run", "run onceonly.tool_call", "POST mail")
    spans = site.system.until(
        lambda: (found := site.collector.of(trace_id)) and set(names) <= set(found) and found, "three spans"
    )
    asked, ran, called = (spans[name] for name in names)
    assert (asked.service, ran.service, called.service) == (
        "onceonly-api",
        "onceonly-worker",
        "onceonly-worker",
    )
    assert (asked.parent, ran.parent, called.parent) == (client_id, asked.id, ran.id)
    assert ran.attributes["onceonly.tenant"] == "t"
    sent = site.tool.requests[-1].headers["traceparent"]
    assert sent.split("-")[:3] == ["00", trace_id, called.id]
    assert not any(PAYLOAD in repr(span) or TOOL_SECRET in repr(span) for span in site.collector.spans)


def test_every_attempt_belongs_to_the_trace_of_the_first_call(site: Site) -> None:
    """Though the second one was published by the relay, which knows of no trace."""
    parent = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
    metadata = {"task": "flaky", "payload": {"failures": 1}}
    site.call("/ai/run", {"key": "traced-retry", "metadata": metadata}, traceparent=parent)
    site.system.finished("traced-retry")

    def attempts() -> list[Span]:
        trace_id = parent.split("-")[1]
        return [s for s in site.collector.spans if s.trace == trace_id and s.name == "run flaky"]

    site.system.until(lambda: len(attempts()) == 2, "both attempts")
    outcomes = {
        span.attributes["onceonly.attempt"]: span.attributes["onceonly.outcome"] for span in attempts()
    }
    assert outcomes == {1: "retried", 2: "completed"}


def test_the_processes_of_an_api_show_their_sum(site: Site) -> None:
    """Whichever of them is asked: each request here may be taken by another one."""
    labels = {"route": "/v1/check-lock", "status": "200"}
    before = site.figure("api", "onceonly_http_requests_total", **labels)
    for number in range(20):
        site.call("/check-lock", {"key": f"sum-{number % 4}", "ttl": 600})
    after = {site.figure("api", "onceonly_http_requests_total", **labels) for _ in range(6)}
    assert after == {before + 20}
    assert site.figure("api", "onceonly_check_locks_total", status="duplicate") >= 16


def test_what_a_workers_children_counted_outlives_them(site: Site) -> None:
    def attempts(job: str) -> float:
        return site.figure("worker", "onceonly_attempts_total", job_name=job, outcome="completed")

    counted = attempts("effect") + 4
    for number in range(4):
        site.system.enqueue("effect", f"before-{number}")
    for number in range(4):
        site.system.finished(f"before-{number}")
    site.system.until(lambda: attempts("effect") >= counted, "what was stored is counted")
    limit = site.figure("worker", "onceonly_database_connections", state="limit")
    site.system.enqueue("dies", "dies", witness=str(site.system.witness("dies")))
    site.system.until(lambda: site.system.starts("dies") == 1, "a child has died")
    assert attempts("effect") >= counted
    for number in range(4):
        site.system.enqueue("effect", f"after-{number}")
    for number in range(4):
        site.system.finished(f"after-{number}")
    site.system.until(lambda: attempts("effect") >= counted + 4, "the new child counts too")
    assert site.figure("worker", "onceonly_database_connections", state="limit") <= limit
    delays = lambda: site.figure("worker", "onceonly_start_delay_seconds_count", job_name="effect")  # noqa: E731
    site.system.until(lambda: delays() >= counted + 4, "their delays too")


def test_the_scheduler_shows_what_the_database_has(site: Site) -> None:
    site.system.enqueue("effect", "ended")
    site.system.finished("ended")
    site.system.until(
        lambda: site.figure("beat", "onceonly_runs_ended_total", job_name="effect", outcome="completed"),
        "ended runs",
    )
    assert site.figure("beat", "onceonly_relay_ticks_total", outcome="ok") > 0
    assert site.figure("beat", "onceonly_queue_messages", queue="onceonly") == 0


@pytest.mark.parametrize("part", ["api", "worker", "beat"])
def test_metrics_ask_for_the_token(site: Site, part: str) -> None:
    for headers in ({}, {"Authorization": "Bearer something-else"}):
        assert site.http.get(f"{site.url(part)}/metrics", headers=headers).status_code == 401


def test_flower_shows_every_end_as_what_it_was(site: Site) -> None:
    system = site.system
    system.enqueue("effect", "flower-ok")
    system.enqueue("gives_up", "flower-fails")
    system.enqueue("flaky", "flower-retries", failures=1)
    cancelled = system.jobs.enqueue("patient", key="flower-cancelled", metadata={"agent_id": "bot"})
    system.until(lambda: system.row("flower-cancelled")["state"] == "in_progress", "it runs")
    site.call("/ai/cancel", {"key": "flower-cancelled", "lease_id": cancelled.lease_id})
    wanted = {
        "flower-ok": ["SUCCESS"],
        "flower-fails": ["FAILURE"],
        "flower-retries": ["RETRY", "SUCCESS"],
        "flower-cancelled": ["REVOKED"],
    }

    def seen() -> dict[str, list[str]]:
        return {key: [task["state"] for task in site.task(key)] for key in wanted}

    system.until(lambda: seen() == wanted or None, f"{wanted}, not {seen()}")
    (task,) = site.task("flower-cancelled")
    assert task["name"] == "patient"
    assert ast.literal_eval(task["kwargs"]) == {"key": "flower-cancelled", "tenant": "t", "agent": "bot"}
    (failed,) = site.task("flower-fails")
    assert "customer 7 is unknown" in failed["exception"]


def test_flower_knows_workers_queues_and_rates(site: Site) -> None:
    site.system.enqueue("effect", "flower-rates")
    site.system.finished("flower-rates")
    (name, worker), *others = site.flower("/api/workers?refresh=1").items()
    assert not others
    assert name.startswith("worker-")
    assert [queue["name"] for queue in worker["active_queues"]] == ["onceonly"]
    assert {"effect", "echo", "onceonly.tool_call"} <= {task.split(" ")[0] for task in worker["registered"]}
    assert site.flower("/api/queues/length") == {"active_queues": [{"name": "onceonly", "messages": 0}]}
    shown = site.http.get(f"{site.url('flower')}/metrics").text
    assert f'flower_events_total{{task="effect",type="task-succeeded",worker="{name}"}}' in shown


def test_flower_lets_nobody_in_without_the_password(site: Site) -> None:
    for path in ("/", "/tasks", "/api/tasks", "/api/workers"):
        assert site.http.get(f"{site.url('flower')}{path}").status_code == 401


def test_flower_shows_neither_secrets_nor_payloads(site: Site) -> None:
    governed_call(site, 2)
    pages = ["/api/tasks", "/api/workers?refresh=1", "/tasks/datatable?draw=1&start=0&length=100", "/metrics"]
    shown = ""
    for path in pages:
        answer = site.http.get(f"{site.url('flower')}{path}", auth=FLOWER)
        shown += answer.text
    assert "onceonly.tool_call" in shown
    for secret in secrets(site):
        assert secret not in shown


def secrets(site: Site) -> list[str]:
    settings = site.system.settings
    passwords = [
        settings.require_database_url().split(":")[2].split("@")[0],
        httpx.URL(site.broker_url).password,
    ]
    assert all(len(password) > 5 for password in passwords)
    return [site.api_key, TOOL_SECRET, PAYLOAD, TOKEN, FLOWER[1], *passwords, "a key for secrets at rest"]


def log_lines(process: Process) -> list[dict[str, Any]]:
    """The log's lines, each of which has to be a JSON object."""
    lines = [line for line in process.logs().splitlines() if line.strip()]
    return [json.loads(line) for line in lines]


def test_log_lines_name_what_they_are_about(site: Site) -> None:
    site.call("/ai/run", {"key": "logged", "metadata": {"run_id": "a-timeline"}}, **{"X-Request-Id": "req-1"})
    site.system.finished("logged")
    worker = site.system.until(
        lambda: [line for line in log_lines(site.parts["worker"]) if line.get("key") == "logged"], "its line"
    )
    names = ("tenant", "key", "run_id", "run", "job", "level", "logger")
    run = site.system.row("logged")["id"]
    assert [worker[-1][name] for name in names] == [
        "t",
        "logged",
        "a-timeline",
        run,
        "echo",
        "info",
        "worker",
    ]
    (access,) = [line for line in log_lines(site.parts["api"]) if line.get("request_id") == "req-1"]
    assert [access[name] for name in ("tenant", "key", "level")] == ["t", "logged", "debug"]
    assert access["event"].startswith("POST /v1/ai/run: 200 in ")
    assert access["trace_id"] == worker[-1]["trace_id"]


def test_no_log_has_a_secret_even_at_debug(site: Site) -> None:
    governed_call(site, 3)
    site.call("/check-lock", {"key": "k", "ttl": "soon"})
    httpx.get(
        f"{site.url('api')}/v1/me", headers={"Authorization": "Bearer once_live_wrong0123456789"}, timeout=10
    )
    for part in ("api", "worker", "beat", "flower"):
        logs = site.parts[part].logs()
        found = [secret for secret in [*secrets(site), "once_live_wrong"] if secret in logs]
        assert found == [], part
    assert len(log_lines(site.parts["worker"])) > 20
    assert trace.get_current_span().get_span_context().is_valid is False
