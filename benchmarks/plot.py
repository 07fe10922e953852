"""A bar chart as SVG: horizontal bars by group, legible on light and on dark ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.figures import Rounds, Spread
from benchmarks.peers.catalogue import PEERS
from benchmarks.report import number

WIDTH, LABEL, BAR, ROW, HEAD = 880, 280, 470, 22, 44
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 15px; }
.note { fill: #57606a; font-size: 12px; }
.bar { fill: #6e7781; }
.volatile { fill: #c8ccd1; }
.ours { fill: #0969da; }
.floor { fill: #bc8c3c; }
.range { stroke: #24292f; stroke-width: 1.5; opacity: .55; }
.ours-label { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note { fill: #9198a1; }
  .bar { fill: #8b949e; } .volatile { fill: #484f58; } .ours { fill: #4493f8; }
  .floor { fill: #d29922; } .range { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True)
class Bar:
    """One case; kind is `ours`, `floor`, `bar`, or `volatile` for a queue that loses jobs with the power."""

    label: str
    spread: Spread
    kind: str = "bar"


@dataclass(frozen=True)
class Group:
    """Bars that may be compared with each other."""

    title: str
    note: str
    bars: Sequence[Bar]


def groups(rounds: Rounds) -> list[Group]:
    """What the README shows: throughput over HTTP, of enqueuing and end to end."""
    wanted = (
        ("http", "Requests a second over HTTP", "one API process, 32 connections"),
        (
            "enqueue",
            "Jobs enqueued a second, one per call",
            "pale: kept in memory alone, so lost with the power",
        ),
        (
            "end to end",
            "Jobs a second, end to end",
            "jobs that do nothing, one worker node; pale: kept in memory alone",
        ),
    )
    made = [Group(title, note, _bars(rounds, name)) for name, title, note in wanted]
    return [group for group in made if group.bars]


def _bars(rounds: Rounds, name: str) -> list[Bar]:
    bars = []
    for case in rounds.names():
        spread = rounds.spread(case)
        if case.startswith(f"{name}: ") and spread is not None:
            bars.append(Bar(case.partition(": ")[2], spread, _kind(case)))
    return sorted(bars, key=lambda bar: -bar.spread.median)


def _kind(case: str) -> str:
    if case == "http: floor":
        return "floor"
    if case.startswith("http: ") or "OnceOnly" in case:
        return "ours"
    label = case.partition(": ")[2]
    return "bar" if any(peer.label == label and peer.durable for peer in PEERS) else "volatile"


def svg(drawn: Sequence[Group]) -> str:
    """The chart. Each group has a scale of its own, from 0."""
    body, y = [], 8
    for group in drawn:
        body += _head(group, y)
        y += HEAD
        most = max(bar.spread.high for bar in group.bars)
        for bar in group.bars:
            body += _bar(bar, y, BAR / most)
            y += ROW
        y += 14
    size = f'viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}"'
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([opened, f"<style>{STYLE}</style>", *body, "</svg>", ""])


def _head(group: Group, y: int) -> list[str]:
    return [
        f'<text class="title" x="8" y="{y + 16}">{escape(group.title)}</text>',
        f'<text class="note" x="8" y="{y + 33}">{escape(group.note)}</text>',
    ]


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    low, middle, high = (
        LABEL + value * scale for value in (bar.spread.low, bar.spread.median, bar.spread.high)
    )
    line = y + ROW / 2
    emphasis = ' class="ours-label"' if bar.kind == "ours" else ""
    return [
        f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end"{emphasis}>{escape(bar.label)}</text>',
        f'<rect class="{bar.kind}" x="{LABEL}" y="{y + 3}" width="{middle - LABEL:.1f}" height="{ROW - 6}" rx="2"/>',
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{line}" y2="{line}"/>',
        f'<text x="{max(middle, high) + 8:.1f}" y="{y + 15}">{number(bar.spread.median)}</text>',
    ]
