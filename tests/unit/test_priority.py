"""Giving way: every thread of the process does, those included that it makes later."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


# Starts an engine for each argument, bound to these processors; each is the child of a child.
_OWNER = """
import os, subprocess, sys, threading
from pipeline import priority
bind = "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split()))"
engine = bind + "; print(flush=True); sys.stdin.read()"
for processors in sys.argv[1:]:
    words = ["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", engine, processors]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
stop = threading.Event()
threading.Thread(target=stop.wait).start()
priority.leave_processors()
threads = [int(number) for number in os.listdir("/proc/self/task")]
print({tuple(sorted(os.sched_getaffinity(number))) for number in threads})
stop.set()
"""


def _after_start_of_engines(*bound: list[int]) -> str:
    said = subprocess.run(
        [sys.executable, "-c", _OWNER, *(" ".join(map(str, each)) for each in bound)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return said.stdout.strip()


def test_the_owner_of_an_engine_leaves_it_its_processors() -> None:
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        pytest.skip("needs two processors")
    assert _after_start_of_engines([first], sorted(os.sched_getaffinity(0))) == str({tuple(others)})


def test_the_owner_of_an_engine_on_all_processors_stays_where_it_is() -> None:
    ours = sorted(os.sched_getaffinity(0))
    assert _after_start_of_engines(*([each] for each in ours)) == str({tuple(ours)})


def test_the_owner_of_an_engine_that_is_not_bound_stays_as_it_is() -> None:
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) == 1:
        pytest.skip("needs two processors")
    assert _after_start_of_engines(ours) == str({tuple(ours)})
