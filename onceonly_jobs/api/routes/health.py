"""/health, /ready and /metrics, for whoever runs this process."""

from __future__ import annotations

from ipaddress import ip_address

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onceonly_jobs import metrics
from onceonly_jobs.api.edge import Held
from onceonly_jobs.errors import MissingToken
from onceonly_jobs.services import health
from onceonly_jobs.store import revisions

router = APIRouter(tags=["health"])


@router.get("/health", summary="Is the process alive?")
async def live() -> JSONResponse:
    """Asks nobody else: a restart helps only if this does not answer."""
    return JSONResponse({"ok": True})


@router.get("/ready", summary="Can it serve?")
async def ready(state: Held) -> JSONResponse:
    """200 when the database answers and its schema is this code's, or one that a newer version has expanded. A
    broker that is away does not count: what is accepted meanwhile is published later."""
    revision, wanted = await state.db.arun(health.schema_revision), revisions.head()
    ok = revisions.serves(revision)
    body = {"ok": ok, "database": "ok", "schema": revision, "expected_schema": wanted}
    return JSONResponse(body, status_code=200 if ok else 503)


@router.get("/metrics", include_in_schema=False)
async def figures(request: Request, state: Held) -> Response:
    """For Prometheus: with the token, or without one only to this machine. Nobody else learns that it is here."""
    token = state.settings.metrics_token
    if token is None and not _from_here(request):
        raise HTTPException(404)
    if token is not None and not metrics.permitted(request.headers.get("authorization", ""), token):
        raise MissingToken
    return Response(await run_in_threadpool(metrics.exposition), media_type=metrics.CONTENT_TYPE)


def _from_here(request: Request) -> bool:
    """Whether the asker is on this machine, and not behind a proxy that is."""
    forwarded = {"forwarded", "x-forwarded-for", "x-real-ip"} & set(request.headers.keys())
    try:
        return not forwarded and request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        return False
