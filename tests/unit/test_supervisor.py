"""The supervisor with real child processes: small Python programs."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local import supervised
from onceonly_jobs.local.children import Child
from onceonly_jobs.local.leftovers import MARK, Record, end_leftovers, save
from onceonly_jobs.local.lock import exclusive
from onceonly_jobs.local.output import Output
from onceonly_jobs.local.processes import Identity
from onceonly_jobs.local.supervisor import Stopped, Supervisor

PATIENCE_S = 60.0

# Appends its name and its pid to a file, then says it is ready; ends on SIGTERM unless told to be stubborn.
PROGRAM = """
import os, signal, subprocess, sys, time
name, directory, *traits = sys.argv[1:]
def note(what):
    with open(f"{directory}/events", "a") as file:
        file.write(f"{what} {name} {os.getpid()}\\n")
def end(number, frame):
    note(signal.Signals(number).name)
    if "stubborn" not in traits:
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
if "deaf-to-quit" not in traits:
    signal.signal(signal.SIGQUIT, lambda *_: (note("SIGQUIT"), os._exit(0)))
else:
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
if "fork" in traits:
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    helper = subprocess.Popen([sys.executable, "-c", code], stdout=None)
    note(f"helper={helper.pid}")
note("start")
print(f"{name} says hello", flush=True)
open(f"{directory}/{name}.ready", "w").close()
if "die" in traits:
    sys.exit("died on purpose")
if "misconfigured" in traits:
    print("error: the port is wrong", file=sys.stderr)
    sys.exit(2)
while True:
    time.sleep(600)
"""


class Stage:
    """A directory with the program, what it noted, and supervisors of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stream = io.StringIO()
        (directory / "program.py").write_text(PROGRAM)

    def child(self, name: str, *traits: str, **given: object) -> Child:
        ready = self.directory / f"{name}.ready"
        options: dict[str, object] = {"is_ready": ready.exists, "ready_file": ready, **given}
        argv = [sys.executable, str(self.directory / "program.py"), name, str(self.directory), *traits]
        env = {MARK: str(self.directory)}
        return Child(name=name, argv=argv, env=env, **options)  # type: ignore[arg-type]

    def supervisor(self) -> Supervisor:
        return Supervisor(self.directory, Output(self.stream))

    def events(self, kind: str) -> list[str]:
        """The names that noted this, in order."""
        return [line.split()[1] for line in self._lines() if line.split()[0] == kind]

    def pids(self) -> list[int]:
        """Every process that ever was, the helpers included."""
        lines = self._lines()
        helpers = [
            int(line.split()[0].removeprefix("helper=")) for line in lines if line.startswith("helper=")
        ]
        return [int(line.split()[2]) for line in lines if line.startswith("start")] + helpers

    def alive(self) -> list[int]:
        return [pid for pid in self.pids() if Identity.of(pid) is not None]

    def all_gone(self) -> bool:
        """Whether none is left; one that was killed exists until whoever adopted it has noticed."""
        deadline = time.monotonic() + PATIENCE_S
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.alive()

    def _lines(self) -> list[str]:
        path = self.directory / "events"
        return path.read_text().splitlines() if path.exists() else []

    def said(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    for pid in stage.alive():
        os.kill(pid, signal.SIGKILL)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is about other processes
            await asyncio.sleep(0.02)


def test_stages_start_in_order_and_end_in_reverse(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("server", stop_signal=signal.SIGINT))
            assert stage.events("start") == ["server"]
            await supervisor.start(stage.child("api"), stage.child("worker"))

    asyncio.run(scenario())
    assert sorted(stage.events("start")[1:]) == ["api", "worker"]
    assert sorted(stage.events("SIGTERM")) == ["api", "worker"]
    last = (stage.directory / "events").read_text().splitlines()[-1]
    assert last.startswith("SIGINT server")
    assert stage.all_gone()


def test_output_is_shown_under_the_name(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("api"))

    asyncio.run(scenario())
    assert "api      | api says hello\n" in stage.said()


def test_hidden_lines_are_not_shown_and_the_last_words_are(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(
                stage.child("api", "misconfigured", hide=re.compile("hello"), is_ready=lambda: False)
            )

    with pytest.raises(ConfigError):
        asyncio.run(scenario())
    assert "hello" not in stage.said()
    assert "the port is wrong" in stage.said()


def test_a_child_that_dies_is_started_again(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("worker"))
            os.kill(stage.pids()[0], signal.SIGKILL)
            await _until(lambda: "worker is ready again" in stage.said())

    asyncio.run(scenario())
    assert stage.events("start") == ["worker", "worker"]
    assert "worker was ended by signal 9; starting again in 0.5 s" in stage.said()


def test_what_a_dead_child_leaves_is_ended_before_it_starts_again(stage: Stage) -> None:
    """A worker's own children would work on, and hold its output, without it."""

    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("worker", "fork"))
            worker, helper = stage.pids()
            os.kill(worker, signal.SIGKILL)
            await _until(lambda: Identity.of(helper) is None)
            await _until(lambda: len(stage.events("start")) == 2)

    asyncio.run(scenario())
    assert stage.all_gone()


def test_the_delay_doubles_up_to_its_limit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(supervised, "LONGEST_DELAY_S", 0.03)
    monkeypatch.setattr(supervised, "FAILED_STARTS", 1000)  # it may die before anybody has seen it ready

    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("worker", "die", is_ready=lambda: True))
            await _until(lambda: len(_delays(stage)) >= 4)

    asyncio.run(scenario())
    assert _delays(stage)[:4] == ["0.01", "0.02", "0.03", "0.03"]


