"""Clients that go on calling while the parts of a deployment are changed, and what they were told."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import httpx
from support.process_nodes import PATIENCE_S

THREADS = 3
PACE_S = 0.2
"""Between a thread's turns: the parts that start beside them need the processors too."""
PAUSE_S = 0.05
"""After a call without an answer, before it is repeated."""

Body = dict[str, Any]


class Load:
    """Threads that lock, lease, run and call tools, each under keys of its own, until the block is left.

    A call that got no answer, or 503, is repeated; any other that fails is kept in `wrong`.
    """

    def __init__(self, origins: Sequence[str], api_key: str) -> None:
        self.origins = list(origins)
        """Whom to call: may be changed at any time."""
        self.wrong: list[str] = []
        self.repeated: Counter[str] = Counter()
        self.runs: dict[str, str] = {}
        """Who accepted each, by key."""
        self.leases: list[str] = []
        self.locks: list[str] = []
        self.tools: list[str] = []
        self.slowest_s = 0.0
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._numbers = itertools.count(1)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._over.clear()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    @property
    def turns(self) -> int:
        """How often a thread has done everything once."""
        return len(self.tools)

    def _serve(self) -> None:
        try:
            with httpx.Client(headers=self._headers, timeout=30) as client:
                while not self._over.wait(PACE_S):
                    self._turn(client, next(self._numbers))
        except Exception as error:
            self.wrong.append(repr(error))

    def _turn(self, client: httpx.Client, number: int) -> None:
        lock, lease, run = f"lock:{number}", f"lease:{number}", f"work:{number}"
        self._expect(client, "/check-lock", {"key": lock, "ttl": 3600}, status="locked")
        self._expect(client, "/check-lock", {"key": lock, "ttl": 3600}, status="duplicate")
        self.locks.append(lock)
        taken = self._expect(client, "/ai/lease", {"key": lease, "ttl": 600}, status="acquired")
        held = {"key": lease, "lease_id": taken.get("lease_id")}
        self._expect(client, "/ai/extend", {**held, "ttl": 900}, ok=True)
        self._expect(client, "/ai/complete", {**held, "result": {"n": number}}, ok=True)
        self.leases.append(lease)
        for key in (run, f"again:{number}") if number % 10 == 0 else (run,):
            accepted = self._expect(client, "/ai/run", {"key": key, "ttl": 600}, status="acquired")
            self.runs[key] = accepted["origin"]
        call = {"agent_id": "agent", "tool": "mail", "args": {"n": number}, "spend_usd": 0.001}
        self._expect(client, "/ai/run", call, decision="executed")
        self.tools.append(str(number))

    def _expect(self, client: httpx.Client, path: str, body: Body, **expected: Any) -> Body:
        answer = self._asked(client, path, body)
        told: Body = answer.json()
        seen = {name: told.get(name) for name in expected}
        if answer.status_code != 200 or seen != expected:
            self.wrong.append(f"{path} {body}: {answer.status_code} {answer.text}")
        return {**told, "origin": f"http://{answer.url.netloc.decode()}"}

    def _asked(self, client: httpx.Client, path: str, body: Body) -> httpx.Response:
        """The answer; a repeat has the request id of the first."""
        headers = {"X-Request-Id": uuid.uuid4().hex}
        began = time.monotonic()
        for turn in itertools.count(random.randrange(2)):
            origins = self.origins
            try:
                answer = client.post(f"{origins[turn % len(origins)]}/v1{path}", json=body, headers=headers)
            except httpx.TransportError:
                self.repeated["no answer"] += 1
            else:
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                    return answer
                self.repeated["503"] += 1
            if time.monotonic() - began > PATIENCE_S:
                raise TimeoutError(f"{path} {body}")
            time.sleep(PAUSE_S)
        raise AssertionError("unreachable")
