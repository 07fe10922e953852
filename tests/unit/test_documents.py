"""What the documents say is what the code does."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from onceonly_jobs.client import OnceOnly, exceptions
from onceonly_jobs.client.ai import AiClient
from onceonly_jobs.client.dead import DeadClient
from onceonly_jobs.client.governance import GovernanceClient
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.states import MOVES, RunState
from onceonly_jobs.errors import ConfigError

ROOT = Path(__file__).parents[2]


def configuration_table() -> str:
    """docs/CONFIGURATION.md's table, made from the settings themselves."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `ONCEONLY_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def test_the_configuration_table_lists_every_setting() -> None:
    text = (ROOT / "docs/CONFIGURATION.md").read_text()
    assert configuration_table() in text, f"expected:\n{configuration_table()}"


def test_the_document_about_settings_names_every_variable_that_others_name() -> None:
    settings = (ROOT / "docs/CONFIGURATION.md").read_text()
    documents = [ROOT / "README.md", ROOT / "examples/README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for path in documents for name in re.findall(r"ONCEONLY_[A-Z_]*[A-Z]", path.read_text())}
    # One is a setting of Django's; those of the tests are in CONTRIBUTING.md.
    elsewhere = {
        name for name in named if name == "ONCEONLY_IDEMPOTENCY" or name.startswith("ONCEONLY_TEST_")
    }
    assert {name for name in named - elsewhere if not re.search(rf"{name}\b", settings)} == set()


def test_what_all_installs_is_enough_for_the_examples() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any("langchain_core" in path.read_text() for path in (ROOT / "examples").rglob("*.py"))
    assert "langchain" in re.findall(r"\w+", extras["all"][0])


def test_the_state_diagram_draws_exactly_the_legal_moves() -> None:
    text = (ROOT / "docs/STATES.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+):", text, flags=re.MULTILINE))
    assert drawn == {(str(old), str(new)) for old, moves in MOVES.items() for new in moves}
    assert set(MOVES) == set(RunState)


def test_the_compose_file_is_valid_and_complete() -> None:
    """It can't be started without Docker; what can be checked is its form."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"postgres", "redis", "migrate", "api", "worker", "scheduler", "flower"}
    for name, service in services.items():
        assert "image" in service or service["build"] == "."
        assert "healthcheck" in service or name == "migrate"
        for needed in service.get("depends_on", {}):
            assert needed in services
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:")
        for mounted in service.get("volumes", []):
            assert mounted.split(":")[0] in compose["volumes"]
    assert (ROOT / "Dockerfile").is_file()


def test_the_clients_document_names_every_method_error_and_setting() -> None:
    text = (ROOT / "docs/CLIENT.md").read_text()
    places = {"": OnceOnly, "ai.": AiClient, "gov.": GovernanceClient, "dead.": DeadClient}
    methods = [
        f"{place}{name}"
        for place, cls in places.items()
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and not name.startswith("_") and not name.endswith("_async")
    ]
    settings = list(inspect.signature(OnceOnly).parameters)
    for name in [*methods, *settings, *exceptions.__all__]:
        assert re.search(rf"`{re.escape(name)}`", text), name


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ONCEONLY_DATABASE_URL", "mysql://x"),
        ("ONCEONLY_BROKER_URL", "not a url"),
        ("ONCEONLY_WORKER_LEASE_S", "soon"),
        ("ONCEONLY_DUPLICATE_STATUS_CODE", "418"),
        ("ONCEONLY_SECRET_KEY", "short"),
        ("ONCEONLY_WORKER_HEARTBEAT_S", "14"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"^{variable}: "):
        Settings.load()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCEONLY_RATE_LIMIT", "")
    monkeypatch.setenv("ONCEONLY_DEFAULT_PLAN", "")
    assert (Settings.load().rate_limit, Settings.load().default_plan) == (None, "agency")
