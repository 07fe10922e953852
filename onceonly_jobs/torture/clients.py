"""Many clients that ask at random, seeded, and write down what they asked and were told.

    python -m onceonly_jobs.torture.clients ASSIGNMENT.json

Ends on SIGTERM, once every request under way has its answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import httpx

from onceonly_jobs.torture.history import Op, Outcome
from onceonly_jobs.torture.jobs import GOVERNED, POISON, WORK

TRIES = 4
TIMEOUT_S = 8.0
TTL_S = 10
"""The shortest that a lock or a lease can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a process of clients is to do."""

    base_urls: list[str]
    api_key: str
    witness: str
    seed: int
    clients: int
    pause_s: float
    history: str
    spenders: int
    """How many agents with a small budget there are."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


class World:
    """What the clients share: the history, and what they hold."""

    def __init__(self, assignment: Assignment, history: TextIO) -> None:
        self.given = assignment
        self.leases: list[tuple[str, str]] = []
        self.runs: list[tuple[str, str | None]] = []
        self.stopping = asyncio.Event()
        self.numbers = 0
        self._history = history
        self._taken: dict[str, int] = {}
        headers = {"Authorization": f"Bearer {assignment.api_key}"}
        limits = httpx.Limits(max_connections=200)
        self.http = httpx.AsyncClient(headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False)

    def number(self, kind: str, rng: random.Random, per_number: int = 4) -> int:
        """One of the latest numbers of a kind: each is picked by several clients, then left behind."""
        taken = self._taken[kind] = self._taken.get(kind, 0) + 1
        return max(0, taken // per_number - rng.randrange(3))

    def write(self, op: Op) -> None:
        self._history.write(op.line() + "\n")
        self._history.flush()


class Client:
    """One client, whose choices come from the seed and its number alone."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.rng = random.Random(f"{world.given.seed}/{number}")  # noqa: S311 (a repeatable choice, no secret)

    async def live(self) -> None:
        """Ask until the world stops."""
        while not self.world.stopping.is_set():
            await self.act()
            await asyncio.sleep(self.rng.uniform(0, 2 * self.world.given.pause_s))

    async def act(self) -> None:
        """One operation, or a few that belong together."""
        acts = {
            self.lock: 20,
            self.lease: 12,
            self.finish: 10,
            self.run: 16,
            self.result: 12,
            self.cancel: 3,
            self.tool: 16,
            self.spend: 8,
            self.governed: 8,
        }
        act = self.rng.choices(list(acts), list(acts.values()))[0]
        await act()

    async def lock(self) -> None:
        key = f"lock:{self.world.number('lock', self.rng, 12)}"
        await self.post("lock", key, "/check-lock", {"key": key, "ttl": TTL_S})

    async def lease(self) -> None:
        key = f"lease:{self.world.number('lease', self.rng)}"
        op = await self.post("lease", key, "/ai/lease", {"key": key, "ttl": TTL_S})
        if op.ok and op.answer["status"] == "acquired":
            self.world.leases.append((key, op.answer["lease_id"]))

    async def finish(self) -> None:
        """What a holder does, the sooner or later: some only after their lease is over, and taken over."""
        if not self.world.leases:
            return
        place = self.rng.choice([0, len(self.world.leases) - 1, self.rng.randrange(len(self.world.leases))])
        key, lease_id = self.world.leases.pop(place)
        body: dict[str, Any] = {"key": key, "lease_id": lease_id}
        how = self.rng.choices(["complete", "fail", "cancel", "extend"], [6, 2, 2, 3])[0]
        if how == "complete":
            body["result"] = {"by": uuid.UUID(int=self.rng.getrandbits(128)).hex}
        elif how == "fail":
            body["error_code"] = f"code-{self.rng.randrange(1_000_000)}"
        elif how == "extend":
            body["ttl"] = TTL_S
            self.world.leases.append((key, lease_id))
        await self.post(how, key, f"/ai/{how}", body)

    async def run(self) -> None:
        key = f"run:{self.world.number('run', self.rng)}"
        payload = work_of(key)
        await self.run_key(key, POISON if payload["manner"] == "poison" else WORK, payload)

    async def governed(self) -> None:
        """A run under an agent: one whose switch is thrown, one whose policy changes, one with a budget."""
        number = self.world.number("governed", self.rng)
        agent = ("switched", "policed", self.spender())[number % 3]
        key = f"governed:{agent}:{number}"
        await self.run_key(
            key,
            GOVERNED,
            {"manner": "quick", "seconds": 0.3, "cost_usd": 0.02},
            agent_id=agent,
            spend_usd=0.05,
        )

    async def run_key(self, key: str, job: str, payload: dict[str, Any], **metadata: Any) -> None:
        payload = {"witness": self.world.given.witness, **payload}
        body = {"key": key, "ttl": 120, "metadata": {"task": job, "payload": payload, **metadata}}
        op = await self.post("run", key, "/ai/run", body)
        if op.ok:
            self.world.runs.append((key, op.answer.get("lease_id")))
            del self.world.runs[:-60]

    async def result(self) -> None:
        if self.world.runs:
            key, _ = self.rng.choice(self.world.runs)
            how = self.rng.choice(["status", "result", "result"])
            params = {"key": key, "wait": self.rng.choice([0, 3])}
            await self.ask(how, key, "GET", f"/ai/{how}", params=params)

    async def cancel(self) -> None:
        held = [(key, lease) for key, lease in self.world.runs[-10:] if lease is not None]
        if held:
            key, lease_id = self.rng.choice(held)
            await self.post("cancel", key, "/ai/cancel", {"key": key, "lease_id": lease_id})

    async def tool(self) -> None:
        agent = self.rng.choice(["caller", "caller", "switched"])
        await self.call(agent, self.rng.choice(TOOLS), self.world.number("tool", self.rng))

    async def spend(self) -> None:
        number = self.world.number("spend", self.rng, 1)
        await self.call(self.spender(), "torture.idempotent", number, spend_usd=0.03)

    async def call(self, agent: str, tool: str, number: int, spend_usd: float = 0.001) -> Op:
        manner = "quick" if number < 0 else manner_of(f"{agent}/{tool}/{number}")
        args = {"n": number, "manner": manner}
        body = {"agent_id": agent, "tool": tool, "args": args, "spend_usd": spend_usd}
        return await self.post("tool", f"{agent}/{tool}/{number}", "/ai/run", body, {"Prefer": "wait=3"})

    def spender(self) -> str:
        return f"spender-{self.world.numbers // 150 % self.world.given.spenders}"

    async def post(
        self, kind: str, key: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> Op:
        return await self.ask(kind, key, "POST", path, body, headers=headers)

    async def ask(
        self,
        kind: str,
        key: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
    ) -> Op:
        """Ask, again where nothing or a 5xx came back, as the contract allows for each request; and write it down."""
        world = self.world
        world.numbers += 1
        number, invoked_at, tries = world.numbers, time.time(), 0
        call_id = {"X-Request-Id": f"call_{world.given.seed}_{number}"}
        response: httpx.Response | None = None
        for attempt in range(TRIES):
            url = world.given.base_urls[(self.number + attempt) % len(world.given.base_urls)] + path
            tries += 1
            try:
                response = await world.http.request(
                    method, url, json=body, params=params, headers={**call_id, **(headers or {})}
                )
            except httpx.ConnectError:
                tries -= 1  # it has not left
            except httpx.HTTPError:
                pass
            if response is not None and response.status_code < 500:
                break
            await asyncio.sleep(self.rng.uniform(0.1, 0.5))
        op = Op(
            n=number,
            client=self.number,
            kind=kind,
            key=key,
            sent={**(body or {}), **(params or {})},
            invoked_at=invoked_at,
            ended_at=time.time(),
            outcome=_outcome(response, tries),
            tries=tries,
            status=None if response is None else response.status_code,
            answer=_answer(response),
        )
        world.write(op)
        return op


class Operator(Client):
    """The one who throws the switch, changes the policy, and settles what is unknown."""

    async def act(self) -> None:
        await self.turn("switched", "disable", "/agents/switched/disable", {"reason": "torture"})
        await self.turn("policed", "forbid", "/policies/policed", {"blocked_tools": [GOVERNED]})
        await asyncio.sleep(self.rng.uniform(0.5, 2))
        await self.turn("switched", "enable", "/agents/switched/enable", {})
        await self.turn("policed", "permit", "/policies/policed", {"blocked_tools": []})
        await self.settle()
        await asyncio.sleep(self.rng.uniform(1, 3))

    async def turn(self, agent: str, kind: str, path: str, body: dict[str, Any]) -> None:
        await self.post(kind, agent, path, body)

    async def settle(self) -> None:
        """Settle what has been unknown for so long that no frozen worker will still send it."""
        listed = await self.ask("unknown", "", "GET", "/ai/unknown", params={"limit": 50})
        for item in listed.answer.get("items", []) if listed.ok else []:
            await settle(self, item)


class Survivor(Client):
    """The one who asks after the last fault: everything must be well again."""

    async def act(self) -> None:
        """Settle everything that is still unknown."""
        listed = await self.ask("unknown", "", "GET", "/ai/unknown", params={"limit": 500})
        for item in listed.answer.get("items", []) if listed.ok else []:
            await settle(self, item, older_than_s=0)

    async def ask_everything(self) -> list[Op]:
        """One operation of each kind. After the last fault, all of them must succeed."""
        lease = await self.post("lease", "last:lease", "/ai/lease", {"key": "last:lease", "ttl": TTL_S})
        held = {"key": "last:lease", "lease_id": lease.answer.get("lease_id", "")}
        return [
            await self.post("lock", "last:lock", "/check-lock", {"key": "last:lock", "ttl": TTL_S}),
            lease,
            await self.post("extend", "last:lease", "/ai/extend", {**held, "ttl": TTL_S}),
            await self.post("complete", "last:lease", "/ai/complete", {**held, "result": {"by": "the last"}}),
            *[await self.call("caller", tool, -1) for tool in TOOLS],
            await self.call(f"spender-{self.world.given.spenders - 1}", TOOLS[0], -1, 0.03),
        ]

    async def probe(self, key: str) -> Op:
        """A short run, long enough that one worker alone does not get them all."""
        await self.run_key(key, WORK, {"manner": "quick", "seconds": 0.5})
        return await self.ask("result", key, "GET", "/ai/result", params={"key": key, "wait": 6})


async def settle(client: Client, item: dict[str, Any], older_than_s: float = 30) -> None:
    """Say of an unknown call what the witness knows."""
    age_s = time.time() - datetime.fromisoformat(item["since"]).timestamp()
    if age_s < older_than_s:
        return
    try:
        seen = await client.world.http.get(f"{client.world.given.witness}/seen/{item['idempotency_key']}")
    except httpx.HTTPError:
        return
    happened = seen.json()["seen"] > 0
    body = {"key": item["key"], "happened": happened, "decision_id": item["decision_id"]}
    if happened:
        body["result"] = {"settled": True}
    await client.post("settle", item["key"], "/ai/settle", body)


TOOLS = ("torture.read", "torture.idempotent", "torture.reconcilable", "torture.irreversible")


def manner_of(key: str) -> str:
    """How the tool behaves in a call: the same for all that ask for it."""
    weights = {"quick": 6, "slow": 1, "busy": 1, "lost": 1}
    chance = random.Random(key)  # noqa: S311
    return chance.choices(list(weights), list(weights.values()))[0]


def work_of(key: str) -> dict[str, Any]:
    """What the run under a key is to do: the same for all that ask for it."""
    chance = random.Random(key)  # noqa: S311
    weights = {"quick": 16, "slow": 4, "flaky": 4, "crash": 2, "refuse": 2, "poison": 1}
    manner = chance.choices(list(weights), list(weights.values()))[0]
    seconds = chance.uniform(2, 6) if manner == "slow" else chance.choice([0, 0, 0.2, 0.5])
    return {"manner": manner, "seconds": round(seconds, 2)}


def _outcome(response: httpx.Response | None, tries: int) -> Outcome:
    if response is None:
        return Outcome.UNKNOWN if tries else Outcome.REFUSED
    if response.is_success:
        return Outcome.OK
    in_doubt = tries > 1 or response.status_code >= 500
    return Outcome.UNKNOWN if in_doubt else Outcome.REFUSED


def _answer(response: httpx.Response | None) -> dict[str, Any]:
    if response is None:
        return {}
    try:
        body = response.json()
    except ValueError:
        return {"text": response.text[:500]}
    return body if isinstance(body, dict) else {"data": body}


@asynccontextmanager
async def opened(assignment: Assignment) -> AsyncIterator[World]:
    """The world, its history open to be gone on with."""
    with Path(assignment.history).open("a", encoding="utf-8") as history:  # noqa: ASYNC230 (local, and nobody waits)
        world = World(assignment, history)
        try:
            yield world
        finally:
            await world.http.aclose()


async def _main(path: str) -> None:
    assignment = Assignment(**json.loads(Path(path).read_text()))  # noqa: ASYNC240 (nothing else runs yet)
    async with opened(assignment) as world:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, world.stopping.set)
        operator = Operator(world, 0)
        clients = [Client(world, number) for number in range(1, assignment.clients + 1)]
        await asyncio.gather(*(client.live() for client in (operator, *clients)))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
