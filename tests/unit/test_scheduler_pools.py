"""The pools: slots, simulated pre-emption, and pools of real nodes that come and go."""

from __future__ import annotations

import statistics

import pytest

from config.settings import DedicatedSettings, PoolsSettings, SpotSettings
from scheduler.errors import OutOfStep
from scheduler.job import PoolName
from scheduler.pools import Pools, Run


def _pools(spot: int = 2, dedicated: int = 1, preempt_every_s: float = 0, seed: int = 0) -> Pools:
    settings = PoolsSettings(
        spot=SpotSettings(capacity=spot, preempt_every_s=preempt_every_s),
        dedicated=DedicatedSettings(capacity=dedicated),
    )
    return Pools(settings, seed)


def _lifetimes(seed: int, runs: int = 20) -> list[str]:
    pools = _pools(spot=runs, preempt_every_s=60, seed=seed)
    for number in range(runs):
        pools.take(Run(f"r{number}", "spot", 0.0))
    return pools.preempt(1e9)


def test_capacity_comes_from_the_settings():
    """A fresh pool is all free."""
    pools = _pools(spot=3, dedicated=0)
    assert [pools.capacity("spot"), pools.free("spot")] == [3, 3]
    assert [pools.capacity("dedicated"), pools.free("dedicated")] == [0, 0]


def test_a_slot_is_taken_and_given_back():
    """A run takes one slot of its own pool and gives it back."""
    pools = _pools()
    pools.take(Run("r", "spot", 0.0))
    assert (pools.free("spot"), pools.free("dedicated")) == (1, 1)
    pools.release("r")
    assert pools.free("spot") == 2


@pytest.mark.parametrize("pool", ["spot", "dedicated"])
def test_a_full_pool_gives_no_slot(pool: PoolName):
    """Capacity is never exceeded, whoever asks."""
    pools = _pools(spot=1, dedicated=1)
    pools.take(Run("r", pool, 0.0))
    with pytest.raises(OutOfStep, match=f"no free slot in {pool}"):
        pools.take(Run("s", pool, 0.0))
    assert pools.free(pool) == 0


def test_a_run_takes_one_slot_and_releases_it_once():
    """A second take or release of the same run is our own mistake."""
    pools = _pools()
    pools.take(Run("r", "spot", 0.0))
    with pytest.raises(OutOfStep, match="already"):
        pools.take(Run("r", "dedicated", 0.0))
    pools.release("r")
    with pytest.raises(OutOfStep, match="no slot"):
        pools.release("r")


def test_a_run_is_preempted_once_and_keeps_its_slot_until_released():
    """preempt() names a run once; what runs on it may still be stopping."""
    pools = _pools(preempt_every_s=60)
    pools.take(Run("r", "spot", 0.0))
    assert pools.preempt(0.0) == []
    assert pools.preempt(1e6) == ["r"]
    assert pools.preempt(1e6) == []
    assert pools.free("spot") == 1
    pools.release("r")
    assert pools.free("spot") == 2


def test_dedicated_runs_and_ended_runs_are_never_preempted():
    """Only a spot run that is still going can be pre-empted."""
    pools = _pools(preempt_every_s=1)
    pools.take(Run("safe", "dedicated", 0.0))
    pools.take(Run("ended", "spot", 0.0))
    pools.release("ended")
    assert pools.preempt(1e9) == []


def test_nothing_is_preempted_when_the_mean_is_zero():
    """preempt_every_s of 0 means never."""
    pools = _pools(preempt_every_s=0)
    pools.take(Run("r", "spot", 0.0))
    assert pools.preempt(1e12) == []


def test_the_same_seed_gives_the_same_preemptions():
    """The simulation depends on its seed and its takes alone."""
    assert _lifetimes(seed=7) == _lifetimes(seed=7)
    assert _lifetimes(seed=7) != _lifetimes(seed=8)


def test_lifetimes_count_from_the_start_of_the_run_with_the_mean_of_the_settings():
    """Lifetimes are exponential: their mean and spread are preempt_every_s."""
    pools = _pools(spot=2000, preempt_every_s=60, seed=1)
    for number in range(2000):
        pools.take(Run(f"r{number}", "spot", 1000.0))
    assert pools.preempt(1000.0) == []
    lifetimes = [float(second) for second in range(1, 1000) for _ in pools.preempt(1000.0 + second)]
    assert len(lifetimes) == 2000
    assert statistics.mean(lifetimes) == pytest.approx(60, rel=0.1)
    assert statistics.stdev(lifetimes) == pytest.approx(60, rel=0.1)


def test_a_closed_pool_gives_no_slot():
    """Its runs go on, and what is free comes back with it."""
    pools = _pools(spot=2)
    pools.take(Run("r", "spot", 0.0))
    pools.open_only({"dedicated"})
    assert (pools.capacity("spot"), pools.free("spot"), pools.free("dedicated")) == (0, 0, 1)
    with pytest.raises(OutOfStep, match="no free slot in spot"):
        pools.take(Run("s", "spot", 0.0))
    pools.open_only({"spot", "dedicated"})
    assert pools.free("spot") == 1


def test_a_lost_pool_preempts_its_runs_once():
    """Those of the other pool go on; a new run in the pool that came back may be lost again."""
    pools = _pools(spot=2)
    runs: list[tuple[str, PoolName]] = [("r", "spot"), ("s", "spot"), ("d", "dedicated")]
    for name, pool in runs:
        pools.take(Run(name, pool, 0.0))
    assert pools.preempt(1.0) == []
    assert pools.preempt(1.0, {"spot"}) == ["r", "s"]
    assert pools.preempt(1.0, {"spot"}) == []
    pools.release("r")
    pools.take(Run("r", "spot", 2.0))
    assert pools.preempt(3.0, {"spot"}) == ["r"]


def test_a_run_that_is_due_and_lost_is_named_once():
    """Simulation and loss at the same time are one pre-emption."""
    pools = _pools(spot=1, preempt_every_s=1)
    pools.take(Run("r", "spot", 0.0))
    assert pools.preempt(1e9, {"spot"}) == ["r"]
    assert pools.preempt(1e9, {"spot"}) == []
