"""The engines as the loop sees them: which models are ready, why others are not, what failed at the start.

A thread starts them, then looks at them again and again, so that the loop never waits for an engine. It has
scheduler/capacity.py decide how many each model should have, from what the loop says there is to do, and does
it. It wakes the loop when anything changes.

Engines end only when nothing can be sent to them: first a view is published in which their model is not ready
and its runs are to stop, then the loop hands that view's number back, with no run of the model going.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from daemon import logs
from pipeline import errors
from pipeline.placement import Pools
from pipeline.team import ModelState
from scheduler.capacity import Capacity
from scheduler.engines import Absence, Decision, Demand, Model, Team

POLL_EVERY_S = 1.0
# In a row that find the engines idle, before workers for several runs at a time are started, once: on 2 cores
# that takes 5 s, by which the first batch after a start would end later (measured 2026-11-24).
QUIET_LOOKS = 3
_log = logs.get()


class Fleet(Protocol):
    """What is needed of pipeline.fleet.Fleet."""

    def room(self) -> float:
        """GPUs that there are."""

    def start_engines(self, counts: Mapping[str, int]) -> None:
        """Start so many of each model; blocks."""

    def grow(self, model: str, count: int) -> None:
        """Start engines of a model until it has so many; returns at once."""

    def shrink(self, model: str, count: int) -> None:
        """Stop engines of a model until it has so many; returns at once."""

    def warm_up(self, is_over: Callable[[], bool]) -> None:
        """Make ready for several runs at a time; blocks."""

    def poll(self) -> list[ModelState]:
        """What every model did since the last poll."""

    def pools(self) -> Pools:
        """How the pools are since then."""


class Observer(Protocol):
    """Who is told, on the engines' thread."""

    def observe(self, state: ModelState) -> None:
        """What a model did since the last look."""

    def planned(self, model: str, replicas: int) -> None:
        """How many replicas a model should have."""

    def swapped(self, model: str) -> None:
        """Engines of a model were stopped because another one needs the room."""


@dataclass(frozen=True, slots=True)
class View:
    """What a pass of the loop goes by.

    Attributes:
        number: of this view, to be handed back.
        ready: models that take requests.
        leaving: models whose runs are to be stopped.
        coming: models whose first engine starts because there is something to do for it.
        absent: why a model is not ready, in a class and in words; only of those that have something to do.
        targets: replicas that each model should have.
        decided: requests by model that this was decided for.
    """

    number: int = 0
    ready: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    coming: frozenset[str] = frozenset()
    absent: Mapping[str, tuple[Absence, str]] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)
    decided: Mapping[str, int] = field(default_factory=dict, compare=False)


