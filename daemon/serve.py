"""Builds the daemon from its settings, runs the loop, and takes everything down again in order."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import prometheus_client

from config.settings import Settings
from daemon import endings, http, logs, metrics, needs, signals
from daemon.clock import Clock
from daemon.engines import Engines
from daemon.intake import Intake
from daemon.lifecycle import Lifecycle
from daemon.loop import Loop, Parts
from daemon.progress import Progress
from daemon.report import EngineMetrics, Reporter
from daemon.runs import Runs
from daemon.watch import Watcher
from daemon.workers import Workers
from pipeline import kinds
from pipeline.fleet import Fleet
from pipeline.run import Work
from pipeline.run import run as run_works
from spool import create, layout, lease

# Start-up recovery of thousands of batches, and the start of Ray, happen without a completed step.
_STALE_S = 120.0
# For a poll of the engines to end, seconds.
_ENGINES_S = 5.0

_log = logs.get()


class NotStarted(Exception):
    """The daemon cannot start; the message is one line."""


def preflight(settings: Settings) -> None:
    """Find what can be found without Ray and without loading a model.

    Raises:
        EngineStartError: a model cannot be served here.
        NotStarted: the hook cannot be run.
    """
    for model in settings.models:
        kinds.preflight(model)
    hook = settings.hooks.on_terminal
    if hook and not shutil.which(hook[0]):
        raise NotStarted(
            f"hooks.on_terminal: {hook[0]!r} is no program that this user can run: give its full path"
        )


def serve(settings: Settings) -> None:
    """Serve the spool until a signal asks to stop. Must be called in the main thread.

    Raises:
        SpoolUnavailable: the spool cannot be used.
        InstanceLost: another daemon took this one for dead.
        EngineStartError: Ray or an engine cannot be started.
        NotStarted: the metrics port cannot be had.
    """
    logs.configure(settings.log)
    stop, wake = threading.Event(), threading.Event()
    signals.install(stop, wake)
    home = create.open_or_create(Path(settings.spool.root))
    create.check_writable(home)
    registry = prometheus_client.CollectorRegistry()
    count = metrics.Metrics(registry, [model.name for model in settings.models])
    health = http.Health(_STALE_S)
    server = http.Server(settings.metrics, registry, health)
    # Taken down in the opposite order: the lease last, so that nobody adopts what is still being put away.
    with contextlib.ExitStack() as stack:
        held = lease.Lease(home, heartbeat_s=settings.lease.heartbeat_s, expire_s=settings.lease.expire_s)
        stack.callback(held.release)
        try:
            server.start()
        except http.CannotListen as error:
            raise NotStarted(str(error)) from error
        stack.callback(server.stop)
        host, port = server.address
        url = f"http://{host}:{port}/metrics"
        _log.info("starting", spool=str(home.root), instance=held.folder.name, metrics=url)
        fleet = Fleet(settings)
        stack.callback(fleet.stop)
        fleet.start_ray(lambda lost: endings.without_ray(lost, stop, held))
        logs.absorb("ray")
        loop = _build(settings, home, held, fleet, count, health, wake, stack)
        _run(loop, stop, fleet, held)
    _log.info("stopped")


def _run(loop: Loop, stop: threading.Event, fleet: Fleet, held: lease.Lease) -> None:
    """Run the loop to its end; with threads that still use Ray then, the process ends here."""
    problem: Exception | None = None
    try:
        loop.run(stop)
    except Exception as error:  # noqa: BLE001 (raised again below; Ray's threads must be looked at first)
        problem = error
    loop.parts.engines.stop(_ENGINES_S)
    if loop.parts.engines.is_at_work or loop.parts.workers.under_way:
        fleet.stop_engines()
        endings.under_threads(held, problem)
    if problem:
        raise problem


def _build(
    settings: Settings,
    home: layout.Layout,
    held: lease.Lease,
    fleet: Fleet,
    count: metrics.Metrics,
    health: http.Health,
    wake: threading.Event,
    stack: contextlib.ExitStack,
) -> Loop:
    """The loop with all that it works with, begun; what must be ended is put on the stack."""
    models = needs.models(settings, fleet.sizes(), fleet.places)
    engines = Engines(fleet, models, wake, EngineMetrics(count), settings.engine.idle_s)
    stack.callback(engines.stop, _ENGINES_S)
    engines.start()
    watcher = Watcher(home.inbox, settings.inbox.backend, wake)
    stack.callback(watcher.stop)
    watcher.start()
    pools = settings.scheduler.pools
    workers = Workers(wake, runs=pools.spot.capacity + pools.dedicated.capacity)
    stack.callback(workers.stop)

    def execute(works: list[Work], model: str, pool: str) -> None:
        run_works(works, model, fleet, settings, pool)

    clock = Clock()
    runs = Runs(settings, workers, count, execute)
    progress = Progress(count)
    return Loop(
        Parts(
            settings=settings,
            home=home,
            lease=held,
            clock=clock,
            wake=wake,
            workers=workers,
            engines=engines,
            intake=Intake(settings, home, held.folder, watcher, count),
            runs=runs,
            lifecycle=Lifecycle(settings, home, clock, workers, runs, progress, count),
            reporter=Reporter(runs, progress, count, pools.spot.preempt_every_s),
            metrics=count,
            health=health,
        )
    )
