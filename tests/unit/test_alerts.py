"""The shipped alerts: each says what to do, asks for what there is, and is tried both ways.

That they mean what they say is for promtool and a real Prometheus: tests/integration/test_prometheus.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests import promql

ROOT = Path(__file__).parents[2]
ALERTS = {rule["alert"]: rule for rule in promql.rules()}


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS.keys())
def test_each_alert_says_what_to_do_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert len(notes["description"]) > 80
    page, _, anchor = notes["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]
    assert anchor == rule["alert"].lower()


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS.keys())
def test_each_alert_asks_for_series_that_there_are(rule: dict[str, Any]) -> None:
    """A name that does not exist, or a label, is an alert that never fires."""
    known = promql.known_series()
    for selector in promql.selectors(rule["expr"]):
        assert selector.metric in known, selector
        assert selector.labels <= known[selector.metric], selector


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_tried_firing_and_silent(name: str) -> None:
    """In the case of its name, which promtool runs."""
    cases = [case for case in promql.rule_tests() if re.match(rf"{name}\b", case["name"])]
    assert cases, f"no case begins with {name}"
    queries = [query for case in cases for query in case.get("promql_expr_test", ())]
    samples = [str(sample) for query in queries for sample in query["exp_samples"]]
    alerts = [test for case in cases for test in case.get("alert_rule_test", ()) if test["exp_alerts"]]
    assert any(f'alertname="{name}"' in sample for sample in samples) or alerts
    assert any(query["exp_samples"] == [] for query in queries)


def test_every_alert_of_the_page_exists() -> None:
    """A page that explains alerts of the past misleads at night."""
    _, _, section = (ROOT / "docs/operations.md").read_text().partition("\n## Alerts\n")
    assert set(re.findall(r"^### (.+)$", section, re.MULTILINE)) == ALERTS.keys()
