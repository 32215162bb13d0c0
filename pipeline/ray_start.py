"""Starts Ray for this process: a private one, or the connection to a cluster that others started.

Of a private Ray only what its work needs is started: its dashboard's head, its log monitor and its autoscaler
are processes of 80 to 115 MB each, which nobody here would ask, and which take 3.5 s of processor time at the
start and wake up all the time. Ray is imported inside functions only.

Limits: a local Ray listens on the machine's own address, behind a random token. A Ray cluster by address must
have these packages installed; of its nodes only the daemon's own needs the spool.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import settings

_log = logging.getLogger(__name__)

# Requests and answers of the shards in flight; Ray spills to disk beyond it.
OBJECT_STORE_BYTES = 256 << 20
# Two actors of Ray Data's own, which take a worker each.
_RAY_DATA_WORKERS = 2

# What Ray's processes read from the environment; the user's own values win.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # The driver may write to the same log for months: 16 MiB and one older file for each process.
    "RAY_ROTATION_MAX_BYTES": str(16 << 20),
    "RAY_ROTATION_BACKUP_COUNT": "1",
    # Below it, Ray Data makes a log file for every execution.
    "RAY_DATA_LOG_LEVEL": "WARNING",
    # Kills what a dead worker leaves behind, such as vLLM's engine process.
    "RAY_process_group_cleanup_enabled": "1",
    "RAY_enable_metrics_collection": "0",
    # Ray's own default is 15, for engines as for all others: each process of Ray's would run before them. Who
    # is to give way to them does so itself, see pipeline/priority.py.
    "RAY_worker_niceness": "0",
    # A thread that asks for something after the end must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Whoever reaches Ray's ports could run code otherwise.
    "RAY_AUTH_MODE": "token",
    # Ray warns about a coming default for GPUs; ours are always asked for by number.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def prepare(address: str, workers: int) -> None:
    """Set the environment of Ray's processes, before the first import of ray.

    Args:
        address: `local`, or of a cluster.
        workers: processes that are kept although they are idle, Ray Data's own not counted.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_num_workers_soft_limit", str(workers + _RAY_DATA_WORKERS))
    if address == "local" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray listens on the machine's address: only its processes know this token, and it is in no file.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def start(configured: settings.Settings) -> None:
    """Start it or connect to it, after `prepare`.

    Raises:
        OSError, RuntimeError, ConnectionError, ray.exceptions.RayError: it cannot start or be reached.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.WARNING)
    with _own_signals(), lean():
        ray.init(**_options(configured))
    _redirect_prints()


def _options(configured: settings.Settings) -> dict[str, Any]:
    import ray

    quiet = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.WARNING}
    if configured.ray.address != "local":
        return {"address": configured.ray.address, **quiet}
    return {
        "address": "local",
        "num_cpus": os.cpu_count() or 1,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        # Where these packages are, also when the working directory is elsewhere.
        "job_config": ray.job_config.JobConfig(_py_driver_sys_path=[str(Path(__file__).parents[1])]),
        **quiet,
    }


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Within it, ray.init starts no autoscaler, no log monitor and no head of a dashboard.

    `ray start` has switches for the first two, ray.init has none (2.60).
    """
    from ray._private import node

    kept = node.Node.start_monitor, node.Node.start_log_monitor, node.Node.start_api_server
    node.Node.start_monitor = lambda self: None
    node.Node.start_log_monitor = lambda self: None
    node.Node.start_api_server = lambda self, **_: None
    try:
        yield
    finally:
        node.Node.start_monitor, node.Node.start_log_monitor, node.Node.start_api_server = kept


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our signal handlers: ray.init puts its own in the place of SIGTERM's."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _redirect_prints() -> None:
    """Send to the log what Ray prints about its processes: stdout is the daemon's own."""
    from ray._private import worker

    def to_log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        _log.warning("ray_said", extra={"text": " ".join(data.get("lines", ()))[:500]})

    worker.print_to_stdstream = to_log