class Engines:
    """Has the fleet's engines started and stopped by a thread, and remembers what they last said."""

    def __init__(
        self,
        fleet: Fleet,
        models: Sequence[Model],
        wake: threading.Event,
        observer: Observer,
        idle_s: float = 0.0,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            fleet: Ray runs.
            models: in the order of the settings.
            wake: is set when anything changes for the loop.
            observer: is told what happens.
            idle_s: engine.idle_s.
        """
        self._fleet = fleet
        self._wake = wake
        self._observer = observer
        self._stop = threading.Event()
        self._nudge = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="engines", daemon=True)
        self._capacity = Capacity(models, idle_s, time.monotonic())
        self._handed: tuple[Mapping[str, Demand], int] = ({}, 0)
        self._draining: dict[str, int] = {}  # model -> number of the first view that says so
        self._coming: set[str] = set()
        self._failing: set[str] = set()
        self.view = View(targets={model.name: model.first for model in models})
        self.pools = Pools()
        self.error: errors.EngineStartError | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the polling; does not wait for an engine that is still loading."""
        self._stop.set()
        self._nudge.set()
        self._thread.join(timeout_s)

    @property
    def is_at_work(self) -> bool:
        """Whether its thread still uses Ray, such as for an engine that is still loading."""
        return self._thread.is_alive()

    @property
    def ready(self) -> frozenset[str]:
        """Models that take requests."""
        return self.view.ready

    @property
    def starting(self) -> list[str]:
        """Models that should take requests now and do not.

        Not those that are stopped on purpose, or come back from it: that is no fault of the daemon's.
        """
        view = self.view
        failed = {model for model, (why, _) in view.absent.items() if why is Absence.FAILED}
        return [
            model
            for model in self._capacity.models
            if model in failed or (view.targets[model] and model not in view.ready | view.coming)
        ]

    def ready_for(self, view: View, requests: Mapping[str, int]) -> frozenset[str]:
        """Models of which runs may begin now.

        A run goes to the engines that there are when it begins, also to those that start then. So where there
        should be more for what is queued, it waits until that was decided, for a second at most.

        Args:
            view: that this pass goes by.
            requests: queued and running, by model.
        """

        def is_decided(model: str) -> bool:
            needed = self._capacity.models[model].needed(requests.get(model, 0))
            return needed <= view.targets[model] or requests.get(model, 0) <= view.decided.get(model, 0)

        return frozenset(filter(is_decided, view.ready))

    def hand_over(self, demands: Mapping[str, Demand], number: int) -> None:
        """Take in what there is to do after a pass of the loop that went by the view of this number."""
        before, number_before = self._handed
        self._handed = demands, number
        view, requests = self.view, {model: demand.requests for model, demand in demands.items()}
        is_undecided = self.ready_for(view, requests) != view.ready
        if is_undecided or number != number_before or demands.keys() != before.keys():
            self._nudge.set()

    def _serve(self) -> None:
        try:
            self._start_first()
            self._look()
            quiet_looks = 0
            while self._wait():
                is_busy = self._look()
                if quiet_looks < QUIET_LOOKS:
                    quiet_looks = 0 if is_busy else quiet_looks + 1
                    if quiet_looks == QUIET_LOOKS:
                        self._fleet.warm_up(self._stop.is_set)
        except errors.EngineStartError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 (a thread that ends unseen would leave the daemon waiting for ever)
            if not self._stop.is_set():
                _log.exception("engines_lost")
            self.error = errors.EngineStartError(
                f"engines cannot be served any more: {error!r}: start the daemon again"
            )
        self._wake.set()

    def _start_first(self) -> None:
        counts = self._capacity.first(self._fleet.room())
        self.view = dataclasses.replace(self.view, targets=counts)
        for model, count in counts.items():
            self._observer.planned(model, count)
        self._fleet.start_engines(counts)

    def _wait(self) -> bool:
        """Until the next look; False at the end."""
        self._nudge.wait(POLL_EVERY_S)
        self._nudge.clear()
        return not self._stop.is_set()

    def _look(self) -> bool:
        """Take in what the models say, and do what is decided; whether any has something to do."""
        states = {state.model: state for state in self._fleet.poll()}
        demands, number = self._handed
        now = time.monotonic()
        for state in states.values():
            self._observer.observe(state)
            if state.up:
                self._failing.discard(state.model)
            if state.problem is not None:
                self._failing.add(state.model)
                retry_s = self._capacity.failed(state.model, state.problem, now)
                _log.error(
                    "engine_not_started", model=state.model, reason=state.problem, retry_s=round(retry_s)
                )
        room = self._fleet.room()
        teams = {
            state.model: Team(state.replicas, state.up, state.start_seconds) for state in states.values()
        }
        decision = self._capacity.decide(demands, teams, room, now)
        self._stop_some(decision, demands, states, number)
        self._start_some(decision, states, room)
        self._publish(decision, demands, states)
        self._look_at_pools()
        return bool(demands) or any(state.inflight for state in states.values())

    def _stop_some(
        self,
        decision: Decision,
        demands: Mapping[str, Demand],
        states: Mapping[str, ModelState],
        number: int,
    ) -> None:
        """Stop engines that are too many, once nothing can be sent to them any more."""
        for model, target in decision.targets.items():
            if target >= states[model].replicas:
                self._draining.pop(model, None)
                continue
            since = self._draining.setdefault(model, self.view.number + 1)
            has_runs = model in demands and demands[model].runs > 0
            if number >= since and not has_runs:
                del self._draining[model]
                self._fleet.shrink(model, target)
                is_swapped = model in decision.swapped
                if is_swapped:
                    self._observer.swapped(model)
                _log.info(
                    "engine_stopped",
                    model=model,
                    reason="swapped" if is_swapped else "idle",
                    replicas=target,
                )

    def _start_some(self, decision: Decision, states: Mapping[str, ModelState], room: float) -> None:
        """Start engines that lack, as far as those that go have left their room already."""
        models = self._capacity.models
        for model, state in states.items():
            # Those that were stopped just now are counted as there; they are told as leaving next time.
            room -= (state.replicas + state.leaving) * models[model].size
        for model, target in decision.targets.items():
            has, size = states[model].replicas, models[model].size
            count = min(target, has + int(room / size + 1e-9)) if size else target
            why, _ = decision.absent.get(model, (None, ""))
            self._observer.planned(model, max(target, why is Absence.FAILED))
            if count > has:
                room -= (count - has) * size
                _log.info("engine_starting", model=model, replicas=count)
                self._fleet.grow(model, count)
                if not has:
                    self._coming.add(model)

    def _publish(
        self, decision: Decision, demands: Mapping[str, Demand], states: Mapping[str, ModelState]
    ) -> None:
        """Tell the loop what has changed."""
        before = self.view
        leaving = frozenset(self._draining)
        up = {model for model, state in states.items() if state.up}
        self._coming = {model for model in self._coming - up if decision.targets[model]}
        view = View(
            before.number,
            frozenset(model for model in up - leaving if decision.targets[model]),
            leaving,
            frozenset(self._coming - self._failing),
            decision.absent,
            decision.targets,
            {model: demand.requests for model, demand in demands.items()},
        )
        for model in sorted(view.ready ^ before.ready):
            if model in view.ready:
                _log.info("engine_ready", model=model, start_seconds=states[model].start_seconds)
            elif model not in leaving and decision.targets[model]:
                _log.warning("engine_down", model=model)
        is_news = view != before
        self.view = dataclasses.replace(view, number=before.number + is_news)
        if is_news or any(count > before.decided.get(model, 0) for model, count in view.decided.items()):
            self._wake.set()

    def _look_at_pools(self) -> None:
        pools = self._fleet.pools()
        if pools != self.pools:
            for pool in sorted(pools.lost - self.pools.lost):
                _log.warning("pool_lost", pool=pool)
            for pool in sorted(pools.ready - self.pools.ready):
                _log.info("pool_ready", pool=pool)
            self.pools = pools
            self._wake.set()
