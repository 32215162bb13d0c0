"""A real Prometheus reads a running daemon with the files of deploy/: scrapes, dashboard and alerts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests import daemons, prometheus, promql
from tests.faults import processes

pytestmark = [
    prometheus.needed,
    pytest.mark.timeout(300),
]  # a Ray takes 10 s to start, and a minute on a busy machine


class Scene(NamedTuple):
    daemon: daemons.Daemon
    prometheus: prometheus.Prometheus


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A daemon that Prometheus has watched since before its one batch, which has ended."""
    folder = tmp_path_factory.mktemp("scene")
    daemon = daemons.Daemon(folder, {"models": [{"name": "tiny-adder", "kind": "echo"}]})
    watching: prometheus.Prometheus | None = None
    try:
        daemon.start()
        watching = prometheus.Prometheus(folder / "prometheus", daemon.port)
        daemons.until(lambda: watching.query("count_over_time(up[1m]) >= 2"), what="two scrapes")
        daemon.drop("jan.jsonl", daemons.jsonl([daemons.request(f"a{n}", f"text {n}") for n in range(300)]))
        assert daemon.ended("jan").status == "completed"
        yield Scene(daemon, watching)
    finally:
        if watching:
            watching.stop()
        if daemon.process.poll() is None:
            daemon.stop()


def test_what_is_shipped_is_content_with_promtool() -> None:
    folder = promql.RULES.parent
    prometheus.promtool("check", "config", folder / "prometheus.yml")
    prometheus.promtool("check", "rules", promql.RULES)
    prometheus.promtool("test", "rules", promql.RULE_TESTS)


def test_names_and_help_keep_to_prometheus_conventions(scene: Scene) -> None:
    """As its own linter sees them, on what a daemon really says."""
    assert prometheus.promtool("check", "metrics", stdin=scene.daemon.get("/metrics")[1]) == ""


def test_every_expression_of_the_dashboard_returns_data_after_one_batch(scene: Scene) -> None:
    """Data are numbers: a quantile of nothing is none."""
    # What vLLM alone has to say is asked where it runs: tests/acceptance/test_end_to_end.py.
    asked = [each for each in promql.expressions() if not promql.is_for_vllm(each[1])]
    assert len(asked) > 30
    for title, expression in asked:
        daemons.until(
            lambda expression=expression: scene.prometheus.query(expression),  # type: ignore[misc]
            what=f"data for {title}: {expression}",
        )


def test_every_series_that_an_alert_names_is_there(scene: Scene) -> None:
    """With its labels' values: an alert on a series that never comes is silent for ever."""
    named = {str(selector) for rule in promql.rules() for selector in promql.selectors(rule["expr"])}
    assert len(named) > 10
    assert [selector for selector in sorted(named) if not scene.prometheus.query(selector)] == []


def test_an_alert_fires_while_an_engine_is_dead_and_ends_when_it_is_back(scene: Scene) -> None:
    """The shipped rules, with only `for` changed. Ray starts a dead replica again, so each one is killed."""
    daemons.until(lambda: scene.prometheus.state("EngineDown") == "inactive", what="an engine that is up")

    def kill_and_look() -> bool:
        for process in processes.descendants(scene.daemon.process.pid):
            if "ray::Replica" in process.title:
                processes.send(process.pid, signal.SIGKILL)
        return scene.prometheus.state("EngineDown") == "firing"

    daemons.until(kill_and_look, what="the alert")
    assert scene.daemon.events("engine_down")
    daemons.until(lambda: scene.prometheus.state("EngineDown") == "inactive", what="the alert's end")
    daemons.until(lambda: scene.daemon.get("/readyz")[0] == 200, what="readiness")
