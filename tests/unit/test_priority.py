"""Giving way: every thread of the process does, those included that it makes later."""

from __future__ import annotations

import subprocess
import sys

from pipeline import priority

_PROGRAM = """
import os, threading
from pipeline import priority
stop = threading.Event()
threading.Thread(target=stop.wait).start()
priority.give_way()
threading.Thread(target=stop.wait).start()
print({os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")})
stop.set()
"""


def test_a_lower_priority_of_the_operators_stays() -> None:
    """Nobody but root may raise it: the workers, and with them the daemon, once ended."""
    said = subprocess.run(
        ["nice", "-n", "15", sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stdout == "{15}\n"


def test_all_threads_of_a_process_give_way() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout == f"{{{priority.NICENESS}}}\n"
