"""Batches on a real Ray cluster whose nodes die, join, fall silent and come back: nothing lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from examples.cluster import HEAD, Cluster
from tests import daemons
from tests.faults import disk_calls
from tests.faults.cluster_scene import LINES, QUICK, SPOT_AND_DEDICATED, ClusterScene
from tests.faults.nodes import Node

pytestmark = pytest.mark.timeout(240)

# Requests in a replica at a time.
PLACES = 512


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(QUICK) as made:
        yield made


@pytest.fixture
def here(cluster: Cluster, tmp_path: Path) -> Iterator[ClusterScene]:
    """The head alone; what a test adds to it goes again."""
    scene = ClusterScene(cluster, tmp_path / "scene")
    yield scene
    scene.close()


def check(here: ClusterScene) -> None:
    verdict = here.verdict()
    assert verdict.is_right, verdict


def metric(node: Node, name: str) -> float:
    """A value of /metrics, by its name with labels."""
    node.port = urlsplit(node.events("starting")[-1]["metrics"]).port or 0
    line = next(line for line in node.get("/metrics")[1].splitlines() if line.startswith(name))
    return float(line.rpartition(" ")[2])


def test_engines_stand_on_the_other_nodes(here: ClusterScene) -> None:
    """The daemon's node has none, and the others no task: they need not have the spool."""
    here.cluster.add("one")
    here.cluster.add("two")
    here.start(replicas=2, latency_s=0.1)
    here.drop("jan")
    check(here)
    assert [here.engines(name) for name in (HEAD, "one", "two")] == [0, 1, 1]
    assert not [title for name in ("one", "two") for title in here.titles(name) if "ShardSource" in title]


def test_a_node_that_dies_costs_what_was_in_flight(here: ClusterScene) -> None:
    """Three nodes, two daemons on one spool, four replicas."""
    here.cluster.add("one")
    here.cluster.add("two")
    nodes = [here.start(replicas=2), here.start(replicas=2)]
    here.drop("jan")
    here.drop("feb")
    here.under_way("jan")
    here.cluster.kill("one")
    check(here)
    assert all(node.is_alive for node in nodes)
    # No run was begun again: the other node's replicas took over.
    assert [event["attempt"] for node in nodes for event in node.events("batch_assigned")] == [1, 1]


def test_a_node_that_joins_gets_work_within_10_s(here: ClusterScene) -> None:
    """In the middle of a run, which has gone on without it."""
    here.cluster.add("one", resources={"gpus": 1})
    pools = {"spot": {"capacity": 0}, "dedicated": {"resources": {"gpus": 1}}}
    node = here.start(replicas=2, latency_s=1.0, scheduler={"pools": pools})
    here.drop("jan", lines=10_000)
    here.under_way("jan", 500)
    here.cluster.add("two", resources={"gpus": 1})
    inflight = 'batchd_inflight_requests{model="tiny-adder"}'
    daemons.until(lambda: metric(node, inflight) > PLACES, 10, "work for the new node")
    check(here)


def test_a_spot_node_that_dies_is_a_preemption(here: ClusterScene) -> None:
    """The batch goes on in the dedicated pool with its finished lines kept; a new spot node is taken in."""
    here.cluster.add("cheap", resources={"spot": 1})
    here.cluster.add("dear", resources={"dedicated": 1})
    node = here.start(scheduler=SPOT_AND_DEDICATED)
    spot = 'batchd_pool_capacity{pool="spot"}'
    daemons.until(lambda: metric(node, spot) == 2, 30, "the spot pool")
    here.drop("jan")
    kept = here.under_way("jan")
    assert node.extra("jan")["pool"] == "spot"
    here.cluster.kill("cheap")
    check(here)
    assert node.extra("jan")["pool"] == "dedicated"
    phases = [event["phase"] for event in node.extra("jan")["history"]]
    assert phases.count("running") == 2
    assert "preempted" in phases
    assert node.events("pool_lost")[-1]["pool"] == "spot"
    begun = node.events("batch_assigned")[-1]
    assert (begun["pool"], begun["attempt"]) == ("dedicated", 2)
    assert begun["requests"] <= LINES - kept
    assert metric(node, 'batchd_pool_preemptions_total{pool="spot"}') == 1
    here.cluster.add("cheap again", resources={"spot": 1})
    daemons.until(lambda: metric(node, spot) == 2, 30, "the spot pool")
    here.drop("feb", lines=10)
    check(here)
    assert node.extra("feb")["pool"] == "spot"


def test_a_node_that_is_cut_off_doubles_nothing(here: ClusterScene) -> None:
    """Its replica is believed dead, answers all the same when it is back, and is heard by nobody."""
    here.cluster.add("one")
    here.cluster.add("two")
    here.start(replicas=2)
    here.drop("jan")
    here.under_way("jan")
    here.cluster.freeze("one")
    check(here)
    here.cluster.thaw("one")
    here.drop("feb", lines=500)
    check(here)


@pytest.mark.skipif(disk_calls.why_not() is not None, reason=str(disk_calls.why_not()))
def test_a_slow_volume_costs_time_alone(here: ClusterScene) -> None:
    """Whoever writes is held up; nobody takes that for a death."""
    here.cluster.add("one")
    node = here.start()
    here.drop("jan", lines=1000)
    here.under_way("jan", answers=1)
    with here.slow_disk(node, 0.25):
        check(here)
    assert not node.events("requests_lost")
    assert [event["attempt"] for event in node.events("batch_assigned")] == [1]


def test_a_head_that_starts_again_loses_no_part(here: ClusterScene) -> None:
    """The daemon ends with a word of why; the next one rebuilds all replicas and goes on."""
    here.cluster.add("one")
    node = here.start()
    here.drop("jan")
    kept = here.under_way("jan")
    here.cluster.kill(HEAD)
    assert node.process.wait(30) == 3
    assert "Ray is lost" in node.said
    here.cluster.start_head()
    here.cluster.kill("one")
    here.cluster.add("one")
    node.start(wait_ready=True)
    check(here)
    assert node.events("batch_assigned")[-1]["requests"] <= LINES - kept
