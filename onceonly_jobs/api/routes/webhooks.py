"""/me/webhook: where this account's notifications go, and what became of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from onceonly_jobs.api.edge import Asking, DiscreetRoute, Held
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.contracts.fields import Text, utc_iso
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.contracts.tools import DeletedAnswer
from onceonly_jobs.contracts.webhooks import (
    NotificationItem,
    NotificationState,
    RetryAnswer,
    WebhookAnswer,
    WebhookRequest,
)
from onceonly_jobs.services import tools, webhooks
from onceonly_jobs.store.webhooks import Notification, Webhook

router = APIRouter(route_class=DiscreetRoute, prefix="/me/webhook", tags=["account"])


@router.post("", response_model=WebhookAnswer, summary="Set the webhook", responses=problems(400, 413))
async def put_webhook(body: WebhookRequest, state: Held, caller: Asking) -> JSONResponse:
    """Notifications of failures go there from now on, signed with the secret, as `/me/notifications` says."""
    vault = tools.vault_of(state.settings)
    webhook = await state.db.arun(webhooks.put, caller.tenant_id, caller.key_id, body, vault)
    if webhook is None:
        raise invalid(("body", "secret"), "Field required: a new webhook needs a secret", "missing")
    return JSONResponse(_shown(webhook))


@router.get("", response_model=WebhookAnswer, summary="The webhook", responses=problems(404))
async def get_webhook(state: Held, caller: Asking) -> JSONResponse:
    """Where notifications go, and how many are on their way or were given up. Never the secret."""
    return JSONResponse(_shown(await state.db.arun(webhooks.get, caller.tenant_id)))


@router.delete("", response_model=DeletedAnswer, summary="Remove the webhook", responses=problems(404))
async def delete_webhook(state: Held, caller: Asking) -> JSONResponse:
    """Removes it with its secret. What was not delivered yet is given up."""
    url = await state.db.arun(webhooks.delete, caller.tenant_id, caller.key_id)
    return JSONResponse({"ok": True, "deleted": url})


@router.get("/deliveries", response_model=list[NotificationItem], summary="Notifications")
async def deliveries(
    state: Held,
    caller: Asking,
    wanted: Annotated[NotificationState | None, Query(alias="state")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> JSONResponse:
    """What was sent or is to be sent, latest first; kept for 32 days."""
    found = await state.db.arun(webhooks.notifications, caller.tenant_id, wanted, limit, offset)
    return JSONResponse([_item(notification) for notification in found])


@router.post("/test", response_model=NotificationItem, summary="Try the webhook", responses=problems(404))
async def try_out(state: Held, caller: Asking) -> JSONResponse:
    """Sends a notification of the type `webhook.test`; `deliveries` shows what becomes of it."""
    return JSONResponse(_item(await state.db.arun(webhooks.try_out, caller.tenant_id, caller.key_id)))


@router.post("/retry", response_model=RetryAnswer, summary="Try dead notifications again")
async def retry(
    state: Held,
    caller: Asking,
    message_id: Annotated[
        Text | None, Query(max_length=64, description="Only this one; else all of them.")
    ] = None,
) -> JSONResponse:
    """They keep their ids: a receiver that has seen one knows it again."""
    retried = await state.db.arun(webhooks.retry, caller.tenant_id, message_id)
    return JSONResponse({"ok": True, "retried": retried})


def _shown(webhook: Webhook) -> dict[str, Any]:
    return {
        "url": webhook.url,
        "has_secret": True,
        "secret_id": webhook.secret_id,
        "secret_mask": webhook.secret_mask,
        "created_at": utc_iso(webhook.created_at),
        "updated_at": utc_iso(webhook.updated_at),
        "pending": webhook.pending,
        "dead": webhook.dead,
    }


def _item(notification: Notification) -> dict[str, Any]:
    plain = ("message_id", "type", "data", "state", "attempts", "status", "error")
    return {name: getattr(notification, name) for name in plain} | {
        name: utc_iso(getattr(notification, name)) for name in ("at", "due_at", "delivered_at")
    }
