"""The dashboard, the alerts and the table of metrics name exactly what is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from onceonly_jobs import metrics
from onceonly_jobs.dispatch.figures import DatabaseFigures
from onceonly_jobs.store.database import Database

DOCS = Path(__file__).parents[2] / "docs"
NAME = re.compile(r"\bonceonly_[a-z_]+\b")
SERIES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """Each metric of ours and its type, read from an exposition as Prometheus reads it."""
    nowhere = CollectorRegistry()
    nowhere.register(DatabaseFigures(Database("postgresql+psycopg://127.0.0.1:1/none")))
    text = (generate_latest(metrics.REGISTRY) + generate_latest(nowhere)).decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {family.name: family.type for family in families if family.name.startswith("onceonly_")}


def unknown_in(text: str, shown: dict[str, str]) -> set[str]:
    series = {name + suffix for name, kind in shown.items() for suffix in SERIES[kind]}
    return set(NAME.findall(text)) - series


def dashboard() -> dict[str, str]:
    """The queries of the dashboard, by panel."""
    panels = json.loads((DOCS / "grafana/onceonly.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels
        for target in panel.get("targets", [])
    }


def test_the_dashboard_asks_for_metrics_that_are_shown(shown: dict[str, str]) -> None:
    queries = dashboard()
    assert len(queries) > 30
    assert {panel: names for panel, query in queries.items() if (names := unknown_in(query, shown))} == {}


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads((DOCS / "grafana/onceonly.json").read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_the_alerts_are_about_metrics_that_are_shown(shown: dict[str, str]) -> None:
    (group,) = yaml.safe_load((DOCS / "prometheus/onceonly.rules.yml").read_text())["groups"]
    rules = group["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"]
        assert unknown_in(rule["expr"], shown) == set(), rule["alert"]


def test_the_example_configuration_finds_the_alerts_and_names_their_jobs() -> None:
    config = yaml.safe_load((DOCS / "prometheus/prometheus.yml").read_text())
    assert all((DOCS / "prometheus" / path).is_file() for path in config["rule_files"])
    assert {job["job_name"] for job in config["scrape_configs"]} == {
        "onceonly-api",
        "onceonly-worker",
        "onceonly-scheduler",
    }


def test_the_table_of_metrics_is_complete(shown: dict[str, str]) -> None:
    listed = re.findall(
        r"^\| `(onceonly_\w+)` \| (\w+) \|", (DOCS / "OPERATIONS.md").read_text(), re.MULTILINE
    )
    named = {name + ("_total" if kind == "counter" else ""): kind for name, kind in shown.items()}
    assert dict(listed) == named


def test_a_metric_without_labels_would_show_in_every_process() -> None:
    """Of what a process does not count it shows nothing, so none of ours may begin at 0 by itself."""
    samples = [
        sample.name
        for family in text_string_to_metric_families(generate_latest(metrics.REGISTRY).decode())
        for sample in family.samples
        if sample.name.startswith("onceonly_") and not sample.labels
    ]
    assert samples == []
