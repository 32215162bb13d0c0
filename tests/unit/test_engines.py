"""The thread that starts engines: when workers for several runs at a time are started."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import pytest

from daemon import engines
from pipeline.placement import Pools
from pipeline.team import ModelState
from scheduler.engines import Model
from spool.parts import Usage

LIMIT_S = 20.0


class Observer:
    """Who is told what the engines' thread did."""

    def __init__(self) -> None:
        self.planned_now: dict[str, int] = {}
        self.swaps: list[str] = []

    def observe(self, state: ModelState) -> None:
        pass

    def planned(self, model: str, replicas: int) -> None:
        self.planned_now[model] = replicas

    def swapped(self, model: str) -> None:
        self.swaps.append(model)


class Fleet:
    """One model that has requests in flight in the first looks."""

    def __init__(self, busy_looks: int) -> None:
        self._busy_looks = busy_looks
        self.looks = 0
        self.warmed_at: list[int] = []

    def room(self) -> float:
        return 0.0

    def start_engines(self, counts: Mapping[str, int]) -> None:
        assert counts == {"m": 1}

    def grow(self, model: str, count: int) -> None:
        raise AssertionError(model)

    def shrink(self, model: str, count: int) -> None:
        raise AssertionError(model)

    def warm_up(self, is_over: Callable[[], bool]) -> None:
        assert not is_over()
        self.warmed_at.append(self.looks)

    def poll(self) -> list[ModelState]:
        self.looks += 1
        inflight = 5 if self.looks <= self._busy_looks else 0
        return [ModelState("m", 1, 1, 0, 0.1, inflight, (), {}, Usage())]

    def pools(self) -> Pools:
        return Pools()


@pytest.mark.parametrize("busy_looks", [0, 6])
def test_further_workers_start_once_when_nothing_was_to_be_done(
    monkeypatch: pytest.MonkeyPatch, busy_looks: int
) -> None:
    """The first batch after a start once shared its processors with them."""
    monkeypatch.setattr(engines, "POLL_EVERY_S", 0.001)
    fleet = Fleet(busy_looks)
    made = engines.Engines(fleet, [Model("m")], threading.Event(), Observer())
    made.start()
    ends_at = time.monotonic() + LIMIT_S
    while fleet.looks < 30 and time.monotonic() < ends_at:
        time.sleep(0.001)
    made.stop(LIMIT_S)
    assert made.ready == {"m"}
    # The first look finds what is ready, and counts for nothing.
    assert fleet.warmed_at == [max(1, busy_looks) + engines.QUIET_LOOKS]
