"""Pydantic models as arguments, which make the key, and as results, which every caller gets as models."""

import secrets
from decimal import Decimal

from pydantic import BaseModel

from onceonly_jobs import OnceOnly, idempotent, idempotent_ai

client = OnceOnly()


class Order(BaseModel):
    id: str
    amount: Decimal
    currency: str = "EUR"


class Invoice(BaseModel):
    number: str
    total: Decimal


@idempotent_ai(client, key_fn=lambda order: f"invoice:{order.id}", ttl=300, unwrap=True)
def make_invoice(order: Order) -> Invoice:
    print("Making the invoice")
    return Invoice(number="INV-1", total=order.amount + Decimal("2.40"))


# Without a key function the whole model is the key: equal models are equal calls, in every process.
@idempotent(client, ttl=3600)
def archive(order: Order) -> str:
    return "archived"


order = Order(id=secrets.token_hex(4), amount=Decimal("12.00"))
for attempt in ("First call", "Repeat"):
    invoice = make_invoice(order)
    print(f"{attempt}: {invoice!r}")

print(f"Archive: {archive(order)}")
print(f"An equal model: {archive(order.model_copy())}")
print(f"Another amount: {archive(order.model_copy(update={'amount': Decimal('11.00')}))}")
