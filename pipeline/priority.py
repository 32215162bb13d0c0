"""Who gives way when processors are scarce: what hands requests around, to engines that compute.

On a CPU, the threads of an engine compute a step together and wait for the last of them, so a process that
takes one of their processors for an instant holds all of them up.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress

import psutil  # type: ignore[import-untyped]  # has no types

# Weighs a ninth of an engine's 0; a process with nobody before it is not slowed down.
NICENESS = 10


@functools.cache
def give_way() -> None:
    """Have this process, with all its threads, run behind those of the usual priority, from now on.

    Threads that exist have a niceness of their own each; new ones take that of their maker.
    """
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it ended meanwhile; or the operator chose a lower priority, which stays
            if os.getpriority(os.PRIO_PROCESS, int(thread)) < NICENESS:
                os.setpriority(os.PRIO_PROCESS, int(thread), NICENESS)


def leave_processors() -> None:
    """Keep this process off the processors that its descendants have bound threads to, one to each.

    On a CPU, vLLM binds the threads that compute to all processors but one, which is for everything else.
    Linux does not know, and ran the handlers of requests, a quarter of all processor time where answers are
    short, on any of them: computing took 14 % longer (measured 2026-11-30, 2 cores, with what else was mended
    then). Nothing happens where no thread is bound so, as on a GPU, where none is left, or where it may not.

    Limits: several replicas whose engines are bound to the same processors share what is left.
    """
    with suppress(psutil.Error, OSError):
        ours = os.sched_getaffinity(0)
        taken: set[int] = set()
        for descendant in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                for thread in descendant.threads():
                    taken |= _bound_to(thread.id)
        if taken and (left := ours - taken):
            for number in os.listdir("/proc/self/task"):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(number), left)


def _bound_to(thread: int) -> set[int]:
    """The only processor that a thread may use; nothing where there are more, or it has ended."""
    with suppress(ProcessLookupError):
        allowed = os.sched_getaffinity(thread)
        return allowed if len(allowed) == 1 else set()
    return set()
