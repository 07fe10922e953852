"""/tools: the registry of tools."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from onceonly_jobs.api.edge import Asking, DiscreetRoute, Held
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.contracts.tools import (
    GLOBAL,
    DeletedAnswer,
    ScopeId,
    ToggleRequest,
    ToolAnswer,
    ToolName,
    ToolRequest,
)
from onceonly_jobs.services import tools
from onceonly_jobs.store.tools import Tool

router = APIRouter(route_class=DiscreetRoute, tags=["governance"])

Scope = Annotated[ScopeId, Query()]


@router.post(
    "/tools", response_model=ToolAnswer, summary="Register or change a tool", responses=problems(400, 413)
)
async def put_tool(body: ToolRequest, state: Held, caller: Asking) -> JSONResponse:
    """Upsert by (`name`, `scope_id`). What is absent stays as it is; another secret gets another `secret_id`."""
    tool = await state.db.arun(tools.put, caller, body, tools.vault_of(state.settings))
    if tool is None:
        raise invalid(("body", "auth", "secret"), "Field required: a new tool needs a secret", "missing")
    return JSONResponse(_shown(tool))


@router.get("/tools", response_model=list[ToolAnswer], summary="The tools of a scope")
async def list_tools(state: Held, caller: Asking, scope_id: Scope = GLOBAL) -> JSONResponse:
    """Those of exactly this scope, by name."""
    return JSONResponse([_shown(tool) for tool in await state.db.arun(tools.list_tools, caller, scope_id)])


@router.get("/tools/{name}", response_model=ToolAnswer, summary="One tool", responses=problems(404))
async def get_tool(name: ToolName, state: Held, caller: Asking, scope_id: Scope = GLOBAL) -> JSONResponse:
    """The tool of exactly this scope; never its secret."""
    return JSONResponse(_shown(await state.db.arun(tools.get, caller, scope_id, name)))


@router.post(
    "/tools/{name}/toggle",
    response_model=ToolAnswer,
    summary="Switch a tool on or off",
    responses=problems(404, 413),
)
async def toggle_tool(
    name: ToolName, body: ToggleRequest, state: Held, caller: Asking, scope_id: Scope = GLOBAL
) -> JSONResponse:
    """A tool that is off stays registered, and is not called."""
    return JSONResponse(_shown(await state.db.arun(tools.toggle, caller, scope_id, name, body.enabled)))


@router.delete(
    "/tools/{name}", response_model=DeletedAnswer, summary="Remove a tool", responses=problems(404)
)
async def delete_tool(name: ToolName, state: Held, caller: Asking, scope_id: Scope = GLOBAL) -> JSONResponse:
    """Removes the tool with its secret, and frees its place in the plan."""
    await state.db.arun(tools.delete, caller, scope_id, name)
    return JSONResponse({"ok": True, "deleted": name})


def _shown(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "scope_id": tool.scope_id,
        "url": tool.url,
        "auth_type": tool.auth_type,
        "timeout_ms": tool.timeout_ms,
        "max_retries": tool.max_retries,
        "enabled": tool.enabled,
        "description": tool.description,
        "effect": tool.effect.value,
        "confirm_url": tool.confirm_url,
        "dedup_ttl_s": tool.dedup_ttl_s,
        "has_secret": True,
        "secret_id": tool.secret.id,
        "secret_mask": tool.secret.mask,
    }
