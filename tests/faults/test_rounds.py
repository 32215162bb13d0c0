"""A few rounds of the main faults, with new seeds each time, and the proof that they can find something.

`make faults` plays them for long; docs/reliability.md says what came of that. The seed of a failing test
stands in its output and plays it again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import catalog, rounds
from tests.faults.judgement import Round
from tests.faults.nodes import Engine

# Fault and rounds: few, so that tests/faults takes two minutes on two idle cores.
LIGHT = {
    "kill -9 daemon": 3,
    "exit at a named point": 2,
    "SIGTERM in each phase": 3,
    "SIGSTOP past the lease": 1,
    "pre-emption": 2,
    "cancel": 3,
    "clock jumps 1 h": 2,
    "4 daemons, kill -9 and SIGSTOP": 1,
}
# Each needs a Ray or two of its own; deaths of replicas and workers are in tests/integration as well.
RAY = ["kill -9 engine replica", "kill -9 Ray worker", "Ray worker outlives its daemon"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[rounds.Hosts]:
    """The Rays that tests share."""
    made = rounds.Hosts()
    yield made
    made.close()


def _play(name: str, engine: Engine, count: int, hosts: rounds.Hosts, folder: Path) -> list[Round]:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f'python -m tests.faults.rounds --seed {seed} --fault "{name}" --engine {engine} --rounds {count}')
    return list(rounds.play_life(name, engine, seed, count, hosts, folder))


@pytest.mark.parametrize("name", LIGHT)
def test_the_real_daemon_loses_and_doubles_nothing(name: str, hosts: rounds.Hosts, tmp_path: Path) -> None:
    """Its own process, with a stand-in for Ray."""
    for done in _play(name, "light", LIGHT[name], hosts, tmp_path):
        assert done.verdict.is_right, done.verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", RAY)
def test_runs_on_ray_lose_and_double_nothing(name: str, hosts: rounds.Hosts, tmp_path: Path) -> None:
    """The echo engine on a real Ray, of which processes are killed."""
    for done in _play(name, "ray", 1, hosts, tmp_path):
        assert done.verdict.is_right, done.verdict


def test_a_claim_by_check_then_create_is_found_out(hosts: rounds.Hosts, tmp_path: Path) -> None:
    """A harness that cannot fail proves nothing: four daemons with a bad claim lose or double files."""
    found = _play("4 daemons, kill -9 and SIGSTOP", "broken", 1, hosts, tmp_path)
    assert sum(len(done.verdict.doubled) for done in found) > 0


def test_every_fault_has_a_life_in_the_long_run() -> None:
    """`make faults` plays each fault on at least one engine besides the broken one."""
    played = {(name, engine) for name, fault in catalog.FAULTS.items() for engine in fault.engines}
    assert {name for name, engine in played if engine != "broken"} == set(catalog.FAULTS)
