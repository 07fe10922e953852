"""`onceonly-jobs up` as a user meets it: every process real."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from onceonly_jobs.local.devenv import read_dev_env
from onceonly_jobs.local.leftovers import MARK
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.local.subprocess_system import LocalSystem

UP = [sys.executable, "-m", "onceonly_jobs.cli.main", "up"]
PATIENCE_S = 60.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    with LocalSystem(data_dir=tmp_path_factory.mktemp("up") / "data", workers=1, flower=True) as running:
        yield running


def _failing(*options: str, **env: str) -> str:
    """What `up` says on stderr when it refuses; exactly one line, exit status 2."""
    done = subprocess.run(
        [*UP, *options], capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, **env}
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def _mine(data_dir: Path) -> dict[int, str]:
    """The processes that belong to a data directory, the supervisor apart."""
    found = {}
    for process in psutil.process_iter():
        try:
            # Redis writes its title over its environment, but stays in the directory.
            marked = process.environ().get(MARK) == str(data_dir) or process.cwd() == str(data_dir)
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _me(system: LocalSystem) -> httpx.Response:
    return httpx.get(
        f"{system.base_url}/me", headers={"Authorization": f"Bearer {system.api_key}"}, timeout=30
    )


def test_everything_answers_once_dev_env_is_written(system: LocalSystem) -> None:
    origin = system.base_url.removesuffix("/v1")
    assert origin != system.base_url
    assert httpx.get(f"{origin}/health").status_code == 200
    assert httpx.get(f"{origin}/ready").status_code == 200
    assert _me(system).status_code == 200
    assert httpx.get(f"{system.variables['ONCEONLY_FLOWER_URL']}/healthcheck").status_code == 200
    psycopg.connect(system.database_url).close()


def test_dev_env_is_private_and_a_shell_can_source_it(system: LocalSystem) -> None:
    path = system.data_dir / "dev.env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    names = "$ONCEONLY_BASE_URL $ONCEONLY_API_KEY $ONCEONLY_BROKER_URL"
    script = f'set -a; . {shlex.quote(str(path))}; echo "{names}"'
    shown = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [system.base_url, system.api_key, system.broker_url]


def test_the_summary_says_where_things_are_and_what_to_do(system: LocalSystem) -> None:
    log = system.log()
    says = ("dev.env", "/docs", "Ctrl-C", "ONCEONLY_TOOL_ALLOW is `loopback` here")
    for needed in (system.base_url, system.variables["ONCEONLY_FLOWER_URL"], *says):
        assert needed in log
    assert system.api_key not in log


def test_it_makes_a_key_for_secrets_and_keeps_it(system: LocalSystem) -> None:
    key = system.data_dir / "secret.key"
    assert system.variables["ONCEONLY_SECRET_KEY"] == key.read_text().strip()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_text().strip()) >= 32
    assert key.read_text().strip() not in system.log()


def test_the_serving_role_cannot_change_the_tables(system: LocalSystem) -> None:
    with psycopg.connect(system.database_url) as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("CREATE TABLE intruder (n int)")


def test_a_second_up_in_the_same_directory_is_refused(system: LocalSystem) -> None:
    message = _failing("--data-dir", str(system.data_dir), "--port", "0")
    assert f"already running (pid {system.pid})" in message
    assert _me(system).status_code == 200


def test_a_killed_part_is_started_again(system: LocalSystem) -> None:
    api = next(pid for pid, words in _mine(system.data_dir).items() if " api --host" in words)
    os.kill(api, signal.SIGKILL)
    _until(lambda: "api is ready again" in system.log())
    assert _me(system).status_code == 200


def test_a_killed_postgres_is_started_again_with_its_data(system: LocalSystem) -> None:
    with psycopg.connect(system.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity").fetchone()
    assert row is not None
    postmaster = int((system.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    _until(lambda: "postgres is ready again" in system.log())
    _until(lambda: _me(system).status_code == 200)


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = _failing("--data-dir", str(tmp_path / "data"), "--port", port)
    assert port in message
    assert "--port" in message


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/onceonly"])
def test_an_unusable_directory_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert "data directory" in _failing("--data-dir", str(tmp_path / place), "--port", "0")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ONCEONLY_DATABASE_URL", "mysql://localhost/x"),
        ("ONCEONLY_BROKER_URL", "localhost"),
        ("ONCEONLY_WORKER_LEASE_S", "soon"),
        ("ONCEONLY_SECRET_KEY", "short"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str) -> None:
    assert name in _failing("--data-dir", str(tmp_path), "--port", "0", **{name: value})


@pytest.mark.parametrize(
    ("name", "scheme"), [("ONCEONLY_DATABASE_URL", "postgresql"), ("ONCEONLY_BROKER_URL", "redis")]
)
def test_an_unreachable_server_is_named_without_its_password(tmp_path: Path, name: str, scheme: str) -> None:
    port = free_port()
    url = f"{scheme}://user:hushhush@127.0.0.1:{port}/0"
    message = _failing("--data-dir", str(tmp_path), "--port", "0", **{name: url})
    assert name in message
    assert str(port) in message
    assert "hushhush" not in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_and_the_data_stays(tmp_path: Path, number: signal.Signals) -> None:
    """Also the key: the next start gives the same one, so programs that have it go on."""
    system = LocalSystem(data_dir=tmp_path / "data", workers=1)
    with system:
        key, database_url = system.api_key, system.database_url
        words = " ".join(_mine(system.data_dir).values())
        assert all(part in words for part in ("postgres", "redis-server", " api ", " worker ", " beat"))
        supervisor = psutil.Process(system.pid)
        supervisor.send_signal(number)
        assert supervisor.wait(PATIENCE_S) == 0
        assert _mine(system.data_dir) == {}
    with system:
        assert (system.api_key, system.database_url) == (key, database_url)
        assert _me(system).status_code == 200
    assert _mine(system.data_dir) == {}


def test_a_new_up_recovers_from_a_killed_one(tmp_path: Path) -> None:
    port = free_port()
    first = LocalSystem(data_dir=tmp_path / "data", port=port, workers=1)
    first.start()
    try:
        os.kill(first.pid, signal.SIGKILL)
        _until(lambda: not psutil.pid_exists(first.pid) or psutil.Process(first.pid).status() == "zombie")
        left = set(_mine(first.data_dir))
        assert left
        with LocalSystem(data_dir=tmp_path / "data", port=port, workers=1) as second:
            assert second.api_key == first.api_key
            assert _me(second).status_code == 200
            assert left.isdisjoint(_mine(second.data_dir))
        assert _mine(first.data_dir) == {}
    finally:
        first.stop()


@pytest.mark.parametrize("after_s", [0.9, 2.5])
def test_a_kill_during_the_start_is_no_obstacle(tmp_path: Path, after_s: float) -> None:
    """Wherever it strikes: in `initdb`, before roles exist, between a migration and the key."""
    port = free_port()
    options = ["--data-dir", str(tmp_path / "data"), "--port", str(port), "--no-flower"]
    with (tmp_path / "log").open("w") as log:
        killed = subprocess.Popen([*UP, *options], stdout=log, stderr=log, start_new_session=True)
        time.sleep(after_s)
        killed.kill()
        killed.wait()
    with LocalSystem(data_dir=tmp_path / "data", port=port, workers=1) as system:
        assert _me(system).status_code == 200
    assert _mine(system.data_dir) == {}


def test_it_needs_no_repository(tmp_path: Path) -> None:
    """Installed alone and started anywhere, with the default directory beside."""
    process = subprocess.Popen(
        [*UP, "--port", str(free_port()), "--no-flower", "--workers", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        dev_env = tmp_path / ".onceonly" / "dev.env"
        _until(lambda: dev_env.exists() or process.poll() is not None)
        base_url = read_dev_env(dev_env)["ONCEONLY_BASE_URL"]
        assert httpx.get(f"{base_url.removesuffix('/v1')}/ready").status_code == 200
    finally:
        process.terminate()
        summary, _ = process.communicate(timeout=PATIENCE_S)
    assert ". .onceonly/dev.env" in summary
    assert "Flower" not in summary
    assert "ONCEONLY_FLOWER_URL" not in read_dev_env(dev_env)
