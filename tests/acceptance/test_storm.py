"""32 threads in 4 client processes ask 2 API processes for the same 100 keys: each key is won exactly once."""

from __future__ import annotations

import os
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from support.sdk_parts import api
from support.sdk_tenants import Tenant
from support.storm_clients import Answer, Kind, Storm, break_loose

from onceonly_jobs.local.subprocess_system import LocalSystem

KEYS = int(os.environ.get("ONCEONLY_TEST_STORM_KEYS", "30"))
SEED_VARIABLE = "ONCEONLY_TEST_SEED"
WINNING = {"check_lock": "locked", "lease": "acquired", "run": "acquired"}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def base_urls(system: LocalSystem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The system's own API process and another one beside it."""
    with api(system.variables, tmp_path_factory.mktemp("second-api")) as second:
        yield system.base_url, second


@pytest.fixture
def shuffled(key: str) -> tuple[str, ...]:
    """The keys, in an order that the printed seed repeats."""
    seed = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
    print(f"order of the keys: {SEED_VARIABLE}={seed}")
    keys = [f"{key}:{number}" for number in range(KEYS)]
    random.Random(seed).shuffle(keys)
    return tuple(keys)


def strike(kind: Kind, base_urls: tuple[str, str], tenant: Tenant, keys: tuple[str, ...]) -> list[Answer]:
    """The storm's answers, after seeing that everybody asked for everything and each key was won once."""
    storm = Storm(kind, base_urls, tenant.api_key, keys)
    answers = break_loose(storm)
    check(answers, keys, storm.threads, WINNING[kind])
    winners = [answer for answer in answers if answer.status == WINNING[kind]]
    assert {winner.base_url for winner in winners} == set(base_urls), "the two API processes did not compete"
    assert len({winner.thread // storm.threads_per_process for winner in winners}) > 1, "nor did the clients"
    return answers


def check(answers: list[Answer], keys: Iterable[str], threads: int, winning: str) -> None:
    """Each key was asked for once by each thread, and won exactly once."""
    by_key: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_key[answer.key].append(answer)
    assert set(by_key) == set(keys)
    for key, told in by_key.items():
        assert sorted(answer.thread for answer in told) == list(range(threads)), key
        won = [answer for answer in told if answer.status == winning]
        assert len(won) == 1, f"{key} was won {len(won)} times: {Counter(answer.status for answer in told)}"


def usage_of(base_url: str, tenant: Tenant) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {tenant.api_key}"}
    answer = httpx.get(f"{base_url}/usage/all", headers=headers, timeout=30).raise_for_status()
    usage: dict[str, Any] = answer.json()
    return usage


def test_each_lock_is_won_once(base_urls: tuple[str, str], tenant: Tenant, shuffled: tuple[str, ...]) -> None:
    answers = strike("check_lock", base_urls, tenant, shuffled)
    assert Counter(answer.status for answer in answers) == {"locked": KEYS, "duplicate": 31 * KEYS}
    for base_url in base_urls:
        assert usage_of(base_url, tenant)["make"] == {
            "usage": 31 * KEYS,
            "limit": 2_000_000,
            "requests_total_month": len(answers),
            "blocked_total_month": 0,
            "charged_total_month": 0,
            "polling_total_month": 0,
        }


def test_each_lease_is_won_once(
    base_urls: tuple[str, str], tenant: Tenant, shuffled: tuple[str, ...]
) -> None:
    answers = strike("lease", base_urls, tenant, shuffled)
    assert Counter(answer.status for answer in answers) == {"acquired": KEYS, "polling": 31 * KEYS}
    assert_charged_once(answers)
    for base_url in base_urls:
        assert usage_of(base_url, tenant)["ai"] == ai_usage(answers)


def test_each_run_is_executed_once(
    base_urls: tuple[str, str], tenant: Tenant, shuffled: tuple[str, ...]
) -> None:
    answers = strike("run", base_urls, tenant, shuffled)
    assert {answer.status for answer in answers} <= {"acquired", "polling", "completed"}
    assert_charged_once(answers)
    headers = {"Authorization": f"Bearer {tenant.api_key}"}
    with httpx.Client(base_url=base_urls[1], headers=headers, timeout=40) as client:
        for key in shuffled:
            result = client.get("/ai/result", params={"key": key, "wait": 30}).raise_for_status().json()
            assert (result["ok"], result["status"]) == (True, "completed"), result
            timeline = client.get(f"/runs/{key}").raise_for_status().json()
            seen = Counter(event["type"] for event in timeline["events"])
            assert (seen["run_started"], seen["run_finished"]) == (1, 1), timeline
    for base_url in base_urls:
        assert usage_of(base_url, tenant)["ai"] == ai_usage(answers)


def assert_charged_once(answers: list[Answer]) -> None:
    """Only the winner of a key is charged, and only the winner gets a lease id."""
    for answer in answers:
        won = answer.status == "acquired"
        assert (answer.charged, answer.lease_id is not None) == (int(won), won), answer
    lease_ids = [answer.lease_id for answer in answers if answer.lease_id]
    assert len(set(lease_ids)) == KEYS


def ai_usage(answers: list[Answer]) -> dict[str, int]:
    """The counters that these answers make, to the unit."""
    seen = Counter(answer.status for answer in answers)
    return {
        "usage": KEYS,
        "limit": 10_000_000,
        "requests_total_month": len(answers),
        "blocked_total_month": 0,
        "charged_total_month": sum(answer.charged for answer in answers),
        "polling_total_month": seen["polling"],
    }


def test_the_check_sees_a_key_won_twice_or_never() -> None:
    def told(*statuses: str) -> list[Answer]:
        return [Answer(number, "", "k", status, 0, None) for number, status in enumerate(statuses)]

    check(told("duplicate", "locked"), ["k"], 2, "locked")
    for statuses in (("locked", "locked"), ("duplicate", "duplicate"), ("locked",)):
        with pytest.raises(AssertionError):
            check(told(*statuses), ["k"], 2, "locked")
    with pytest.raises(AssertionError):
        check(told("locked", "duplicate"), ["k", "l"], 2, "locked")
