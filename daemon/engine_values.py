"""What engines say of themselves, passed on to Prometheus as `batchd_engine_...` with model and replica.

Raw values of the replicas' processes: a counter begins anew with a process, as Prometheus expects of one. A
replica that says nothing has no series. The names are ours, since vLLM's have a colon, which Prometheus keeps
for recording rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline import engine_stats


class EngineValues(Collector):
    """The latest values of each replica of each model. Safe from any thread."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Mapping[str, float], ...]] = {}

    def set(self, model: str, replicas: Sequence[Mapping[str, float]]) -> None:
        """Take in what the replicas of a model said, in their order; nothing for one that said nothing."""
        self._values = {**self._values, model: tuple(replicas)}  # replaced, since others may be reading it

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        values = self._values
        for stat in engine_stats.STATS:
            make = CounterMetricFamily if stat.is_counter else GaugeMetricFamily
            family = make(f"batchd_engine_{stat.name}", stat.help, labels=["model", "replica"])
            for model, replicas in values.items():
                for index, said in enumerate(replicas):
                    if stat.name in said:
                        family.add_metric([model, str(index)], said[stat.name])
            yield family
