"""How the process ends where Ray cannot be shut down in order: at once, with its own code and a line.

Python's way out would wait for threads that are stuck in Ray, and Ray's C++ ends the process with code 1 when
it is shut down under them, or some seconds after its own processes died (2.60). The spool is crash-safe: what
is cut off here goes on at the next start.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from typing import NoReturn

from daemon import logs
from daemon.exits import Exit
from pipeline.errors import EngineStartError
from pipeline.ray_watch import Watched
from spool.errors import SpoolError
from spool.lease import Lease

# A stop of the whole service, as systemd's, reaches Ray's processes too; its signal may come to us last.
STOP_S = 1.0
# For Ray to clear away what engines that were killed leave behind; it ends with this process.
KILL_S = 2.0

_log = logs.get()


def without_ray(lost: Watched, stop: threading.Event, held: Lease) -> NoReturn:
    """End because a process of Ray's has ended.

    It counts as a crash, so that a batch that ends Ray each time is given up, unless the daemon is to stop.

    Args:
        lost: the process.
        stop: set when a signal has asked the daemon to stop.
        held: our lease.
    """
    if stop.wait(STOP_S):
        _log.warning("ray_lost", process=lost.name, pid=lost.pid, while_stopping=True)
        held.release()
        _end(Exit.DONE)
    _log.error("ray_lost", process=lost.name, pid=lost.pid)
    _end(
        Exit.NOT_STARTED,
        f"Ray is lost: its {lost.name} (process {lost.pid}) has ended; start the daemon again, it goes on "
        "where it stopped",
    )


def under_threads(held: Lease, problem: Exception | None) -> NoReturn:
    """End while threads still use Ray; its engines have been stopped.

    Args:
        held: our lease.
        problem: why the loop ended, if nobody asked it to stop.
    """
    time.sleep(KILL_S)
    held.release()
    if problem is None:
        _log.info("stopped")
        _end(Exit.DONE)
    if isinstance(problem, SpoolError | EngineStartError):
        _end(Exit.NOT_STARTED, str(problem))
    traceback.print_exception(problem)
    _end(Exit.FAILED)


def _end(code: Exit, message: str | None = None) -> NoReturn:
    if message:
        print(f"batchd: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
