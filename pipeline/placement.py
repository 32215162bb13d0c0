"""Where things run on a Ray cluster: engines on the nodes of their pool, the data path on the daemon's own.

Tasks read requests and write parts on the node that the daemon runs on, so that no other node needs the
spool: requests and answers go through Ray. Engines spread over all nodes that have a CPU to give; a node
with `--num-cpus=0` gets none. Where a pool names Ray resources, each pool has its own engines of every model;
else both use the same ones. A Ray of the daemon's own is one node, and every pool is that node.

Limits: an engine's GPUs must be on one node. Ray is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from config import settings
from pipeline import errors

# What an engine takes of a node's CPUs: nearly nothing, since Ray does not know what it computes; but a node
# that has none gets no engine.
ENGINE_CPUS = 0.001


class Pools(NamedTuple):
    """The pools as the cluster has them now; names are `spot` and `dedicated`.

    Attributes:
        ready: those with an engine of each model that has started.
        lost: those of which no node is left.
    """

    ready: frozenset[str] = frozenset({"spot", "dedicated"})
    lost: frozenset[str] = frozenset()


def is_cluster(configured: settings.Settings) -> bool:
    """Whether Ray is one that others started."""
    return configured.ray.address != "local"


def resources(configured: settings.Settings) -> dict[str, dict[str, float]]:
    """What an engine asks for in each pool; empty where the pools share their engines."""
    if not is_cluster(configured):
        return {}
    pools = configured.scheduler.pools
    asked = {"spot": pools.spot.resources, "dedicated": pools.dedicated.resources}
    capacity = {"spot": pools.spot.capacity, "dedicated": pools.dedicated.capacity}
    if not any(asked.values()):
        return {}
    return {pool: dict(asked[pool]) for pool in asked if capacity[pool]}


def of_engine(configured: settings.Settings, wanted: Mapping[str, float]) -> dict[str, Any]:
    """Ray's options for an engine's actor, GPUs not counted."""
    if not is_cluster(configured):
        return {"num_cpus": 0}
    return {"num_cpus": ENGINE_CPUS, "resources": dict(wanted), "scheduling_strategy": "SPREAD"}


def of_task() -> dict[str, Any]:
    """Ray's options for a task: the node of this driver, whose CPUs it does not count."""
    import ray

    return {"num_cpus": 0, "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}


def lost(wanted: Mapping[str, Mapping[str, float]], nodes: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Pools of which no node is left.

    Args:
        wanted: what an engine asks for, by pool.
        nodes: as ray.nodes() names them.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return frozenset(
        pool
        for pool, asked in wanted.items()
        if not any(all(node.get(name, 0.0) >= amount for name, amount in asked.items()) for node in alive)
    )


def gpus_for(model: settings.ModelSettings, pools: int) -> float:
    """GPUs of one replica: what its parallelism asks for, 0 where Ray has none.

    Args:
        model: its settings.
        pools: in each of which it has all of its replicas.

    Raises:
        EngineStartError: Ray has GPUs, but too few.
    """
    import ray

    there = ray.cluster_resources().get("GPU", 0.0)
    if not isinstance(model, settings.VllmModel) or not there:
        return 0.0
    arguments = model.engine_args
    sizes = [arguments.get(f"{kind}_parallel_size") or 1 for kind in ("tensor", "pipeline", "data")]
    each = float(sizes[0] * sizes[1] * sizes[2])
    least = max(1, model.min_replicas)
    if each * least * pools > there:
        raise errors.EngineStartError(
            f"model {model.name!r}: {least * pools} replicas of {each:g} GPUs each, "
            f"but Ray has {there:g}: "
            "set fewer replicas, or a smaller engine_args.tensor_parallel_size"
        )
    return each
