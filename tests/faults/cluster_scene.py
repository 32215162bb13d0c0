"""A spool, daemons on it, and the nodes of a real Ray cluster that their engines stand on.

All nodes are processes of this machine, each with an address of its own (examples/cluster.py); engines are
`echo` with a fixed latency, so that a run takes some seconds.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.cluster import HEAD, Cluster
from spool import create
from tests import daemons
from tests.faults import judgement, oracle, slow_volume, traffic
from tests.faults.nodes import Node
from tests.faults.processes import all_processes

# So that a node that is silent counts as dead after some seconds, not after half a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
LATENCY_S = 0.4
LINES = 4000
END_LIMIT_S = 120.0
SPOT_AND_DEDICATED = {
    "pools": {"spot": {"resources": {"spot": 1}}, "dedicated": {"resources": {"dedicated": 1}}}
}


class ClusterScene:
    """Daemons on one spool, with a cluster that lives longer.

    Attributes:
        files: all that was dropped.
        reader: looks at every status.json all the time.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cluster = cluster
        self.spool = create.create(folder / "spool").root
        self.files: list[traffic.File] = []
        self.daemons: list[Node] = []
        self.reader = judgement.Reader(self.spool)
        self._folder = folder

    def start(self, replicas: int = 1, latency_s: float = LATENCY_S, **sections: Any) -> Node:
        """Start another daemon; the replicas are its own."""
        model = {"name": traffic.MODEL, "kind": "echo", "latency_s": latency_s, "replicas": replicas}
        settings = {
            "models": [model],
            "inbox": {"settle_s": 0.1, "rescan_s": 2},
            "lease": {"heartbeat_s": 0.5, "expire_s": 5},
            "log": {"format": "json"},
            **sections,
        }
        folder = self._folder / f"d{len(self.daemons)}"
        node = Node(folder, self.spool, "ray", settings, self.cluster.environ)
        self.daemons.append(node)
        return node.start(wait_ready=True)

    def drop(self, name: str, lines: int = LINES) -> None:
        """A file of distinct requests."""
        rows = [daemons.request(f"{name}-{n}", f"{name} {n}") for n in range(lines)]
        self.files.append(traffic.File(f"{name}.jsonl", daemons.jsonl(rows), ""))
        self.daemons[0].drop(self.files[-1].name, self.files[-1].content)

    def done(self, name: str) -> int:
        """Answers of a batch that its status shows."""
        shown = self.daemons[0].status(name)
        return shown.request_counts.completed if shown and shown.request_counts else 0

    def under_way(self, name: str, answers: int = LINES // 10) -> int:
        """Wait until a batch has so many answers; how many it has then."""
        daemons.until(lambda: self.done(name) >= answers, END_LIMIT_S, f"{answers} answers of {name}")
        return self.done(name)

    def is_over(self) -> bool:
        """Whether all that was dropped has ended, and is archived."""
        shown = [self.daemons[0].status(file.stem) for file in self.files]
        is_told = all(status and status.status in daemons.TERMINAL for status in shown)
        return is_told and not any((self.spool / "work").glob("*/batch_*"))

    def verdict(self) -> oracle.Verdict:
        """Wait for the end of all that was dropped, and judge it."""
        daemons.until(self.is_over, END_LIMIT_S, "the end of all batches")
        found = judgement.judge(self.spool, self.files, set(), traffic.echoed)
        found.wrong += self.reader.problems
        return found

    @contextlib.contextmanager
    def slow_disk(self, node: Node, delay_s: float) -> Iterator[None]:
        """Have each change of a file take longer, for a daemon and the tasks of its node."""
        known = all_processes()
        tasks = [pid for pid in self.cluster.pids(HEAD) if pid in known and "ray::" in known[pid].title]
        trace = self._folder / "slow.trace"
        with slow_volume.slowed([node.process.pid, *tasks], delay_s, trace):
            yield
        assert slow_volume.held_up(trace) > 0, "nothing was held up"

    def engines(self, name: str) -> int:
        """Replicas that stand on a node."""
        return sum("ray::Replica" in title for title in self.titles(name))

    def titles(self, name: str) -> list[str]:
        """What the processes of a node are called."""
        known = all_processes()
        return [known[pid].title for pid in self.cluster.pids(name) if pid in known]

    def close(self) -> None:
        """End the daemons, and all nodes but the head."""
        self.reader.stop()
        for node in self.daemons:
            if node.is_alive:
                node.stop(signal.SIGKILL)
        for name in self.cluster.names - {HEAD}:
            self.cluster.kill(name)
