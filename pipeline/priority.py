"""Who gives way when processors are scarce: the workers that hand requests around, to engines that compute.

On a CPU, the threads of an engine compute a step together and wait for the last of them, so a worker that
takes one of their processors for an instant holds all of them up.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress

# Weighs a ninth of an engine's 0; a worker with nobody before it is not slowed down.
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
