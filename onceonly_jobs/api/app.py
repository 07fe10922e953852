"""The HTTP application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer
from starlette.types import Receive, Scope, Send

from onceonly_jobs import metrics, tracing
from onceonly_jobs.api.edge import CommonHeaders
from onceonly_jobs.api.express import Express
from onceonly_jobs.api.observed import Observed
from onceonly_jobs.api.problems import install
from onceonly_jobs.api.routes import (
    account,
    ai,
    dead,
    events,
    governance,
    health,
    locks,
    schedules,
    streams,
    tools,
    unknown,
    webhooks,
)
from onceonly_jobs.api.state import State
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.telemetry import configure_logging

DESCRIPTION = """
One effective execution per idempotency key, for AI agents and everything else that must not happen twice.

Every call carries `Authorization: Bearer once_live_...`. Every error is `{"detail": ...}`: a text, an object
with a machine-readable `error` and a readable `message`, or for 422 the list of what is wrong with the request.
"""

EVERYWHERE = (401, 403, 422, 429, 503)

# For /docs only: the key itself is checked before the route, see edge.py.
SHOWN_SCHEME = HTTPBearer(auto_error=False, description="An API key, `once_live_...`")


class Application(FastAPI):
    """The application, with a short way for its usual requests."""

    express: Express

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.express(scope, receive, send, super().__call__)


def create_app(settings: Settings) -> FastAPI:
    """The application over these settings. Raises ConfigError where they can't be served with."""
    state = State.of(settings)
    metrics.put(metrics.BUILD, version("onceonly-jobs"), value=1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await state.hints.start()
        state.streams.end_with_the_process()
        yield
        state.streams.end()
        await state.aclose()
        await run_in_threadpool(tracing.flush)

    app = Application(
        title="OnceOnly Jobs",
        version=version("onceonly-jobs"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        # Its spans and logs hold what requests hold; ours are in observed.py. Older versions of FastAPI ignore it.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.onceonly = state
    install(app)
    access_level = logging.INFO if settings.access_log else logging.DEBUG
    app.add_middleware(Observed, access_level=access_level)
    app.add_middleware(CommonHeaders)
    app.include_router(health.router)
    for router in (
        locks.router,
        ai.router,
        account.router,
        streams.router,
        events.router,
        governance.router,
        tools.router,
        unknown.router,
        dead.router,
        schedules.router,
        webhooks.router,
    ):
        app.include_router(
            router, prefix="/v1", dependencies=[Depends(SHOWN_SCHEME)], responses=problems(*EVERYWHERE)
        )
    app.express = Express(
        state,
        app.exception_handlers,
        {
            "/v1/check-lock": locks.quick_check,
            "/v1/ai/run": ai.quick_run,
        },
        access_level,
    )
    return app


def app_from_env() -> FastAPI:
    """The application over the environment's settings, for `uvicorn --factory`."""
    settings = Settings.load()
    configure_logging(settings.log_level, "api", settings.log_format, settings.secrets)
    if settings.otel:
        tracing.start("api")
    return create_app(settings)
