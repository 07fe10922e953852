"""The torture's own jobs. Each tells the witness what it begins and ends, and misbehaves as its payload says."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from typing import Any
from urllib.parse import urlsplit

from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.jobs import Registry
from onceonly_jobs.worker.outcomes import Costed, Fail, Retry

WORK = "torture.work"
GOVERNED = "torture.governed"
TICK = "torture.tick"
POISON = "torture.poison"
NAMES = (WORK, GOVERNED, TICK, POISON)
POISON_CRASHES = 2

ATTEMPTS = 1000
"""The nemesis kills at random, and no run of the torture is to fail for that."""
STEP_S = 0.1


def registry(queue: str) -> Registry:
    """The jobs, on a queue that nobody else serves."""
    jobs = Registry()
    for name in NAMES:
        jobs.job(
            name,
            queue=queue,
            max_attempts=ATTEMPTS,
            max_crashes=POISON_CRASHES if name == POISON else ATTEMPTS,
            retry_base_s=0.2,
            retry_max_s=1,
        )(work)
    return jobs


def work(ctx: JobContext) -> dict[str, Any] | Costed:
    """Leaves its traces with the witness; `payload.manner` says how it behaves in between."""
    payload = ctx.payload
    witness, manner = str(payload["witness"]), payload.get("manner", "quick")
    said = {
        "token": ctx.fencing_token,
        "attempt": ctx.attempt,
        "job": ctx.job,
        "agent_id": ctx.agent_id,
        "idempotency_key": ctx.idempotency_key("effect"),
        "worker": os.getppid(),
    }
    seq = tell(witness, "start", ctx.key, said)
    if manner == "poison" or (manner == "crash" and ctx.attempt == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if manner == "flaky" and ctx.attempt <= 2:
        raise Retry(0.1, "not yet")
    if manner == "refuse":
        raise Fail("refused_by_handler", "as its payload asks")
    until = time.monotonic() + float(payload.get("seconds", 0))
    while time.monotonic() < until:
        ctx.check()
        time.sleep(STEP_S)
    tell(witness, "end", ctx.key, said)
    result = {"seq": seq, "token": ctx.fencing_token, "attempt": ctx.attempt}
    cost_usd = payload.get("cost_usd")
    return result if cost_usd is None else Costed(result, float(cost_usd))


def tell(witness: str, kind: str, key: str, data: dict[str, Any]) -> int:
    """The number under which the witness has it on its disk."""
    return int(ask(witness, "POST", "/effect", {"kind": kind, "key": key, "data": data})["seq"])


def seen(witness: str, idempotency_key: str) -> int:
    """How often the witness was called with this key."""
    return int(ask(witness, "GET", f"/seen/{idempotency_key}")["seen"])


def ask(witness: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(witness).netloc, timeout=10)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()
