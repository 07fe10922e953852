"""`onceonly-jobs runs` and `webhook`, run as commands against a real database, and in a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
from support.tool_server import ToolServer
from typer.testing import CliRunner

from onceonly_jobs.cli.main import build
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import claims, runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.worker.courier import Courier

JOB = JobSpec(name="report", queue="q", max_attempts=3)
PATIENCE_S = 30.0
COLUMNS, ROWS = 150, 30
SECRET_KEY = "0123456789abcdef0123456789abcdef"
ARGV = [sys.executable, "-m", "onceonly_jobs.cli.main"]


@contextmanager
def interruptible() -> Iterator[None]:
    """Children inherit an ignored SIGINT, as a shell gives it to what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Cli:
    """The commands over one database, and a worker's part in what they show."""

    def __init__(self, db: Database, caller: Caller, database_url: str) -> None:
        self.db = db
        self.caller = caller
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ONCEONLY_")}
        self.env = plain | {"ONCEONLY_DATABASE_URL": database_url, "ONCEONLY_SECRET_KEY": SECRET_KEY}

    def __call__(self, *words: str, typed: str | None = None) -> str:
        """What the command writes, run in this process. Raises ConfigError where it does."""
        ran = CliRunner().invoke(build(list(words)), words, env=self.env, input=typed)
        if isinstance(ran.exception, ConfigError):
            raise ran.exception
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    def started(self, *words: str) -> subprocess.Popen[str]:
        with interruptible():
            return subprocess.Popen([*ARGV, *words], env=self.env, stdout=subprocess.PIPE, text=True)

    def queued(self, key: str, **metadata: Any) -> Taken:
        taking = runs.job_taking(self.caller, JOB, key=key, ttl_s=600, metadata=metadata or None)
        taken = self.db.run(runs.taking_operation(self.caller, taking), self.caller, taking)
        assert isinstance(taken, Taken)
        return taken

    def claimed(self, key: str, **metadata: Any) -> Claim:
        claim = self.db.run(claims.claim, self.queued(key, **metadata).run.id, "report", 600.0, None)
        assert claim is not None
        return claim


@pytest.fixture
def cli(db: Database, caller: Caller, database_url: str) -> Cli:
    return Cli(db, caller, database_url)


@contextmanager
def terminal(cli: Cli, *words: str) -> Iterator[Terminal]:
    """The command in a terminal of its own."""
    with interruptible():
        pid, file = pty.fork()
        if pid == 0:
            os.execve(ARGV[0], [*ARGV, *words], cli.env | {"TERM": "xterm-256color"})
    fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    running = Terminal(pid, file)
    try:
        yield running
    finally:
        if running.status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(file)


class Terminal:
    def __init__(self, pid: int, file: int) -> None:
        self._pid = pid
        self._file = file
        self.screen = ""
        self.status: int | None = None

    def until(self, seen: Callable[[str], bool]) -> None:
        """Read until what was written since the last time satisfies `seen`."""
        begin, end = len(self.screen), time.monotonic() + PATIENCE_S
        while not seen(self.screen[begin:]):
            assert time.monotonic() < end, self.screen[begin:]
            if select.select([self._file], [], [], 0.1)[0]:
                self.screen += os.read(self._file, 65_536).decode(errors="replace")

    def press(self, keys: bytes) -> int:
        """Press keys that end the command; gives its exit status."""
        os.write(self._file, keys)
        end = time.monotonic() + PATIENCE_S
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return self.status
            assert time.monotonic() < end
            if select.select([self._file], [], [], 0.05)[0]:
                try:
                    self.screen += os.read(self._file, 65_536).decode(errors="replace")
                except OSError:  # the other end is closed: it is ending
                    continue


def test_runs_are_listed_by_what_they_are(cli: Cli) -> None:
    cli.queued("invoice:1", agent_id="bot")
    cli.db.run(claims.fail, cli.claimed("invoice:2"), "boom", None, 600)
    cli.db.run(claims.complete, cli.claimed("[red]other\x1b[31m"), {}, 600)
    everything = cli("runs", "list")
    assert [line.split()[0] for line in everything.splitlines()[1:]] == [
        "[red]other\ufffd[31m",
        "invoice:2",
        "invoice:1",
    ]
    assert "\x1b" not in everything
    for words, key in (
        (["--state", "failed"], "invoice:2"),
        (["--state", "active"], "invoice:1"),
        (["--agent", "bot"], "invoice:1"),
        (["--key", "[red]"], "[red]other"),
        (["--limit", "1"], "[red]other"),
        (["--offset", "2"], "invoice:1"),
    ):
        (line,) = cli("runs", "list", *words).splitlines()[1:]
        assert line.startswith(key), words
    assert len(cli("runs", "list", "--job", "other").splitlines()) == 1
    assert len(cli("runs", "list", "--tenant", "nobody").splitlines()) == 1
    with pytest.raises(ConfigError, match="one of queued"):
        cli("runs", "list", "--state", "odd")


