"""One API process under 32 connections, beside the constant endpoint: locks, duplicates, and runs accepted."""

from __future__ import annotations

import psutil

from benchmarks import load
from benchmarks.cpu import metered, this_process
from benchmarks.figures import Case, Measured
from benchmarks.load import Target
from benchmarks.product import Api, Product

WARM_S = 0.7
RUNS = "SELECT count(*) FROM runs WHERE key LIKE %s AND owner = 'server'"


def lock_target(api: Api, api_key: str, prefix: str) -> Target:
    """check-lock of new keys."""
    template = b'{"key":"' + prefix.encode() + b':%08d","ttl":3600}'
    return Target(api.port, "/v1/check-lock", api_key, lambda n: template % n, b'"status":"locked"')


def duplicate_target(api: Api, api_key: str, prefix: str) -> Target:
    """check-lock of a hundred keys that are locked already."""
    template = b'{"key":"' + prefix.encode() + b':%08d","ttl":3600}'
    return Target(
        api.port, "/v1/check-lock", api_key, lambda n: template % (n % 100), b'"status":"duplicate"'
    )


def run_target(api: Api, api_key: str, prefix: str, first: int = 0) -> Target:
    """ai/run of a job that does nothing."""
    template = b'{"key":"' + prefix.encode() + b':%08d","metadata":{"task":"noop","payload":{"n":%d}}}'
    return Target(
        api.port, "/v1/ai/run", api_key, lambda n: template % (first + n, first + n), b'"status":"acquired"'
    )


def measure(product: Product, floor: Api, api: Api, prefix: str, seconds: float) -> Measured:
    """Everything of this that leaves no work behind."""
    key = product.api_key
    measured = {"http: floor": _under_load(product, floor, lock_target(floor, key, "floor"), seconds)[0]}
    measured["http: check-lock, new keys"] = locked(product, api, f"{prefix}-new", seconds)
    load.run(lock_target(api, key, f"{prefix}-dup"), WARM_S, 100).case()
    duplicates = duplicate_target(api, key, f"{prefix}-dup")
    measured["http: check-lock, duplicates"] = _under_load(product, api, duplicates, seconds)[0]
    return measured


def accept(
    product: Product, api: Api, prefix: str, seconds: float, limit: int, first: int = 0
) -> tuple[Case, int]:
    """Runs accepted and stored, and how many; exactly those that were acknowledged are stored."""
    before = product.count(RUNS, f"{prefix}:%")
    target = run_target(api, product.api_key, prefix, first)
    case, asked = _under_load(product, api, target, seconds, limit)
    stored = product.count(RUNS, f"{prefix}:%") - before
    if stored != asked:
        raise RuntimeError(f"{asked} runs were acknowledged, and {stored} are stored")
    return case, asked


def locked(product: Product, api: Api, prefix: str, seconds: float) -> Case:
    """Locks taken; exactly those that were acknowledged are stored."""
    case, asked = _under_load(product, api, lock_target(api, product.api_key, prefix), seconds)
    stored = product.count("SELECT count(*) FROM locks WHERE key LIKE %s", f"{prefix}:%")
    if stored != asked:
        raise RuntimeError(f"{asked} locks were acknowledged, and {stored} are stored")
    return case


def warm(product: Product, floor: Api, api: Api, prefix: str) -> None:
    """Connections, caches and prepared statements."""
    load.run(lock_target(floor, product.api_key, prefix), WARM_S).case()
    load.run(lock_target(api, product.api_key, prefix), WARM_S).case()


def _under_load(
    product: Product, api: Api, target: Target, seconds: float, limit: int | None = None
) -> tuple[Case, int]:
    """The figures, with what a request costs and how many of the machine's cores were busy, and how many it were."""
    psutil.cpu_percent()
    meter = metered(product.servers, api.part.tree, load_us=this_process)
    done = load.run(target, seconds, limit)
    costs = meter.each_us(done.asked)
    busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
    return done.case() | costs | {"cores_busy": busy}, done.asked
