"""The shipped Grafana dashboard: well-formed, and every query names series that exist.

That the queries return data is for a real Prometheus: tests/integration/test_prometheus.py.
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import yaml

from tests import promql

ROWS = ["Service level", "Queue and pools", "Throughput", "Engine", "Errors", "Spool and daemon"]


def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(promql.DASHBOARD.read_text())
    return tree


def test_each_query_asks_for_series_and_labels_that_there_are() -> None:
    """A renamed metric is an empty panel that nobody misses until the night it is needed."""
    known = promql.known_series()
    for title, expression in promql.expressions():
        for selector in promql.selectors(expression):
            assert selector.metric in known, (title, selector)
            assert selector.labels <= known[selector.metric], (title, selector)
        for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
            labels = set(grouped.replace(" ", "").split(","))
            metric = next(iter(promql.selectors(expression))).metric
            assert labels <= known[metric], (title, expression)


def test_each_query_keeps_to_the_menus() -> None:
    """Every series is of the chosen daemons, and of the chosen models where it has a model."""
    known = promql.known_series()
    for title, expression in promql.expressions():
        for selector in promql.selectors(expression):
            assert '$instance"' in selector.matchers, (title, selector)
            assert ('$model"' in selector.matchers) == ("model" in known[selector.metric]), (title, selector)


def test_variables_ask_for_series_that_there_are() -> None:
    known = promql.known_series()
    variables = {variable["name"]: variable for variable in _tree()["templating"]["list"]}
    assert variables.keys() == {"datasource", "instance", "model"}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("instance", "model"):
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"])
        assert match and match[2] == name and match[2] in known[match[1]]
        assert variables[name]["query"]["query"] == variables[name]["definition"]


def test_panels_are_what_grafana_expects() -> None:
    """Ids of their own, no overlap, a unit, a description, the chosen Prometheus."""
    panels = promql.panels()
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat")
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
            assert source == {"type": "prometheus", "uid": "${datasource}"}
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        assert not (
            one["x"] < other["x"] + other["w"]
            and other["x"] < one["x"] + one["w"]
            and one["y"] < other["y"] + other["h"]
            and other["y"] < one["y"] + one["h"]
        ), (one, other)
        assert one["x"] + one["w"] <= 24


def test_grafana_is_given_the_dashboard_and_its_prometheus() -> None:
    folder = promql.DASHBOARD.parent.parent / "provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    [provider] = yaml.safe_load((folder / "dashboards/batchd.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
