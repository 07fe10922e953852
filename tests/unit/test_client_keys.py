"""Keys derived from arguments: equal calls have equal keys, in every process and every release."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onceonly.decorators import _generate_key as published_key
from pydantic import BaseModel

from onceonly_jobs.client.keys import derived_key, stable


class Order(BaseModel):
    id: int
    tags: set[str] = set()


@dataclasses.dataclass
class Item:
    sku: str
    price: Decimal


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    LARGE = "l"


class Level(IntEnum):
    HIGH = 3


def charge(order: Any, currency: str = "EUR", *rest: Any, note: Any = None, **more: Any) -> None: ...


def key(*args: Any, **kwargs: Any) -> str:
    return derived_key(charge, args, kwargs, key_version="v1", key_id="billing.charge")


def test_ways_of_writing_one_call_have_one_key() -> None:
    assert key(1) == key(order=1) == key(1, "EUR") == key(1, currency="EUR") == key(1, note=None)
    assert key(1, "USD") == key(1, currency="USD") == key(currency="USD", order=1)
    assert key(1, a=1, b=2) == key(1, b=2, a=1)


def test_different_calls_have_different_keys() -> None:
    calls = [
        key(1), key(2), key("1"), key(1.0), key(True), key(None), key([1]), key({"a": 1}), key(1, "USD"),
        key(1, "EUR", 2), key(1, note=1), key(1, extra=1), key(Decimal(1)), key(b"1"), key({1}),
        key(date(2026, 1, 1)), key(datetime(2026, 1, 1)), key("2026-01-01"), key(Colour.RED), key("red"),
    ]  # fmt: skip
    assert len(set(calls)) == len(calls)
    assert derived_key(charge, (1,), {}, key_version="v2", key_id="billing.charge") != key(1)
    assert derived_key(charge, (1,), {}, key_version="v1", key_id=None) != key(1)


def test_equal_values_have_one_form() -> None:
    east = timezone(timedelta(hours=2))
    assert key(datetime(2026, 1, 1, 12, tzinfo=UTC)) == key(datetime(2026, 1, 1, 14, tzinfo=east))
    assert key(Decimal("1.10")) == key(Decimal("1.1"))
    assert key(Decimal("0.00")) == key(Decimal("-0"))
    assert key(Decimal("100")) == key(Decimal("1E+2"))
    assert key(Decimal("1." + "0" * 40 + "1")) != key(Decimal(1)), "however long"
    assert key((1, 2)) == key([1, 2])
    assert key(MappingProxyType({"a": 1})) == key({"a": 1})
    assert key(frozenset("ab")) == key({"b", "a"})
    assert key(bytearray(b"x")) == key(b"x")
    assert key(Size.LARGE) == key("l")
    assert key(Level.HIGH) == key(3)


SAMPLES: list[tuple[Any, Any]] = [
    (Order(id=7, tags={"b", "a"}), {"id": 7, "tags": {"$set": ["a", "b"]}}),
    (Item("x", Decimal("9.90")), {"sku": "x", "price": {"$decimal": "99e-1"}}),
    (Colour.RED, {"$enum": "red"}),
    (datetime(2026, 1, 1, tzinfo=UTC), {"$datetime": "2026-01-01T00:00:00+00:00"}),
    (date(2026, 1, 1), {"$date": "2026-01-01"}),
    (time(8, 30), {"$time": "08:30:00"}),
    (timedelta(days=1, seconds=2), {"$timedelta": [1, 2, 0]}),
    (UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
    (b"\x00\xff", {"$bytes": "00ff"}),
    (PurePosixPath("/a/b"), {"$path": "/a/b"}),
    ({"b": (1, 2.5), 1: None}, {"b": [1, 2.5], "1": None}),
]


@pytest.mark.parametrize(("value", "form"), SAMPLES, ids=lambda part: type(part).__name__)
def test_forms_are_fixed(value: Any, form: Any) -> None:
    assert stable(value) == form


def test_keys_are_fixed() -> None:
    """Written down once: a release in which one differs lets done work be done again."""
    assert key(1) == "785a2b3faa9547f5080728550756cd2307270e49ed7efc851c27c0f60cc267bb"
    assert (
        key(Order(id=7, tags={"a", "b"}), "USD", note=[b"x", {"ż": None}])
        == "b1f3e0a2abc6e762527bf4070bb1c3e2bc24cb26521bf4fb8f2c354d98d9d116"
    )


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 1,
        float("nan"),
        float("inf"),
        Decimal("NaN"),
        {(1, 2): 1},
        {"1": 1, 1: 2},
        [object()],
        Order,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_stable_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"billing\.charge: .*; pass key_func="):
        key(value)


def test_what_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="holds itself"):
        key(loop)


def test_arguments_that_do_not_fit_are_told_so() -> None:
    with pytest.raises(TypeError, match="missing a required argument"):
        key()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def send(to: Any, subject: Any, /, *, urgent: Any = "no") -> None: ...


@given(plain, plain, plain)
def test_positional_arguments_of_plain_json_have_the_published_key(
    to: Any, subject: Any, urgent: Any
) -> None:
    """Processes with the published SDK and with ours can work side by side."""
    named = {} if urgent == "no" else {"urgent": urgent}
    ours = derived_key(send, (to, subject), named, key_version="v1", key_id=None)
    theirs = published_key(send, (to, subject), named, key_version="v1", key_id=None)
    assert ours == theirs


def test_other_processes_make_the_same_keys() -> None:
    """Sets of text are in another order in each: hashes of text are seeded."""
    code = (
        "from onceonly_jobs.client.keys import derived_key\n"
        "def f(x): ...\n"
        "print(derived_key(f, ({'a', 'b', 'c', 'd', 'e'},), {}, key_version='v1', key_id='f'))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(seen) == 1
