"""The fleet: Ray itself and the replicas of every configured model, from start to stop.

Replicas belong to the process that started them and live as long as it does; Ray restarts those that die.
A replica whose process says nothing for `responder.patience_s` is killed, so that Ray restarts it. `poll`
never waits longer than POLL_S, and is what notices both. What replicas say is added up in team.py; how Ray
itself is started is in ray_start.py, and it is imported inside functions only.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from config import settings
from pipeline import errors, gate, placement, ray_start, ray_watch, responder, slices
from pipeline.team import Member, ModelState, Team, collect, started

_log = logging.getLogger(__name__)

# Most workers that are kept warm for the tasks of runs, each a process of Ray's.
MAX_WARM = 2 * slices.MAX_TASKS
# Longest wait in poll(), seconds.
POLL_S = 1.0
# Seconds between two polls after which what was asked before counts as asked now.
DEAF_S = 10.0


class Fleet:
    """Ray and all replicas. `start_ray`, `start_engines` and `stop` belong to the main thread."""

    def __init__(self, configured: settings.Settings) -> None:
        self._settings = configured
        self._teams = {model.name: Team(model) for model in configured.models}
        self._session: Path | None = None
        self._watch: ray_watch.RayWatch | None = None
        self._polled_at = float("-inf")
        self._warm = _workers_for(configured)
        self._apart = placement.resources(configured)
        self._sizes: dict[str, float] = {}

    def start_ray(self, on_lost: Callable[[ray_watch.Watched], None] | None = None) -> None:
        """Start a private Ray, or connect to the configured cluster; seconds.

        Must be called in the main thread: Ray's processes end with the thread that started them.

        Args:
            on_lost: called on another thread when a process has ended that Ray cannot do without.

        Raises:
            EngineStartError: Ray cannot start or be reached.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start_ray belongs in the main thread")
        replicas = sum(team.model.max_replicas for team in self._teams.values())  # this node's, at most
        ray_start.prepare(self._settings.ray.address, self._warm + replicas)
        import ray

        try:
            ray_start.start(self._settings)
        except (OSError, RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())[:500]
            raise errors.EngineStartError(f"ray.address {self._settings.ray.address}: {reason}") from error
        if self._settings.ray.address == "local":
            self._session = Path(ray._private.worker._global_node.get_session_dir_path())
        if on_lost:
            self._watch = ray_watch.RayWatch(on_lost)
            self._watch.start()
        from pipeline import data

        data.configure()

    def sizes(self) -> dict[str, float]:
        """GPUs of a replica of each model, in all pools together that have their own; 0 where Ray has none.

        Raises:
            EngineStartError: Ray has GPUs, but too few for a model alone.
        """
        pools = self.places
        for name, team in self._teams.items():
            self._sizes[name] = placement.gpus_for(team.model, pools)
        return {name: pools * each for name, each in self._sizes.items()}

    @property
    def places(self) -> int:
        """Pools that have their own engines; 1 where they share them."""
        return len(self._places())

    def room(self) -> float:
        """GPUs that Ray has now."""
        import ray

        return float(ray.cluster_resources().get("GPU", 0.0))

    def start_engines(self, counts: Mapping[str, int] | None = None) -> None:
        """Start replicas and wait until all can answer; on a cluster, until one of each model can.

        Args:
            counts: how many of each model, in each pool that has its own; None is what the settings say.

        Raises:
            EngineStartError: one cannot start; the message is one line.
        """
        import ray

        from pipeline import data

        waiting: dict[Any, Team] = {}
        self.sizes()
        for name, team in self._teams.items():
            for member in self._added(team, team.model.min_replicas if counts is None else counts[name]):
                waiting[member.starting], member.starting = team, None
        # While the engines load, which want the processors themselves: no more than a first run needs.
        data.warm_up(self._all_handles(), _tasks_of_a_run(self._settings))
        while waiting and not (placement.is_cluster(self._settings) and self._has_all_models()):
            done, _ = ray.wait(list(waiting), num_returns=1)
            for ready in done:
                team = waiting.pop(ready)
                team.start_seconds = started(team.model, ready)

    def grow(self, model: str, count: int) -> None:
        """Have a model get so many replicas, in each pool that has its own; returns at once.

        A start that fails is told by `poll`, and its replica is gone then.
        """
        self._added(self._teams[model], count)

    def _added(self, team: Team, count: int) -> list[Member]:
        from pipeline import replica

        added: list[Member] = []
        for pool, wanted in self._places():
            placed = {
                "num_gpus": self._sizes[team.model.name],
                **placement.of_engine(self._settings, wanted),
            }
            for _ in range(count - sum(member.pool == pool for member in team.members)):
                handle = replica.create(team.model, self._settings.engine, placed)
                added.append(Member(handle, pool, starting=handle.ready.remote()))
        team.members = [*team.members, *added]
        return added

    def shrink(self, model: str, count: int) -> None:
        """Have a model keep so many replicas, in each pool that has its own; returns at once.

        Nothing may run in it: what was sent to a replica that ends is suspected of having killed it.
        """
        team = self._teams[model]
        kept: list[Member] = []
        for pool, _ in self._places():
            members = [member for member in team.members if member.pool == pool]
            kept += sorted(members, key=lambda member: member.start_s is None)[:count]
        self._dismiss(team, [member for member in team.members if member not in kept])

    def _places(self) -> list[tuple[str | None, dict[str, float]]]:
        """Each pool that has its own engines, and what they ask of a node; or one place for all."""
        return [*self._apart.items()] or [(None, {})]

    @staticmethod
    def _dismiss(team: Team, members: Sequence[Member]) -> None:
        team.members = [member for member in team.members if member not in members]
        team.leaving.dismiss(member.handle for member in members)

    def warm_up(self, is_over: Callable[[], bool]) -> None:
        """Have the workers of further runs started; seconds.

        Args:
            is_over: asked now and then whether nobody needs them any more.
        """
        import ray

        from pipeline import data

        try:
            data.warm_up(self._all_handles(), self._warm, is_over)
        except ray.exceptions.RayError as error:  # a run starts those that it misses
            _log.warning("workers_not_warm", extra={"reason": errors.one_line(str(error))})

    def _has_all_models(self) -> bool:
        return all(team.start_seconds is not None for team in self._teams.values() if team.members)

    def _all_handles(self) -> list[Any]:
        return [member.handle for team in self._teams.values() for member in team.members]

    def _look_at_starts(self, team: Team) -> None:
        """Take in starts that have ended; Ray would repeat one that failed again and again."""
        import ray

        team.problem = None
        for member in list(team.members):
            if member.starting is None or not ray.wait([member.starting], timeout=0)[0]:
                continue
            try:
                team.start_seconds = started(team.model, member.starting)
            except errors.EngineStartError as error:
                team.problem = str(error)
                self._dismiss(team, [member])
            member.starting = None

    def handles(self, model: str, pool: str | None = None) -> list[Any]:
        """The actor handles of a model's replicas: all, or those that a pool uses."""
        members = self._teams[model].members  # those that start join in as soon as they are up
        return [member.handle for member in members if pool is None or member.pool in (None, pool)]

    def pools(self) -> placement.Pools:
        """How the pools are, as far as the last poll told."""
        if not self._apart:
            return placement.Pools()
        import ray

        lost = placement.lost(self._apart, ray.nodes())
        # Of those that are stopped, or start for the first time, no run goes on that could need a pool.
        up = [team for team in self._teams.values() if any(member.is_up for member in team.members)]
        needed = up or [team for team in self._teams.values() if team.members]
        ready = {
            pool
            for pool in self._apart.keys() - lost
            if all(any(member.pool == pool and member.is_up for member in team.members) for team in needed)
        }
        return placement.Pools(frozenset(ready), lost)

    def poll(self) -> list[ModelState]:
        """Ask every replica what it did since the last poll; at most POLL_S.

        A replica that does not answer in time is not up; its numbers come with a later poll.
        """
        import ray

        for team in self._teams.values():
            team.leaving.look()
            self._look_at_starts(team)
        members = [member for team in self._teams.values() for member in team.members]
        now = time.monotonic()
        # Where nobody polled for a while, as when this process was stopped, nobody's silence was heard.
        was_deaf = now - self._polled_at > DEAF_S
        self._polled_at = now
        for member in members:
            if member.asked is None or was_deaf:
                member.asked_at = now
            if member.asked is None:
                member.asked = member.handle.stats.remote()
        asked = [member.asked for member in members]
        done = set(ray.wait(asked, num_returns=len(asked), timeout=POLL_S)[0]) if asked else set()
        for team in self._teams.values():
            for member in team.members:
                if member.asked not in done:
                    self._restart_if_hung(team.model, member)
        pools = [pool for pool, _ in self._places()]
        return [collect(team, done, pools) for team in self._teams.values()]

    def _restart_if_hung(self, model: settings.ModelSettings, member: Member) -> None:
        """Kill a replica that has an engine and is silent; one that starts may take as long as it needs."""
        import ray

        silent_s = time.monotonic() - member.asked_at
        if member.start_s is None or silent_s <= responder.patience_s(self._settings.engine):
            return
        _log.error("replica_hung", extra={"model": model.name, "silent_s": round(silent_s, 1)})
        member.start_s, member.asked = None, None
        # Also of a process that is stopped: Ray then kills it by SIGKILL, 6.5 s later (2.60, 2026-11-23).
        ray.kill(member.handle, no_restart=False)

    def stop(self) -> None:
        """Stop engines first, then Ray with all its processes.

        No other thread may use Ray any more: where one does, Ray's C++ ends this process with 1 (2.60).
        """
        import ray

        if not ray.is_initialized():
            return
        self.stop_engines()
        if self._watch:
            self._watch.stop()
        ray.shutdown()
        if self._session is not None:
            # Ray never deletes a session; a daemon that is restarted for months would fill /tmp.
            shutil.rmtree(self._session, ignore_errors=True)
            self._session = None

    def stop_engines(self) -> None:
        """Stop engines, so that they free what they hold, and leave Ray to the end of this process."""
        for team in self._teams.values():
            self._dismiss(team, team.members)
        for team in self._teams.values():  # they stop all at once, so that the first wait is the longest
            team.leaving.end_all()


def _tasks_of_a_run(configured: settings.Settings) -> int:
    """Workers that the tasks of one run take, of the model that needs most."""
    shapes = [slices.shape(gate.max_num_seqs(model), model.max_replicas) for model in configured.models]
    return max(shape.tasks for shape in shapes)


def _workers_for(configured: settings.Settings) -> int:
    """Workers that the tasks of all runs take together, when as many runs go on as the pools allow."""
    pools = configured.scheduler.pools
    runs = pools.spot.capacity + pools.dedicated.capacity
    return min(MAX_WARM, _tasks_of_a_run(configured) * runs)
