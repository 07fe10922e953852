"""The built-in jobs: `echo`, `chat`, `http_request`, `daily_summary`."""

from __future__ import annotations

from datetime import date
from typing import Any

from onceonly_jobs.config import Settings
from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import calls, runs
from onceonly_jobs.store import usage
from onceonly_jobs.store.statement import Operation, autocommit
from onceonly_jobs.store.usage import Counters
from onceonly_jobs.worker import actions_job
from onceonly_jobs.worker.chat import Llm, ask
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.http_request import send
from onceonly_jobs.worker.jobs import Registry
from onceonly_jobs.worker.outcomes import Costed, Fail
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.tool_job import carry_out


def builtin(runtime: Runtime, own: Registry | None = None) -> Registry:
    """The jobs that every worker serves, and the deployment's own, which take precedence."""
    registry = Registry()
    settings = runtime.settings
    allowed = allowed_addresses(settings)

    @registry.job
    def echo(ctx: JobContext) -> dict[str, Any]:
        """Returns what it was given; the default job, for development."""
        return {"key": ctx.key, "metadata": ctx.metadata, "attempt": ctx.attempt}

    @registry.job(max_attempts=4)
    def chat(ctx: JobContext) -> dict[str, Any]:
        """Asks an OpenAI-compatible model, by `prompt` or `messages`; records tokens and cost."""
        if settings.llm_base_url is None:
            raise Fail("not_configured", "ONCEONLY_LLM_BASE_URL is not set for the workers")
        return ask(ctx, Llm(settings.llm_base_url, settings.llm_api_key, settings.llm_model))

    @registry.job(max_attempts=5)
    def http_request(ctx: JobContext) -> dict[str, Any]:
        """Sends an HTTP request with an Idempotency-Key; the result is its answer."""
        return send(ctx, allowed=allowed)

    @registry.job
    def daily_summary(ctx: JobContext) -> dict[str, Any]:
        """Sums the account's own usage of a UTC day: `payload.day`, or the day on which it runs."""
        day = _day(ctx)
        return summary(day, runtime.database.run(_usage_of, ctx.tenant, day))

    @registry.job(calls.JOB, max_attempts=calls.MAX_ATTEMPTS)
    def tool_call(ctx: JobContext) -> dict[str, Any] | Costed:
        """Carries out a tool call that governance has allowed."""
        return carry_out(ctx, runtime, allowed)

    @registry.job(runs.ACTIONS, max_attempts=runs.ACTION_ATTEMPTS, max_crashes=runs.ACTION_ATTEMPTS)
    def actions(ctx: JobContext) -> dict[str, Any]:
        """Makes the tool calls of `metadata.actions`, each as governance decides."""
        return actions_job.carry_out(ctx, runtime, jobs.get)

    jobs = registry if own is None else own.over(registry)
    return jobs


def allowed_addresses(settings: Settings) -> Allowed:
    """Where tools may be, beside the public addresses. Raises ConfigError."""
    try:
        return Allowed.parse(settings.tool_allow)
    except ValueError as error:
        raise ConfigError(f"ONCEONLY_TOOL_ALLOW: {error}") from None


def _day(ctx: JobContext) -> date:
    given = ctx.payload.get("day", ctx.metadata.get("day"))
    if given is None:
        return ctx.started_at.date()
    try:
        return date.fromisoformat(given)
    except (TypeError, ValueError):
        raise Fail("bad_payload", "day must be a date like 2026-01-31") from None


@autocommit
def _usage_of(tenant_id: str, day: date) -> Operation[dict[Kind, Counters]]:
    rows = yield from usage.days(tenant_id, day, day)
    return {kind: counters for _, kind, counters in rows}


def summary(day: date, used: dict[Kind, Counters]) -> dict[str, Any]:
    """Totals by kind, and a line to read."""
    totals = {kind.value: used.get(kind, Counters()) for kind in Kind}
    parts = [
        f"{name}: {c.usage} used in {c.requests_total} requests ({c.blocked_total} blocked)"
        for name, c in totals.items()
    ]
    fields = ("usage", "requests_total", "blocked_total", "charged_total", "polling_total")
    return {
        "day": day.isoformat(),
        "totals": {name: {field: getattr(c, field) for field in fields} for name, c in totals.items()},
        "text": f"{day.isoformat()}: {'; '.join(parts)}",
    }
