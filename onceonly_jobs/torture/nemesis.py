"""The nemesis: one fault after the other, chosen by a seed, each ended before the next begins."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.broker import BrokerError, Publisher
from onceonly_jobs.dispatch.celeryconf import KEY_PREFIX
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.torture.parts import Part
from onceonly_jobs.torture.proxy import BLACKHOLE, Line, Way
from onceonly_jobs.torture.system import LEASE_S, System

SKEWS_S = (7200, -7200, 90_000, -90)


class NotHere(Exception):
    """This fault can't be caused here, and why."""


class Nemesis:
    """Causes faults in a system, and counts them."""

    def __init__(
        self, system: System, seed: int, faults: Sequence[str], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.system = system
        self.rng = random.Random(f"{seed}/nemesis")  # noqa: S311 (a repeatable choice, no secret)
        self.counts: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        self.drain_s: list[float] = []
        self._faults = list(faults)
        self._bag: list[str] = []
        self._say = say
        self._publisher = Publisher(Settings.load(broker_url=system.servers.broker_url))

    def until(self, over: Callable[[], bool]) -> None:
        """Cause faults until it is over."""
        while not over():
            self.pause(self.rng.uniform(0.5, 2.5))
            if self._faults and not over():
                self.cause(self._next())

    def _next(self) -> str:
        """Each kind once, in an order by chance, before any comes again."""
        if not self._bag:
            self._bag = self.rng.sample(self._faults, len(self._faults))
        return self._bag.pop()

    def cause(self, name: str) -> None:
        """One fault, from its beginning to its end."""
        try:
            what = FAULTS[name](self)
        except NotHere as why:
            self.skipped[name] = str(why)
            self._faults.remove(name)
            self._bag = [each for each in self._bag if each != name]
            return
        self.counts[name] += 1
        self._say(f"{name}: {what}")

    def pause(self, seconds: float) -> None:
        """Wait, and start what has ended by itself meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.system.revive()
            time.sleep(min(left, 0.2))

    def sleep(self, low: float, high: float) -> None:
        time.sleep(self.rng.uniform(low, high))

    def one(self, *kinds: str) -> Part:
        return self.rng.choice([part for part in self.system.parts if part.kind in kinds])

    # -- processes

    def kill(self, kind: str) -> str:
        part = self.one(kind)
        part.kill()
        self.sleep(0, 1.5)
        part.start()
        return part.name

    def kill_child(self) -> str:
        part = self.one("worker")
        children = part.children()
        if children:
            with contextlib.suppress(ProcessLookupError):
                self.rng.choice(children).kill()
        return part.name

    def kill_parent(self) -> str:
        """A worker's first process dies; its children run on, orphaned."""
        part = self.one("worker")
        part.kill_main()
        part.start()
        return part.name

    def freeze(self, kind: str, low: float, high: float) -> str:
        part = self.one(kind)
        part.freeze()
        try:
            self.sleep(low, high)
        finally:
            part.thaw()
        return part.name

    def restart(self, kind: str) -> str:
        """A rolling update's step: it is asked to end, and started again."""
        part = self.one(kind)
        took_s = part.stop()
        self.drain_s.append(took_s)
        part.start()
        return f"{part.name}, ended after {took_s:.1f} s"

    def skew(self) -> str:
        """A worker and a scheduler are started with clocks that are wrong."""
        skew_s = self.rng.choice(SKEWS_S)
        env = {"LD_PRELOAD": str(self._skew_library()), "ONCEONLY_SKEW_S": str(skew_s)}
        skewed = [self.one("worker"), self.one("beat")]
        for part in skewed:
            part.kill()
            part.start(env)
        return f"{', '.join(part.name for part in skewed)} by {skew_s} s"

    def _skew_library(self) -> Path:
        """What makes a process's wall clock wrong, compiled on first use."""
        library = self.system.directory / "skew.so"
        compiler = shutil.which("cc")
        if not library.exists():
            if compiler is None or sys.platform != "linux":
                raise NotHere("needs Linux and a C compiler (cc)")
            source = Path(__file__).with_name("skew.c")
            subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        return library

    # -- servers

    def flush_redis(self) -> str:
        if self.system.servers.redis is None:
            raise NotHere("this Redis is not the torture's own")
        times = self.rng.randint(1, 5)
        for _ in range(times):
            with contextlib.suppress(redis.RedisError), self._redis() as connection:
                connection.flushall()
            self.sleep(0.05, 0.3)
        return f"{times} times"

    def kill_redis(self) -> str:
        server = self.system.servers.redis
        if server is None:
            raise NotHere("this Redis is not the torture's own")
        server.kill()
        self.sleep(0, 3)
        server.start()
        return ""

    def restart_postgres(self) -> str:
        """Immediate mode: every session is cut, and the data recovered from the log."""
        server = self.system.servers.postgres
        if server is None:
            raise NotHere("this Postgres is not the torture's own")
        if self.rng.random() < 0.5:
            server.stop_immediately()
        else:
            server.kill()
        self.sleep(0, 1.5)
        server.start()
        return ""

    # -- lines

    def cut(self) -> str:
        part = self.rng.choice(self.system.parts)
        return f"{part.name}: {sum(proxy.cut() for proxy in part.proxies.values())} connections"

    def bad_line(self, line: Line, low: float, high: float) -> str:
        """The line of one part, to Postgres, Redis or its callers, behaves badly for a while."""
        part = self.rng.choice(self.system.parts)
        name = self.rng.choice(sorted(part.proxies))
        with part.proxies[name].broken(line):
            self.sleep(low, high)
        return f"{part.name}, {name}"

    def cut_answers(self) -> str:
        """Answers break off at some byte: what was asked has happened, and nobody is told."""
        part = self.one("api", "worker")
        name = self.rng.choice(sorted(part.proxies))
        proxy = part.proxies[name]
        proxy.cut()
        with proxy.broken(Line(reply_bytes=self.rng.randint(500, 20_000))):
            self.sleep(1, 3)
        return f"{part.name}, {name}"

    def refuse(self) -> str:
        part = self.rng.choice(self.system.parts)
        name = self.rng.choice(sorted(part.proxies))
        proxy = part.proxies[name]
        proxy.refuse()
        proxy.cut()
        self.sleep(0.5, 4)
        proxy.heal()
        return f"{part.name}, {name}"

    # -- messages

    def duplicate(self) -> str:
        """Messages about runs that are queued, running or long over, once more."""
        rows = self._latest_runs()
        chosen = [self.rng.choice(rows) for _ in range(20)] if rows else []
        with contextlib.suppress(BrokerError):
            self._publisher.publish(chosen)
        return f"{len(chosen)} messages"

    def delay_messages(self) -> str:
        """What waits in the queue is taken out, and put back in another order, seconds later."""
        queue, held = f"{KEY_PREFIX}{self.system.tenant}", []
        with contextlib.suppress(redis.RedisError), self._redis() as connection:
            for _ in range(10):
                while (message := connection.rpop(queue)) is not None:
                    held.append(message)
                self.sleep(0.05, 0.2)
        self.sleep(1, 3)
        self.rng.shuffle(held)
        with contextlib.suppress(redis.RedisError), self._redis() as connection:
            for message in held:
                connection.lpush(queue, message)
        return f"{len(held)} messages"

    def _latest_runs(self) -> list[Due]:
        rows = self.system.rows(
            "SELECT id, tenant_id, key, agent_id, job, queue, due_at FROM runs"
            " WHERE tenant_id = :tenant_id AND owner = 'server' AND job IS NOT NULL AND due_at IS NOT NULL"
            " ORDER BY id DESC LIMIT 100"
        )
        return [Due(**row) for row in rows]

    def _redis(self) -> redis.Redis:
        connection: redis.Redis = redis.Redis.from_url(self.system.servers.broker_url, socket_timeout=2)
        return connection


FAULTS: dict[str, Callable[[Nemesis], str]] = {
    "kill-api": lambda nemesis: nemesis.kill("api"),
    "kill-worker": lambda nemesis: nemesis.kill("worker"),
    "kill-beat": lambda nemesis: nemesis.kill("beat"),
    "kill-child": Nemesis.kill_child,
    "kill-parent": Nemesis.kill_parent,
    "pause-api": lambda nemesis: nemesis.freeze("api", 1, 4),
    "pause-worker": lambda nemesis: nemesis.freeze("worker", LEASE_S + 1, LEASE_S + 4),
    "pause-beat": lambda nemesis: nemesis.freeze("beat", 1, 6),
    "restart-api": lambda nemesis: nemesis.restart("api"),
    "restart-worker": lambda nemesis: nemesis.restart("worker"),
    "restart-beat": lambda nemesis: nemesis.restart("beat"),
    "flush-redis": Nemesis.flush_redis,
    "kill-redis": Nemesis.kill_redis,
    "restart-postgres": Nemesis.restart_postgres,
    "cut": Nemesis.cut,
    "cut-answers": Nemesis.cut_answers,
    "delay": lambda nemesis: nemesis.bad_line(Line(delay_s=nemesis.rng.uniform(0.02, 0.4)), 2, 6),
    "blackhole": lambda nemesis: nemesis.bad_line(BLACKHOLE, 1, 6),
    "half-open": lambda nemesis: nemesis.bad_line(
        Line(swallowed=frozenset({nemesis.rng.choice(list(Way))})), 1, 6
    ),
    "refuse": Nemesis.refuse,
    "duplicate": Nemesis.duplicate,
    "delay-messages": Nemesis.delay_messages,
    "skew": Nemesis.skew,
}
"""Every fault by its name on the command line."""


def chosen(words: str) -> list[str]:
    """The faults that `all`, `none` or a comma list means. Raises ConfigError for a name that is none."""
    if words in ("all", "none"):
        return list(FAULTS) if words == "all" else []
    names = [name.strip() for name in words.split(",") if name.strip()]
    for name in names:
        if name not in FAULTS:
            raise ConfigError(f"--faults: no fault {name!r}; there are: {', '.join(FAULTS)}")
    return names
