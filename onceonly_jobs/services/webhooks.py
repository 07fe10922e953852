"""A namespace's webhook: set it, look at it, and deliver what is in the outbox."""

from __future__ import annotations

import secrets

from onceonly_jobs.contracts.webhooks import WebhookRequest
from onceonly_jobs.errors import SecretUnreadable, Unsupported, WebhookNotFound
from onceonly_jobs.services.tools import SHOWN_CHARACTERS
from onceonly_jobs.store import webhooks as store
from onceonly_jobs.store.statement import Operation, autocommit
from onceonly_jobs.store.vault import Vault
from onceonly_jobs.store.webhooks import Delivery, Notification, Webhook

NO_KEY = "ONCEONLY_SECRET_KEY is not set on this server: a webhook's secret is only kept encrypted with it"


def _place(tenant_id: str, secret_id: str) -> tuple[str, ...]:
    """Where a secret belongs: copied into any other row, it can't be read."""
    return "webhook", tenant_id, secret_id


def secret_of(delivery: Delivery, vault: Vault | None) -> str:
    """What the notification is signed with. Raises SecretUnreadable."""
    if vault is None:
        raise SecretUnreadable("ONCEONLY_SECRET_KEY is not set")
    return vault.open(delivery.secret_sealed, *_place(delivery.tenant_id, delivery.secret_id))


def put(
    tenant_id: str, actor: str, request: WebhookRequest, vault: Vault | None
) -> Operation[Webhook | None]:
    """Set the webhook; None for a first one without a secret. Raises Unsupported where a secret can't be kept."""
    known = yield from store.hold(tenant_id)
    if request.secret is None and known is None:
        return None
    if request.secret is None and known is not None:
        secret_id, mask, sealed = known.secret_id, known.secret_mask, known.secret_sealed
    else:
        secret_id, mask, sealed = _new_secret(tenant_id, request.secret or "", vault)
    yield from store.put(
        tenant_id, url=request.url, secret_id=secret_id, secret_mask=mask, secret_sealed=sealed, actor=actor
    )
    return (yield from store.find(tenant_id))


def _new_secret(tenant_id: str, secret: str, vault: Vault | None) -> tuple[str, str, str]:
    if vault is None:
        raise Unsupported("webhooks", NO_KEY)
    secret_id = f"sec_{secrets.token_hex(8)}"
    sealed = vault.seal(secret, *_place(tenant_id, secret_id))
    return secret_id, f"***{secret[-SHOWN_CHARACTERS:]}", sealed


@autocommit
def get(tenant_id: str) -> Operation[Webhook]:
    """Raises WebhookNotFound."""
    webhook = yield from store.find(tenant_id)
    if webhook is None:
        raise WebhookNotFound
    return webhook


@autocommit
def delete(tenant_id: str, actor: str) -> Operation[str]:
    """Remove the webhook, and give up what was not delivered. Gives its URL. Raises WebhookNotFound."""
    url = yield from store.delete(tenant_id, actor)
    if url is None:
        raise WebhookNotFound
    return url


@autocommit
def notifications(
    tenant_id: str, state: str | None, limit: int, offset: int
) -> Operation[list[Notification]]:
    """A page of the namespace's notifications, latest first."""
    return (yield from store.notifications(tenant_id, state, limit, offset))


@autocommit
def try_out(tenant_id: str, actor: str) -> Operation[Notification]:
    """Send a notification that says nothing. Raises WebhookNotFound."""
    made = yield from store.try_out(tenant_id, actor)
    if made is None:
        raise WebhookNotFound
    return made


@autocommit
def retry(tenant_id: str, message_id: str | None = None) -> Operation[int]:
    """Try one dead notification again, or all of them; gives how many."""
    return (yield from store.retry(tenant_id, message_id))


@autocommit
def take(batch: int, each: int, lease_s: float) -> Operation[list[Delivery]]:
    """Due notifications, for this process to deliver within lease_s seconds."""
    return (yield from store.take(batch, each, lease_s))


@autocommit
def record(delivery: Delivery, status: int | None, error: str | None) -> Operation[None]:
    """What became of a delivery; error is None when it was taken."""
    if error is None:
        yield from store.delivered(delivery, status or 0)
    else:
        yield from store.failed(delivery, status, error)


@autocommit
def forget(batch: int) -> Operation[int]:
    """Remove old notifications; gives how many."""
    return (yield from store.forget(batch))
