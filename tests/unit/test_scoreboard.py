"""The crash scoreboard counts what its witness saw, against us as against anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scoreboard.__main__ import falls_short
from benchmarks.scoreboard.peers import PEERS
from benchmarks.scoreboard.tally import Line, read, tally

KILLED_AT = 10.0


def seen(text: str) -> list[Line]:
    parts = [item.split() for item in text.split(",")]
    return [(what, int(number), float(at)) for what, number, at in parts]


def test_a_job_that_was_interrupted_and_done_later_is_not_lost() -> None:
    counted = tally(seen("start 0 1, done 0 2, start 1 9, start 1 14, done 1 15"), 2, KILLED_AT)
    assert (counted.lost, counted.started_twice, counted.completed_twice) == (0, 1, 0)
    assert (counted.interrupted, counted.started_again_s, counted.all_done_s) == (1, 4, 5)


def test_what_never_came_back_and_what_was_never_begun_are_lost() -> None:
    counted = tally(seen("start 0 1, done 0 2, start 1 9"), 3, KILLED_AT)
    assert (counted.lost, counted.interrupted, counted.started_again_s, counted.all_done_s) == (
        2,
        1,
        None,
        None,
    )


def test_a_job_that_was_done_twice_is_seen() -> None:
    counted = tally(seen("start 0 1, done 0 2, start 0 12, done 0 13"), 1, KILLED_AT)
    assert (counted.lost, counted.started_twice, counted.completed_twice, counted.interrupted) == (0, 1, 1, 0)
    assert counted.all_done_s == 0, "all were done before the kill"


@pytest.mark.parametrize(
    ("figures", "short"),
    [
        ({"lost": 0, "completed_twice": 0, "started_again_s": 15.4}, False),
        ({"lost": 1, "completed_twice": 0, "started_again_s": 15.4}, True),
        ({"lost": 0, "completed_twice": 1, "started_again_s": 15.4}, True),
        ({"lost": 0, "completed_twice": 0, "started_again_s": 17.1}, True),
        ({"lost": 0, "completed_twice": 0, "started_again_s": None}, True),
        ({"problem": "it did not start"}, True),
    ],
)
def test_our_own_rows_are_held_to_the_promise(figures: dict[str, object], short: bool) -> None:
    assert falls_short(figures) is short


def test_a_witness_is_read_as_it_was_written(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    assert read(witness) == []
    witness.write_text("start 3 1.500000\ndone 3 2.500000\n")
    assert read(witness) == [("start", 3, 1.5), ("done", 3, 2.5)]


def test_every_peer_has_an_adapter_and_a_name_of_its_own() -> None:
    adapters = Path(__file__).parents[2] / "benchmarks/scoreboard/adapters"
    assert {peer.adapter for peer in PEERS} == {path.stem for path in adapters.glob("*_peer.py")}
    assert len({peer.name for peer in PEERS}) == len(PEERS)
