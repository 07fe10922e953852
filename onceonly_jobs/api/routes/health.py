"""/health and /ready, for whoever runs this process."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from onceonly_jobs.api.edge import Held
from onceonly_jobs.services import health
from onceonly_jobs.store import migrations

router = APIRouter(tags=["health"])


@router.get("/health", summary="Is the process alive?")
async def live() -> JSONResponse:
    """Asks nobody else: a restart helps only if this does not answer."""
    return JSONResponse({"ok": True})


@router.get("/ready", summary="Can it serve?")
async def ready(state: Held) -> JSONResponse:
    """200 when the database answers and its schema is this code's. A broker that is away does not count:
    what is accepted meanwhile is published later."""
    revision, wanted = await state.db.arun(health.schema_revision), migrations.head()
    ok = revision == wanted
    body = {"ok": ok, "database": "ok", "schema": revision, "expected_schema": wanted}
    return JSONResponse(body, status_code=200 if ok else 503)
