"""How processes share what they count, and who gets to see it."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from onceonly_jobs.metrics import Exporter, permitted

COUNTING = """
import os, sys
import prometheus_client  # as Celery's plugins do, before anybody has asked for sharing
from onceonly_jobs import metrics

directory = metrics.share_between_processes()

def child():
    pid = os.fork()
    if pid == 0:
        metrics.MESSAGES.labels("claimed").inc(2)
        metrics.DATABASE_CONNECTIONS.labels("in_use").inc()
        metrics.ATTEMPT_SECONDS.labels("echo").observe(0.2)
        os._exit(0)
    os.waitpid(pid, 0)

child()
child()
metrics.MESSAGES.labels("claimed").inc()
metrics.DATABASE_CONNECTIONS.labels("in_use").inc(5)
sys.stdout.buffer.write(metrics.exposition())
metrics.forget(directory)
assert not directory.exists()
"""


def run(code: str, **env: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **env},
    ).stdout


def test_children_that_have_ended_still_count_but_hold_nothing() -> None:
    text = run(COUNTING)
    assert 'onceonly_messages_total{outcome="claimed"} 5.0' in text
    assert 'onceonly_attempt_seconds_count{job_name="echo"} 2.0' in text
    assert 'onceonly_database_connections{state="in_use"} 5.0' in text


def test_a_directory_of_the_operators_is_used_and_kept(tmp_path: Path) -> None:
    code = """
from onceonly_jobs import metrics
assert metrics.share_between_processes() is None
metrics.MESSAGES.labels("claimed").inc()
"""
    run(code, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert [path.suffix for path in tmp_path.iterdir()] == [".db"]


def test_a_directory_that_is_gone_stops_no_work(tmp_path: Path) -> None:
    """Something cleans up the temporary folder, and a new child counts: it must not fail its run for that."""
    code = """
from onceonly_jobs import metrics
metrics.share_between_processes()
metrics.count(metrics.MESSAGES, "claimed")
metrics.observe(metrics.ATTEMPT_SECONDS, "echo", seconds=1)
metrics.put(metrics.QUEUE_MESSAGES, "q", value=1)
print("worked")
"""
    assert run(code, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "gone")) == "worked\n"


FORKING = """
import os, signal, threading
from onceonly_jobs import metrics

counting, go_on = threading.Event(), threading.Event()

class Slow(float):
    def __radd__(self, other):  # the library adds under its lock, which is one for all figures
        counting.set()
        go_on.wait()
        return other + float(self)

directory = metrics.share_between_processes()
thread = threading.Thread(target=metrics.count, args=(metrics.MESSAGES, "claimed"), kwargs={"by": Slow(2)})
thread.start()
counting.wait()
os.register_at_fork(before=go_on.set)
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    metrics.count(metrics.MESSAGES, "claimed")
    metrics.observe(metrics.ATTEMPT_SECONDS, "echo", seconds=1)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
metrics.count(metrics.MESSAGES, "claimed")
thread.join()
print(metrics.exposition().decode())
metrics.forget(directory)
"""


def test_a_child_counts_whatever_its_parent_counted_when_it_forked() -> None:
    assert 'onceonly_messages_total{outcome="claimed"} 4.0' in run(FORKING)


def test_an_exporter_shows_its_figures_to_whoever_has_the_token() -> None:
    exporter = Exporter("127.0.0.1", 0, "a-token-of-mine")
    url = f"http://127.0.0.1:{exporter.port}/metrics"
    try:
        request = urllib.request.Request(url, headers={"Authorization": "Bearer a-token-of-mine"})
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert b"onceonly_attempts" in answer.read()
        for wrong, status in ((url, 401), (url.replace("/metrics", "/"), 404)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(wrong)
            assert refused.value.code == status
            refused.value.close()
    finally:
        exporter.close()


@pytest.mark.parametrize(
    ("header", "let_in"),
    [
        ("Bearer right-token", True),
        ("bearer  right-token ", True),
        ("Bearer right-toke", False),
        ("Bearer right-token2", False),
        ("Basic right-token", False),
        ("Bearer ключ", False),
        ("Bearer", False),
        ("", False),
    ],
)
def test_the_token_has_to_be_the_whole_token(header: str, let_in: bool) -> None:
    assert permitted(header, "right-token") is let_in
