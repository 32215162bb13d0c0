"""Where engines stand: on the nodes of their pool, where a pool names Ray resources."""

from __future__ import annotations

from typing import Any

import pytest

from config.settings import Settings
from pipeline import placement

SPOT: dict[str, Any] = {"spot": {"resources": {"spot": 1}}}


def make(address: str = "10.0.0.1:6379", **pools: Any) -> Settings:
    sections: dict[str, Any] = {"ray": {"address": address}, "scheduler": {"pools": pools}}
    return Settings(models=({"name": "m", "kind": "echo"},), **sections)


def node(is_alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": is_alive, "Resources": {"CPU": 4.0, **resources}}


@pytest.mark.parametrize(
    ("configured", "apart"),
    [
        (make(), {}),
        (make("local", **SPOT), {}),
        (make(**SPOT), {"spot": {"spot": 1.0}, "dedicated": {}}),
        (make(**SPOT, dedicated={"capacity": 0}), {"spot": {"spot": 1.0}}),
    ],
)
def test_pools_are_apart_where_one_names_resources(configured: Settings, apart: Any) -> None:
    """On a cluster; on one machine both pools are that machine."""
    assert placement.resources(configured) == apart


@pytest.mark.parametrize(
    ("nodes", "lost"),
    [
        ([], {"spot", "dedicated"}),
        ([node()], {"spot"}),
        ([node(spot=1)], set()),
        ([node(), node(False, spot=1)], {"spot"}),
        ([node(spot=0.5), node(spot=0.5)], {"spot"}),
    ],
)
def test_a_pool_without_a_node_is_lost(nodes: list[dict[str, Any]], lost: set[str]) -> None:
    """A node counts that lives and has all that an engine asks for."""
    assert placement.lost({"spot": {"spot": 1}, "dedicated": {}}, nodes) == lost


def test_an_engine_takes_what_its_pool_names() -> None:
    """On a cluster it needs a little of a CPU, so that none comes to a node without."""
    assert placement.of_engine(make("local"), {}) == {"num_cpus": 0}
    placed = placement.of_engine(make(**SPOT), {"spot": 1})
    assert placed == {
        "num_cpus": placement.ENGINE_CPUS,
        "resources": {"spot": 1},
        "scheduling_strategy": "SPREAD",
    }
