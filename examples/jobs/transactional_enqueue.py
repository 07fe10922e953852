"""Enqueue in the transaction that stores the order: both are there, or neither."""

import os
import secrets

import sqlalchemy as sa

from onceonly_jobs import Jobs, OnceOnly
from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.errors import NotFound

jobs = Jobs.from_env()
# The app's own connection, to the same database. A temporary table stands for the app's own.
engine = sa.create_engine(sqlalchemy_url(os.environ["ONCEONLY_DATABASE_URL"]))
run = secrets.token_hex(4)


def buy(connection: sa.Connection, order: str, *, paid: bool) -> None:
    """Store the order and ask for its invoice. Raises ValueError, which takes both back."""
    with connection.begin():
        connection.execute(sa.text("INSERT INTO orders VALUES (:order)"), {"order": order})
        jobs.enqueue("echo", key=f"invoice:{order}", payload={"order": order}, connection=connection)
        if not paid:
            raise ValueError("the card was refused")


with engine.connect() as connection:
    with connection.begin():
        connection.execute(sa.text("CREATE TEMPORARY TABLE orders (id text PRIMARY KEY)"))

    try:
        buy(connection, f"{run}-A", paid=False)
    except ValueError as error:
        print(f"Order A: {error}")
    buy(connection, f"{run}-B", paid=True)
    print("Order B: bought")

    with connection.begin():
        stored = connection.execute(sa.text("SELECT count(*) FROM orders")).scalar_one()
    print(f"Orders stored: {stored}")

try:
    jobs.status(f"invoice:{run}-A")
except NotFound:
    print("Invoice A: was never asked for")
print(f"Invoice B: {OnceOnly().ai.wait(f'invoice:{run}-B').status}")

jobs.close()