def test_a_healthy_life_resets_the_delay(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "HEALTHY_AFTER_S", 0.0)
    monkeypatch.setattr(supervised, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(supervised, "FAILED_STARTS", 1000)  # it may die before anybody has seen it ready

    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("worker", "die", is_ready=lambda: True))
            await _until(lambda: len(_delays(stage)) >= 3)

    asyncio.run(scenario())
    assert set(_delays(stage)) == {"0.01"}


def _delays(stage: Stage) -> list[str]:
    return re.findall(r"starting again in (\S+) s", stage.said())


def test_a_misconfigured_child_ends_the_start_with_its_words(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("server"))
            await supervisor.start(stage.child("api", "misconfigured", is_ready=lambda: False))

    with pytest.raises(ConfigError, match="api ended with status 2: the port is wrong"):
        asyncio.run(scenario())
    assert stage.events("start") == ["server", "api"]
    assert stage.all_gone()


def test_a_child_that_never_starts_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "FIRST_DELAY_S", 0.01)

    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(Child(name="api", argv=[str(stage.directory / "missing")]))

    with pytest.raises(ConfigError, match=r"api could not be started: .*missing"):
        asyncio.run(scenario())


def test_a_child_that_is_never_ready_is_named(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            late = stage.child("beat", is_ready=lambda: False)
            await supervisor.start(stage.child("api"), late, timeout_s=3)

    with pytest.raises(ConfigError, match=r"not ready after 3 s: beat, which said last: \S"):
        asyncio.run(scenario())
    assert stage.all_gone()


def test_a_stuck_child_is_urged_then_killed_with_all_it_started(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(
                stage.child("urged", "stubborn", insist_after_s=0.3, kill_after_s=PATIENCE_S),
                stage.child(
                    "killed", "stubborn", "deaf-to-quit", "fork", insist_after_s=0.2, kill_after_s=0.4
                ),
            )

    asyncio.run(scenario())
    assert stage.events("SIGQUIT") == ["urged"]
    assert "killed still runs after 0.4 s: killed" in stage.said()
    assert stage.all_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_wait(stage: Stage, number: signal.Signals) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("api"))
            asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), number)
            async with asyncio.timeout(PATIENCE_S):
                await supervisor.wait()

    before = signal.signal(number, signal.SIG_DFL)  # nohup has SIGHUP ignored, which is kept to
    try:
        asyncio.run(scenario())
    finally:
        signal.signal(number, before)
    assert stage.all_gone()


def test_a_signal_ends_a_start(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGTERM)
            await supervisor.start(stage.child("api", is_ready=lambda: False))

    with pytest.raises(Stopped):
        asyncio.run(scenario())
    assert stage.all_gone()


