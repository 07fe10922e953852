"""The benchmark's own arithmetic: ratios within a round, goals told plainly, a model that obeys queueing theory."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import load, plot, report
from benchmarks.figures import Rounds, Spread
from benchmarks.goals import GOALS
from benchmarks.simulate import Demand, Plan, bound, simulate
from benchmarks.witness import Witness

ROUNDS = Rounds(
    [
        {
            "http: floor": {"per_second": 1000.0, "p99_ms": 10.0},
            "http: check-lock, new keys": {"per_second": 950.0, "p99_ms": 30.0},
            "http: ai/run, accepted": {"per_second": 100.0, "p99_ms": 99.0},
        },
        {
            "http: floor": {"per_second": 100.0, "p99_ms": 100.0},
            "http: check-lock, new keys": {"per_second": 91.0, "p99_ms": 300.0},
        },
    ]
)
SETTING = report.Setting(
    date="2026-01-01",
    command="python -m benchmarks",
    took_s=60,
    rounds=2,
    machine={"cores": "2"},
    servers={},
    settings={},
    peers=[],
    failures={"a peer": "Traceback\n  File x\nImportError: no module"},
)


def test_a_ratio_is_of_a_round_to_itself() -> None:
    """The second round had a tenth of the machine, which is no difference between the cases."""
    ratio = ROUNDS.ratio("http: check-lock, new keys", "http: floor")
    assert ratio == Spread(pytest.approx(0.93), pytest.approx(0.91), pytest.approx(0.95))


def test_a_case_that_a_round_lacks_does_not_count_in_it() -> None:
    assert ROUNDS.ratio("http: ai/run, accepted", "http: floor") == Spread(0.1, 0.1, 0.1)


def test_the_table_says_which_goals_are_not_met_and_what_was_not_measured() -> None:
    text = report.results(ROUNDS, SETTING)
    lines = {
        line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")
    }
    assert lines["check-lock, new keys, beside the constant endpoint"].endswith("| yes |")
    assert lines["ai/run accepted, beside the constant endpoint"].endswith("| **no** |")
    assert "not measured" in lines["run_and_wait, p50"]
    assert "- a peer: Traceback ... ImportError: no module" in text


def test_of_a_missed_goal_the_report_says_where_the_time_goes() -> None:
    fast = {"per_second": 2000.0, "python_us": 140.0, "redis_us": 20.0}
    ours = {"per_second": 900.0}
    missed = ROUNDS.rounds[0] | {"enqueue: huey": fast, "enqueue: OnceOnly Jobs, 32 connections": ours}
    text = report.results(Rounds([missed]), SETTING)
    [way] = [line for line in text.splitlines() if line.startswith("**ai/run from 32 connections")]
    assert "huey is asked within the caller's process (140 µs of Python, 20 µs of Redis)" in way
    assert "reaches 0.50 of that rate" in way
    assert "check-lock, new keys, beside" not in text.partition("## What stands in the way")[2]
    met = report.results(Rounds([{"http: floor": {"per_second": 1.0}}]), SETTING)
    assert "stands in the way" not in met


def test_scale_by_itself_has_a_table_of_its_own_goals() -> None:
    sizes = {"1,000": 100.0, "1,000,000": 80.0}
    measured = {f"scale: ai/run, {size} stored": {"per_second": rate} for size, rate in sizes.items()}
    text = report.results(Rounds([measured]), SETTING)
    rows = [line for line in text.partition("## Goals")[2].splitlines() if line.startswith("| ")]
    assert rows[1:2] == [
        "| ai/run, the slowest size beside the smallest | at least 0.85 | 0.80 | 0.80 to 0.80 | **no** |"
    ]
    assert "run_and_wait" not in text


def test_a_goal_below_a_bound_is_not_met_at_it() -> None:
    p99 = next(goal for goal in GOALS if goal.what.startswith("its p99"))
    at_bound = Rounds([{"http: floor": {"p99_ms": 1.0}, "http: check-lock, new keys": {"p99_ms": 4.0}}])
    assert p99.met(at_bound) is False
    assert p99.met(Rounds([])) is None


def test_the_plot_is_an_svg_with_a_bar_for_each_case() -> None:
    root = ElementTree.fromstring(plot.svg(plot.groups(ROUNDS)))
    bars = [element for element in root.iter() if element.tag.endswith("rect")]
    assert [bar.get("class") for bar in bars] == ["floor", "ours", "ours"]


def test_the_witness_refuses_a_job_that_ran_twice(tmp_path: Path) -> None:
    path = tmp_path / "witness"
    path.write_bytes(b"%09d %020d\n" % (1, 5) * 2)
    witness = Witness(path)
    assert witness.size() == 2
    with pytest.raises(RuntimeError, match="job 1 ran 2 times"):
        witness.ran_at()
    witness.forget()
    assert witness.size() == 0
    assert witness.ran_at() == {}


DEMAND = Demand(0.001, 0.0, 0.0, 0.0, 0.0, 8000, 4000)


def test_the_simulation_agrees_with_theory() -> None:
    """One server, half busy, random arrivals: the mean time is twice the service time, the median ln 2 of that."""
    plan = Plan(
        rate=500, api=1, workers=1, schedulers=1, postgres_cores=1, wal_mb=0, shards=1, disk_gb_a_day=0
    )
    seen = simulate(DEMAND, plan, 50_000)
    assert seen["API busy"] == pytest.approx(0.5, rel=0.05)
    assert seen["accepted p50"] == pytest.approx(2 * 0.693, rel=0.1)


def test_no_rate_exceeds_what_the_busiest_station_can_do() -> None:
    phase: dict[str, Any] = {"cpu_ms": {"API": 1.0, "PostgreSQL": 0.5}}
    assert bound(phase, 2, {"API": 1}) == (1000, "API, 1 at a time")
    assert bound(phase, 1, {"API": 1})[1] == "the machine's 1 cores"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"status":"locked"}' if b"right" in sent else b'{"status":"duplicate"}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_load_generator_refuses_figures_of_wrong_answers() -> None:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        right = load.Target(server.server_port, "/", "key", lambda n: b"right %d" % n, b'"status":"locked"')
        done = load.run(right, 5, limit=20, connections=1)
        assert done.asked == len(done.latencies_s) == 20
        assert done.case()["per_second"] > 0
        wrong = load.Target(server.server_port, "/", "key", lambda n: b"wrong", b'"status":"locked"')
        with pytest.raises(RuntimeError, match="3 of 3 answers are wrong"):
            load.run(wrong, 5, limit=3, connections=1).case()
        server.shutdown()


def test_the_load_generator_does_not_wait_for_ever() -> None:
    """A server that hangs up on a request is an error, not a rate."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.close()

    started: list[int] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()

    threading.Thread(target=lambda: (loop.create_task(serve()), loop.run_forever()), daemon=True).start()
    assert ready.wait(60)
    target = load.Target(started[0], "/", "key", lambda n: b"x", b"")
    with pytest.raises(ConnectionError):
        load.run(target, 2, connections=1)
    loop.call_soon_threadsafe(loop.stop)
