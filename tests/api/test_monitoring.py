"""docs/monitoring: dashboard and alerts ask for what a server has; docs/operations.md explains every metric."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import Api
from tests.support.plain import PLAIN
from tests.support.server import Server

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DOCS / "monitoring" / "alerts.yaml").read_text(encoding="utf-8"))
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def queries() -> list[tuple[str, str]]:
    """Every query, and where it stands."""
    panels = [
        (panel["title"], target["expr"])
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]
    rules = [(rule["alert"], rule["expr"]) for group in ALERTS["groups"] for rule in group["rules"]]
    variables = [(one["name"], one["definition"]) for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    return [*panels, *rules, *variables]


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """The labels of each sample of a server that did a bit of everything, by name."""
    with Server() as server, Api(server.url) as api:
        for _ in range(2):
            api.enqueue()
        api.ack(api.fetch()[0]["id"])
        api.heartbeat("w-1")
        text = httpx.get(f"{server.url}/metrics", **PLAIN).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for suffix in SUFFIXES[family.type]:
            found[family.name + suffix] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize(("where", "query"), queries())
def test_a_query_asks_for_metrics_that_exist(metrics: dict[str, set[str]], where: str, query: str) -> None:
    """And selects and groups by labels that they have."""
    names = set(re.findall(r"\bojs_\w+", query))
    assert names
    assert names <= set(metrics), where
    known = set[str]().union(*(metrics[name] for name in names))
    labels = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(",")}
    labels |= {label for body in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)\s*=", body)}
    if any(metrics[name] for name in names):
        assert labels <= known | {"le"}, where


def test_a_query_is_balanced() -> None:
    """Every parenthesis, bracket and brace that opens also closes."""
    for where, query in queries():
        assert all(query.count(a) == query.count(b) for a, b in ("()", "[]", "{}")), where


def test_panels_have_their_place() -> None:
    """Each has an id of its own, and none lies on another one."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_alerts_say_what_to_do() -> None:
    """Each has a severity, a summary and a description."""
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert {"summary", "description"} <= set(rule["annotations"])


def test_operations_explains_every_metric(metrics: dict[str, set[str]]) -> None:
    """The table in docs/operations.md names all of them and no others."""
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(ojs_\w+)`", text, re.MULTILINE))
    exist = {re.sub(r"_(bucket|count|sum)$", "", name) if "_seconds_" in name else name for name in metrics}
    assert told == exist
