"""Our figures beside the floor and beside peers: python -m benchmarks [--rounds N] [--seconds S] [--only GROUPS]

Rounds of everything are interleaved, and ratios are of a round to itself. Writes benchmarks/RESULTS.md and
docs/benchmarks.svg where all groups were measured, or else prints the table. --full adds what needs hours.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, ours, plot, report, scale, soak
from benchmarks.figures import Measured, Rounds
from benchmarks.governance import Prepared
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.round import Effort, PeerRound
from benchmarks.product import Product
from benchmarks.scoreboard.installed import python_with, version_of
from benchmarks.servers import Servers
from onceonly_jobs.local.unwinding import unwound_by_signals

ROOT = Path(__file__).parents[1]
OURS = ("http", "jobs", "latency", "tools", "memory", "twice")
GROUPS = (*OURS, "governance", "peers")


@dataclass
class Session:
    """The servers, what is measured on them, and what came of it so far."""

    servers: Servers
    groups: frozenset[str]
    seconds: float
    jobs: int
    peers: dict[Peer, str]
    """With the Python that each has."""
    failures: dict[str, str] = field(default_factory=dict)
    rounds: list[Measured] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._product = Product(self.servers)
        self._governance = Prepared(self.servers) if "governance" in self.groups else None

    def round(self) -> None:
        """Everything once."""
        number = len(self.rounds)
        measured: Measured = {}
        prefix = f"r{number}-{time.time_ns() // 1_000_000_000:x}"
        if self.groups & set(OURS):
            effort = ours.Effort(self.seconds, self.jobs)
            mine = ours.OurRound(self._product, prefix, effort)
            measured |= self._tried("OnceOnly Jobs", lambda: mine.measure(self.groups))
        for peer, python in self.peers.items():
            measured |= self._tried(peer.label, lambda p=peer, py=python: self._peer(p, py))  # type: ignore[misc]
        if self._governance is not None:
            decisions = self._governance
            measured |= self._tried("governance", lambda: decisions.measure(prefix, self.seconds))
        self.rounds.append(measured)

    def _peer(self, peer: Peer, python: str) -> Measured:
        with tempfile.TemporaryDirectory() as directory:
            return PeerRound(peer, python, self.servers, Path(directory)).measure(
                Effort(self.seconds, self.jobs)
            )

    def _tried(self, what: str, measure: Callable[[], Measured]) -> Measured:
        """What it measured; nothing, and the reason kept, where it could not."""
        started = time.monotonic()
        try:
            measured = measure()
        except (RuntimeError, OSError) as error:
            self.failures[what] = str(error)
            say(f"{what}: {error}")
            return {}
        say(f"{what}: {time.monotonic() - started:.1f} s")
        for name, case in measured.items():
            say(f"    {name}: " + ", ".join(f"{key} {report.number(value)}" for key, value in case.items()))
        return measured


def command(options: argparse.Namespace) -> str:
    """What measures the same again, wherever that is written to."""
    words = [
        "python",
        "-m",
        "benchmarks",
        "--rounds",
        str(options.rounds),
        "--seconds",
        f"{options.seconds:g}",
    ]
    words += ["--jobs", str(options.jobs)]
    words += [] if options.groups == set(GROUPS) else ["--only", options.only]
    words += ["--full", "--sizes", options.sizes, "--runs", str(options.runs)] if options.full else []
    return shlex.join(words)


def install(directory: Path, failures: dict[str, str]) -> dict[Peer, str]:
    """The peers that can be had, each with its Python."""
    pythons: dict[Peer, str] = {}
    for peer in PEERS:
        try:
            pythons[peer] = python_with(peer, directory)
        except subprocess.CalledProcessError as error:
            failures[peer.label] = f"not installed: {error}"
    return pythons


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3, help="of load for each case")
    parser.add_argument("--jobs", type=int, default=5000, help="at most, in a batch that is executed")
    parser.add_argument("--only", default=",".join(GROUPS), metavar="GROUPS", help=", ".join(GROUPS))
    parser.add_argument(
        "--peers", default=",".join(p.name for p in PEERS), metavar="NAMES", help="of the peers"
    )
    parser.add_argument(
        "--full", action="store_true", help="measure scale and memory too, without a time limit"
    )
    parser.add_argument(
        "--sizes",
        default="1000,1000000,10000000",
        help="stored keys and runs, 5 kB of disk each (%(default)s)",
    )
    parser.add_argument(
        "--runs", type=int, default=1_000_000, help="for memory to grow (%(default)s); 0: none"
    )
    parser.add_argument(
        "--directory", type=Path, help="where the servers keep their data; else a temporary one"
    )
    parser.add_argument("--json", type=Path, help="write the figures of each round here")
    parser.add_argument("--results", type=Path, help="write the table here")
    parser.add_argument("--plot", type=Path, help="write the plot here")
    venvs = Path(tempfile.gettempdir()) / "onceonly-benchmarks"
    parser.add_argument(
        "--venvs", type=Path, default=venvs, help="where the peers are installed (%(default)s)"
    )
    options = parser.parse_args()
    options.groups = frozenset(options.only.split(",")) - {""}
    if unknown := options.groups - set(GROUPS):
        parser.error(f"no such groups: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    options = arguments()
    started = time.monotonic()
    failures: dict[str, str] = {}
    wanted = options.peers.split(",") if "peers" in options.groups else []
    peers = (
        {p: py for p, py in install(options.venvs, failures).items() if p.name in wanted} if wanted else {}
    )
    with (
        unwound_by_signals(),
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        Servers(Path(directory)) as servers,
    ):
        session = Session(servers, options.groups, options.seconds, options.jobs, peers, failures)
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            session.round()
        if options.full:
            session.rounds += full(servers, options)
        setting = report.Setting(
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            command=command(options),
            took_s=time.monotonic() - started,
            rounds=options.rounds,
            machine=machine.facts(),
            servers=servers.versions(),
            settings=servers.settings(),
            peers=[
                (peer.label, version_of(peer, python), peer.settings, "yes" if peer.durable else "no")
                for peer, python in peers.items()
            ],
            failures=failures,
        )
    write(Rounds(session.rounds), setting, options)


def full(servers: Servers, options: argparse.Namespace) -> list[Measured]:
    """What takes hours: many stored keys and runs, and many runs one after the other."""
    sizes = [int(size) for size in options.sizes.split(",") if size]
    measured = scale.measure(servers, sizes, options.rounds, options.seconds, say) if sizes else []
    return measured + (soak.measure(servers, options.runs, say) if options.runs else [])


def write(rounds: Rounds, setting: report.Setting, options: argparse.Namespace) -> None:
    """Table and plot go to their places where nothing was left out, and else where they are asked for."""
    whole = options.groups == set(GROUPS)
    text = report.results(rounds, setting)
    print(text)
    if results := options.results or (ROOT / "benchmarks" / "RESULTS.md" if whole else None):
        results.write_text(text)
    if drawn := options.plot or (ROOT / "docs" / "benchmarks.svg" if whole else None):
        drawn.write_text(plot.svg(plot.groups(rounds)))
    if options.json:
        kept = {"setting": asdict(setting), "rounds": rounds.rounds}
        options.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