def test_a_second_signal_ends_everything_at_once(stage: Stage) -> None:
    """Without it, this child would hold the end up for longer than the test may take."""

    async def signals() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await _until(lambda: stage.events("SIGTERM") != [])
        os.kill(os.getpid(), signal.SIGINT)

    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks, stage.supervisor() as supervisor:
            await supervisor.start(stage.child("worker", "stubborn", "fork", kill_after_s=600))
            tasks.create_task(signals())
            await supervisor.wait()

    asyncio.run(scenario())
    assert stage.events("SIGTERM") == ["worker"]
    assert stage.all_gone()


SUPERVISING = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_supervisor import Stage
from onceonly_jobs.local.lock import exclusive
async def scenario():
    stage = Stage(Path({directory!r}))
    with exclusive(stage.directory):
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("server"))
            await supervisor.start(stage.child("worker", "fork"))
            print("started", flush=True)
            await supervisor.wait()
asyncio.run(scenario())
"""


def _supervising(stage: Stage) -> subprocess.Popen[str]:
    """A supervisor in a process of its own, its children ready."""
    code = textwrap.dedent(SUPERVISING).format(
        tests=str(Path(__file__).parent), directory=str(stage.directory)
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_what_a_killed_supervisor_leaves_is_found_and_ended(stage: Stage) -> None:
    process = _supervising(stage)
    process.kill()
    process.communicate()
    assert len(stage.alive()) == 3
    with exclusive(stage.directory):  # the kernel gave the lock back, and no child has it
        said: list[str] = []
        end_leftovers(stage.directory, said.append, grace_s=1)
    assert stage.all_gone()
    assert stage.events("SIGTERM") == ["worker", "server"]
    assert any("worker" in line for line in said)


def test_leftovers_on_no_list_are_found_by_their_mark(stage: Stage) -> None:
    """A supervisor may be killed between the start of a child and the note of it."""
    process = _supervising(stage)
    process.kill()
    process.communicate()
    (stage.directory / "run" / "children.json").unlink()
    end_leftovers(stage.directory, lambda text: None, grace_s=1)
    assert stage.all_gone()


def test_a_process_that_got_a_leftovers_number_is_left_alone(stage: Stage) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        created_at = psutil.Process(stranger.pid).create_time() - 3600
        (stage.directory / "run").mkdir()
        save(stage.directory, [Record("api", stranger.pid, created_at, signal.SIGTERM, 0)])
        end_leftovers(stage.directory, lambda text: None, grace_s=1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_damaged_list_is_no_obstacle(stage: Stage) -> None:
    (stage.directory / "run").mkdir()
    (stage.directory / "run" / "children.json").write_text('[{"pid": ')
    end_leftovers(stage.directory, lambda text: None, grace_s=1)


def test_the_list_names_what_runs_now(stage: Stage) -> None:
    def listed() -> list[str]:
        return [
            entry["name"] for entry in json.loads((stage.directory / "run" / "children.json").read_text())
        ]

    async def scenario() -> None:
        async with stage.supervisor() as supervisor:
            await supervisor.start(stage.child("api"), stage.child("worker"))
            assert sorted(listed()) == ["api", "worker"]

    asyncio.run(scenario())
    assert listed() == []


def test_a_directory_has_one_holder(stage: Stage) -> None:
    process = _supervising(stage)
    try:
        with (
            pytest.raises(ConfigError, match=rf"already running \(pid {process.pid}\)"),
            exclusive(stage.directory),
        ):
            pass
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    with exclusive(stage.directory):
        pass


class Unwritable(io.StringIO):
    """A terminal that is gone, or a file on a full disk."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _: str) -> int:
        raise self.error


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_line_that_cannot_be_written_stops_nothing(number: int) -> None:
    Output(Unwritable(OSError(number, os.strerror(number)))).line("up", "hello")


def test_a_signal_ends_the_wait_whatever_becomes_of_its_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Supervisor(tmp_path, Output(Unwritable(RuntimeError()))) as supervisor:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                await supervisor.wait()

    asyncio.run(scenario())


def test_names_are_coloured_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        Output(stream).line("api", "hello")
    assert "\x1b[" in terminal.getvalue()
    assert file.getvalue() == "api      | hello\n"
