"""What vLLM says of its own engine: a bounded list of its metrics, read in the process that makes them.

vLLM keeps them in prometheus_client's default registry where `engine_args.disable_log_stats` is false;
without that, or without vLLM, of which nothing is imported, there is nothing to read. A name that another
release of vLLM has changed is absent, too: tests/acceptance asks a real engine for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry


class Stat(NamedTuple):
    """One of vLLM's metrics.

    Attributes:
        name: ours, without prefix and `_total`.
        sample: vLLM's.
        is_counter: whether it only grows as long as its process lives; else it is what is the case now.
        help: one sentence, for Prometheus.
    """

    name: str
    sample: str
    is_counter: bool
    help: str


STATS = (
    Stat(
        "kv_cache_usage_ratio",
        "vllm:kv_cache_usage_perc",
        False,
        "Share of the KV cache in use, from 0 to 1.",
    ),
    Stat("requests_running", "vllm:num_requests_running", False, "Requests that the engine computes now."),
    Stat("requests_waiting", "vllm:num_requests_waiting", False, "Requests in the engine's own queue."),
    Stat(
        "prefix_cache_queries",
        "vllm:prefix_cache_queries_total",
        True,
        "Prompt tokens that were looked up in the prefix cache.",
    ),
    Stat(
        "prefix_cache_hits",
        "vllm:prefix_cache_hits_total",
        True,
        "Prompt tokens that were found in the prefix cache.",
    ),
    Stat(
        "preemptions",
        "vllm:num_preemptions_total",
        True,
        "Requests that had to give up their KV cache and begin again.",
    ),
)
_BY_SAMPLE = {stat.sample: stat for stat in STATS}


def read(registry: CollectorRegistry = REGISTRY) -> dict[str, float]:
    """The values now, by Stat.name; those that are not there are left out.

    An engine of several parts (data_parallel_size) is added up; of the KV caches the fullest counts.
    """
    found: dict[str, float] = {}
    for family in registry.restricted_registry(list(_BY_SAMPLE)).collect():
        for sample in family.samples:
            stat = _BY_SAMPLE[sample.name]
            before = found.get(stat.name, 0.0)
            is_share = stat.name.endswith("_ratio")
            found[stat.name] = max(before, sample.value) if is_share else before + sample.value
    return found