def test_a_run_is_shown_with_its_timeline(cli: Cli) -> None:
    claim = cli.claimed("k", run_id="night")
    cli.db.run(claims.report_progress, claim, {"fraction": 0.5}, "half way")
    cli.db.run(claims.retry, claim, 30, "handler_error", "again, please")
    by_key, by_run_id = (
        cli("runs", "show", "k", "--tenant", "t"),
        cli("runs", "show", "night", "--tenant", "t"),
    )
    for expected in ("state     queued", "attempt   1 of 3", "run id    night", "half way"):
        assert expected in by_key
    events = [line.split()[3] for line in by_run_id.splitlines()[1:]]
    assert events == ["run_queued", "run_started", "progress", "run_retried"]
    assert by_key.endswith(by_run_id)
    assert "again, please due in 30.0s" in by_run_id
    with pytest.raises(ConfigError, match="no run and no timeline"):
        cli("runs", "show", "k")


def test_tail_follows_a_run_to_its_end(cli: Cli) -> None:
    claim = cli.claimed("k")
    tail = cli.started("runs", "tail", "k", "--tenant", "t")
    out: IO[str] = tail.stdout  # type: ignore[assignment]
    assert "run_queued" in out.readline()
    assert "run_started" in out.readline()
    cli.db.run(claims.report_log, claim, "a line", {})
    assert "a line" in out.readline()
    cli.db.run(claims.complete, claim, {}, 600)
    assert "run_finished  completed" in out.readline()
    assert tail.wait(PATIENCE_S) == 0


def test_tail_of_everything_ends_with_ctrl_c(cli: Cli) -> None:
    cli.queued("before")
    tail = cli.started("runs", "tail", "--tenant", "t")
    out: IO[str] = tail.stdout  # type: ignore[assignment]
    stop = threading.Event()

    def keep_on() -> None:
        number = 0
        while not stop.wait(0.2):
            number += 1
            cli.queued(f"after:{number}")

    busy = threading.Thread(target=keep_on)
    busy.start()
    try:
        assert "after:" in out.readline()
    finally:
        stop.set()
        busy.join()
    tail.send_signal(signal.SIGINT)
    rest, _ = tail.communicate(timeout=PATIENCE_S)
    assert (tail.returncode, "Traceback" in rest) == (0, False)


def test_watch_draws_a_table_that_changes_until_ctrl_c(cli: Cli) -> None:
    claim = cli.claimed("report:1")
    cli.db.run(claims.report_progress, claim, {"fraction": 0.25}, None)
    cli.queued("report:2")
    with terminal(cli, "runs", "watch", "--interval", "0.1", "--tenant", "t") as watch:
        watch.until(lambda seen: "report:2" in seen and "25%" in seen and "1 queued" in seen)
        cli.db.run(claims.report_progress, claim, {"fraction": 0.75}, None)
        watch.until(lambda seen: "75%" in seen)
        cli.db.run(claims.fail, claim, "boom", "it [red]broke", 600)
        watch.until(lambda seen: "failed" in seen and "it [red]broke" in seen and "0 in progress" in seen)
        assert watch.press(b"\x03") == 0
        assert "Traceback" not in watch.screen
        assert watch.screen.rstrip("\r\n").endswith("\x1b[?25h"), "the cursor is shown again"


def test_watch_without_a_terminal_writes_a_line_per_change(cli: Cli) -> None:
    claim = cli.claimed("report:1")
    watch = cli.started("runs", "watch", "--interval", "0.1")
    out: IO[str] = watch.stdout  # type: ignore[assignment]
    assert "report:1  in_progress  report  1 of 3" in out.readline()
    cli.db.run(claims.report_progress, claim, {"fraction": 0.25}, None)
    assert '{"fraction": 0.25}' in out.readline()
    cli.db.run(claims.complete, claim, {}, 600)
    assert "report:1  completed" in out.readline()
    watch.send_signal(signal.SIGINT)
    assert watch.wait(PATIENCE_S) == 0


def test_a_webhook_from_its_setting_to_its_removal(cli: Cli, database_url: str) -> None:
    tenant = ("--tenant", "t")
    with pytest.raises(ConfigError, match="no webhook is set"):
        cli("webhook", "show", *tenant)
    with pytest.raises(ConfigError, match=r"secret: .* at least 8"):
        cli("webhook", "set", "https://x.example/", "--secret", "no")
    with ToolServer() as receiver:
        said = cli("webhook", "set", receiver.url, *tenant, typed="a-shared-secret\n")
        assert "a-shared-secret" not in said
        assert "***ret" in cli("webhook", "show", *tenant)
        message_id = cli("webhook", "test", *tenant).strip()
        settings = Settings.load(database_url=database_url, secret_key=SECRET_KEY, tool_allow="loopback")
        courier = Courier(settings)
        courier.tick()
        courier.close()
        (got,) = receiver.requests
        assert json.loads(got.body)["id"] == message_id
    assert "delivered" in cli("webhook", "deliveries", *tenant)
    assert "0 to be tried again" in cli("webhook", "retry", *tenant)
    assert "removed http" in cli("webhook", "remove", *tenant)
