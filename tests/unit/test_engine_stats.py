"""What vLLM says of its engine: read from a registry like its own, and passed on under our names."""

from __future__ import annotations

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from daemon import metrics, report
from pipeline import engine_stats
from pipeline.team import ModelState
from spool.parts import Usage

LABELS = ["model_name", "engine"]


@pytest.fixture
def vllm() -> CollectorRegistry:
    """A registry as vLLM 0.32 fills it, for an engine of two parts, with much that is not passed on."""
    registry = CollectorRegistry()
    for name, values in {
        "vllm:kv_cache_usage_perc": (0.25, 0.75),
        "vllm:num_requests_running": (3, 4),
    }.items():
        gauge = Gauge(name, "?", LABELS, registry=registry)
        for engine, value in enumerate(values):
            gauge.labels("m", engine).set(value)
    hits = Counter("vllm:prefix_cache_hits", "?", LABELS, registry=registry)
    for engine in range(2):
        hits.labels("m", engine).inc(100)
    Counter("vllm:prompt_tokens", "?", LABELS, registry=registry).labels("m", 0).inc(7)
    return registry


def test_the_parts_of_an_engine_are_one(vllm: CollectorRegistry) -> None:
    """Added up; of the caches the fullest counts. What is not there is not made up."""
    assert engine_stats.read(vllm) == {
        "kv_cache_usage_ratio": 0.75,
        "requests_running": 7.0,
        "prefix_cache_hits": 200.0,
    }


def test_where_there_is_no_vllm_nothing_is_said() -> None:
    assert engine_stats.read(CollectorRegistry()) == {}
    assert engine_stats.read() == {}  # this process has prometheus_client's own registry, and no engine


def _state(*engines: dict[str, float]) -> ModelState:
    return ModelState("m", len(engines), 1, 0, None, 0, (), {}, Usage(), engines)


def test_each_replica_has_series_of_its_own_while_it_speaks() -> None:
    """A replica that is gone must not leave its last cache behind."""
    registry = prometheus_client.CollectorRegistry()
    seen = report.EngineMetrics(metrics.Metrics(registry, ["m"]))

    def value(name: str, replica: str) -> float | None:
        return registry.get_sample_value(f"batchd_engine_{name}", {"model": "m", "replica": replica})

    seen.observe(_state({"kv_cache_usage_ratio": 0.5, "preemptions": 3.0}, {"kv_cache_usage_ratio": 0.25}))
    assert (value("kv_cache_usage_ratio", "0"), value("kv_cache_usage_ratio", "1")) == (0.5, 0.25)
    assert (value("preemptions_total", "0"), value("preemptions_total", "1")) == (3.0, None)
    seen.observe(_state({}, {"kv_cache_usage_ratio": 0.0}))
    assert (value("kv_cache_usage_ratio", "0"), value("kv_cache_usage_ratio", "1")) == (None, 0.0)


def test_an_engine_that_says_nothing_has_no_series() -> None:
    registry = prometheus_client.CollectorRegistry()
    report.EngineMetrics(metrics.Metrics(registry, ["m"])).observe(_state({}))
    assert b"kv_cache_usage_ratio{" not in generate_latest(registry)
