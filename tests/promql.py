"""What the shipped rules and the dashboard ask Prometheus: expressions, and the series each one names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import prometheus_client
import yaml

from daemon import metrics
from pipeline import engine_stats

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
RULES = DEPLOY / "prometheus/batchd.rules.yml"
RULE_TESTS = DEPLOY / "prometheus/batchd.rules.test.yml"
DASHBOARD = DEPLOY / "grafana/dashboards/batchd.json"

# What only vLLM has to say, and only where its statistics are on.
VLLM_STATS = tuple(stat.name for stat in engine_stats.STATS)

# Ours, and those that Prometheus and prometheus_client make by themselves.
_SELECTOR = re.compile(r"\b(batchd_\w+|process_\w+|up\b)(\{[^}]*\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


class Selector(NamedTuple):
    """A series that an expression asks for."""

    metric: str
    matchers: str  # as written, with braces; "" without any

    @property
    def labels(self) -> set[str]:
        """Names of the labels that it matches on."""
        return set(_LABEL.findall(re.sub(r'"[^"]*"', '""', self.matchers)))

    def __str__(self) -> str:
        return self.metric + self.matchers


def selectors(expression: str) -> set[Selector]:
    """All series that an expression names."""
    found = {Selector(*match) for match in _SELECTOR.findall(expression)}
    assert found, f"no known series in {expression}"
    return found


def rules(path: Path = RULES) -> list[dict[str, Any]]:
    """The alerts."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def rule_tests() -> list[dict[str, Any]]:
    """The cases of `promtool test rules`."""
    cases: list[dict[str, Any]] = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    return cases


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, those in collapsed rows too."""
    tree = json.loads(DASHBOARD.read_text())
    return [panel for top in tree["panels"] for panel in [top, *top.get("panels", [])]]


def expressions() -> list[tuple[str, str]]:
    """(title of its panel, expression) of everything that the dashboard asks."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel.get("targets", ())]


def is_for_vllm(expression: str) -> bool:
    """Whether an expression asks for what other engines do not have."""
    return any(f"batchd_engine_{name}" in expression for name in VLLM_STATS)


def known_series() -> dict[str, set[str]]:
    """Names and labels of all that Prometheus can have of a daemon, with the labels that it adds itself."""
    registry = prometheus_client.CollectorRegistry()
    known = metrics.Metrics(registry, ["m"])
    known.engine_started("m", 1.0)
    known.set_engine_values("m", [dict.fromkeys(VLLM_STATS, 0.0)])
    samples = [sample for family in registry.collect() for sample in family.samples]
    series: dict[str, set[str]] = {"up": {"job", "instance"}}
    for sample in samples:
        series.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return series
