"""What a user gets from the wheel, away from any checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sqlalchemy as sa

from onceonly_jobs.store import revisions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel's files."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(code: str, site: Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code against the wheel: -S and -P keep the checkout's editable install and folder out."""
    packages = str(Path(sa.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-S", "-P", "-c", code],
        cwd=cwd,
        env={**os.environ, **env, "PYTHONPATH": os.pathsep.join([str(site), packages])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_the_product_and_the_migrations_but_no_deployments_code(unpacked: Path) -> None:
    assert (unpacked / "onceonly_jobs/migrations/env.py").is_file()
    assert list((unpacked / "onceonly_jobs/migrations/versions").glob("0001_*.py"))
    assert (unpacked / "onceonly_jobs/py.typed").is_file()
    assert not (unpacked / "workers").exists()
    assert not (unpacked / "tests").exists()


def test_the_wheel_has_the_examples_and_the_command_that_runs_them(unpacked: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv[1:] = ['examples', 'list']; from onceonly_jobs.cli.main import main; main()"
    done = python(code, unpacked, tmp_path)
    assert done.returncode == 0, done.stderr
    first, *names = done.stdout.splitlines()
    assert first == f"In {unpacked}/onceonly_jobs/examples:"
    assert len(names) == len(list((ROOT / "examples").rglob("[a-z]*.py")))
    assert (unpacked / "onceonly_jobs/examples/ai/_tools.py").is_file()


def test_migrations_run_from_the_wheel(unpacked: Path, owner_url: str, tmp_path: Path) -> None:
    code = (
        "import onceonly_jobs, os\n"
        "from onceonly_jobs.store import migrations, revisions\n"
        f"assert onceonly_jobs.__file__.startswith({str(unpacked)!r}), onceonly_jobs.__file__\n"
        "url = os.environ['URL']\n"
        "migrations.upgrade(url, revision='base'); migrations.upgrade(url)\n"
        "print(migrations.current(url), revisions.scripts_path())"
    )
    done = python(code, unpacked, tmp_path, URL=owner_url)
    assert done.returncode == 0, done.stderr
    revision, path = done.stdout.split()
    assert revision == revisions.head()
    assert path.startswith(str(unpacked))


WITHOUT_SERVER = """
import importlib.abc, pkgutil, sys

class Missing(importlib.abc.MetaPathFinder):
    server = {"langchain_core", "fastapi", "starlette", "sqlalchemy", "psycopg", "celery", "kombu", "redis", "alembic",
              "pydantic_settings", "structlog", "typer", "rich", "uvicorn", "limits", "psutil", "flower",
              "flask", "django", "asgiref"}
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in self.server:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
import onceonly_jobs, onceonly_jobs.errors, onceonly_jobs.client as client, onceonly_jobs.contracts as contracts
for package in (contracts, client):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        __import__(module.name)
import onceonly_jobs.integrations.langchain as langchain
from onceonly_jobs import ApiError, OnceOnly, idempotent, idempotent_ai
try:
    langchain.make_idempotent_tool(None, client=OnceOnly("key"))
except ImportError as error:
    assert "pip install langchain-core" in str(error)
import onceonly_jobs.integrations.asgi, onceonly_jobs.integrations.wsgi
for name in ("celery", "django"):
    try:
        __import__(f"onceonly_jobs.integrations.{name}")
    except ImportError as error:
        assert f"pip install 'onceonly-jobs[{name}]'" in str(error), error
    else:
        raise AssertionError(name)
print("clean")
"""


def test_the_plain_install_needs_nothing_of_the_server(unpacked: Path, tmp_path: Path) -> None:
    done = python(WITHOUT_SERVER, unpacked, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr


def test_the_command_of_a_plain_install_says_what_to_install(unpacked: Path, tmp_path: Path) -> None:
    code = WITHOUT_SERVER.replace('print("clean")', "import onceonly_jobs.cli.main")
    done = python(code, unpacked, tmp_path)
    assert done.returncode == 2
    assert "pip install 'onceonly-jobs[all]'" in done.stderr
    assert "Traceback" not in done.stderr
