"""What a killed worker costs: python -m benchmarks.scoreboard [--peers NAME ...] [--json FILE] [--markdown FILE]

Each peer gets a real Redis and a real Postgres, and jobs of 0.2 s; two are executed at a time. Once 60 are done, its
worker's process group is killed with SIGKILL while it is at work, and started again at once. Then nothing is done
but waiting. A witness of its own, a file to which each job writes as it starts and when it is done, tells what was
lost, begun twice and done twice. Ends with status 1 if a run of ours is lost, done twice, or late.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.scoreboard.installed import python_with, version_of
from benchmarks.scoreboard.peers import PEERS, Peer
from benchmarks.scoreboard.race import Race, Round
from benchmarks.scoreboard.tally import Tally

OURS_WITHIN_S = 17.0
"""The default worker lease, and 2 s."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    parser.add_argument(
        "--peers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--jobs", type=int, default=Race.jobs)
    parser.add_argument("--wait", type=float, default=Race.wait_s, help="seconds from the kill to the end")
    parser.add_argument("--at-once", type=int, default=1, help="peers measured side by side")
    venv = Path(tempfile.gettempdir()) / "onceonly-scoreboard"
    parser.add_argument("--venv", type=Path, default=venv, help="where the peers are installed (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    chosen = [peer for peer in PEERS if peer.name in options.peers]
    pythons = {peer: python_with(peer, options.venv) for peer in chosen}
    race = Race(jobs=options.jobs, wait_s=options.wait)

    def measured(peer: Peer) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as directory:
            try:
                counted: Tally | None = Round(peer, race, pythons[peer], Path(directory)).run()
                problem = None
            except RuntimeError as error:
                counted, problem = None, str(error)
        print(f"{peer.name}: {counted or problem}", file=sys.stderr, flush=True)
        version = version_of(peer, pythons[peer])
        row: dict[str, object] = {"peer": peer.name, "label": peer.label, "version": version}
        return row | ({"problem": problem} if counted is None else asdict(counted))

    with ThreadPoolExecutor(options.at_once) as pool:
        rows = list(pool.map(measured, chosen))
    text = table(rows, race)
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"race": asdict(race), "rows": rows}, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(text + "\n")
    sys.exit(any(falls_short(row) for row in rows if str(row["peer"]).startswith("onceonly")))


def falls_short(row: dict[str, object]) -> bool:
    again_s = row.get("started_again_s")
    clean = row.get("lost") == 0 and row.get("completed_twice") == 0
    return not (clean and isinstance(again_s, float) and again_s <= OURS_WITHIN_S)


def table(rows: list[dict[str, object]], race: Race) -> str:
    head = "version", "lost", "started twice", "completed twice", "interrupted", "started again", "all done"
    lines = [f"| {race.jobs} x {race.sleep_s:g} s, wait {race.wait_s:g} s | {' | '.join(head)} |"]
    lines.append("| --- " * (len(head) + 1) + "|")
    for row in rows:
        if "problem" in row:
            cells = ["did not run", *[""] * 5]
        else:
            counts = [str(row[name]) for name in ("lost", "started_twice", "completed_twice", "interrupted")]
            cells = [*counts, seconds(row["started_again_s"]), seconds(row["all_done_s"])]
        lines.append(f"| {row['label']} | {row['version']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds(value: object) -> str:
    return "never" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    main()
