"""/me/webhook: where notifications go, and what became of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from onceonly_jobs.contracts.fields import Wire, example
from onceonly_jobs.contracts.tools import HttpUrl, ToolSecret

NotificationState = Literal["pending", "delivered", "dead"]


class WebhookRequest(Wire):
    """Where to send notifications to. Absent, the secret stays as it is; a first webhook needs one."""

    model_config = example(
        url="https://hooks.example.com/onceonly",
        secret="a-long-shared-secret",  # noqa: S106 - an example
    )

    url: HttpUrl
    secret: Annotated[ToolSecret | None, Field(repr=False)] = None


class WebhookAnswer(BaseModel):
    """A webhook without its secret."""

    url: str
    has_secret: Literal[True]
    secret_id: str
    secret_mask: str
    created_at: str
    updated_at: str
    pending: Annotated[int, Field(description="Notifications on their way.")]
    dead: Annotated[int, Field(description="Notifications that were given up.")]


class NotificationItem(BaseModel):
    message_id: Annotated[str, Field(description="The `webhook-id` of each attempt to deliver it.")]
    type: str
    at: str
    data: dict[str, Any]
    state: NotificationState
    attempts: int
    due_at: str | None
    delivered_at: str | None
    status: Annotated[int | None, Field(description="HTTP status of the last answer.")]
    error: str | None


class RetryAnswer(BaseModel):
    ok: Literal[True]
    retried: int
