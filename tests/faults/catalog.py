"""The faults by name: how each is played, and on which engines it makes sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults import injections, injections_ray
from tests.faults.nodes import Engine
from tests.faults.scene import Scene


@dataclass(frozen=True)
class Fault:
    """How a fault is played.

    Attributes:
        engines: on which it makes sense.
        files: dropped before it, from and to.
        nodes: daemons.
        rounds: in one life of a spool.
        settings: of the daemons, beyond the usual.
    """

    act: Callable[[Scene], float]
    engines: tuple[Engine, ...]
    files: tuple[int, int] = (1, 4)
    longest: int = 600
    nodes: int = 1
    rounds: int = 8
    settings: dict[str, Any] = field(default_factory=dict)


_HOLDS_ALL = {"scheduler": {"pools": {"spot": {"capacity": 2, "preempt_every_s": 0.3}}}}

FAULTS: dict[str, Fault] = {
    "kill -9 daemon": Fault(injections.kill_daemon, ("light", "ray", "local", "vllm")),
    "exit at a named point": Fault(injections.failpoint, ("light", "ray")),
    "SIGTERM in each phase": Fault(injections.terminate, ("light", "ray", "vllm")),
    "SIGSTOP past the lease": Fault(injections.zombie, ("light", "ray"), files=(5, 10), nodes=2, rounds=4),
    "pre-emption": Fault(injections.preempt, ("light", "ray"), files=(1, 3), settings=_HOLDS_ALL),
    "cancel": Fault(injections.cancel, ("light", "ray", "vllm")),
    "clock jumps 1 h": Fault(injections.clock, ("light",)),
    "4 daemons, kill -9 and SIGSTOP": Fault(
        injections.crowd, ("light", "ray", "broken"), files=(100, 500), longest=20, nodes=4, rounds=1
    ),
    "kill -9 Ray worker": Fault(injections_ray.kill_worker, ("ray", "vllm"), files=(2, 4)),
    "kill -9 engine replica": Fault(injections_ray.kill_replica, ("ray", "vllm"), files=(2, 4)),
    "kill -9 raylet": Fault(injections_ray.kill_raylet, ("local", "vllm"), rounds=3),
    "power loss of all processes": Fault(injections_ray.power, ("local", "vllm"), rounds=3),
    "Ray worker outlives its daemon": Fault(
        injections_ray.outlive, ("ray",), files=(5, 9), nodes=2, rounds=4
    ),
}
