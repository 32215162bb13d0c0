"""Hooks: a command of the operator's is told that a batch has ended, with the path of its status.json.

It is told at least once: a daemon that dies meanwhile tells it again after its next start. The path is where
the end was shown, and its user may have taken the folder away since. There is no shell: what a user puts into
a file's name is but an argument.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

# Seconds before the second and the third try.
BACKOFF_S = (1.0, 5.0)
# Of what it says, this much comes into the log.
_SAID_BYTES = 500


class Told(NamedTuple):
    """How it went.

    Attributes:
        tries: how often it was begun.
        problem: what went wrong at the last try; None if nothing did.
    """

    tries: int
    problem: str | None


def tell(command: Sequence[str], status_file: Path, timeout_s: float, stopped: Callable[[], bool]) -> Told:
    """Run a hook until it ends with exit code 0, three times at most.

    Args:
        command: program and arguments; the path is added as the last one.
        status_file: of the batch that has ended.
        timeout_s: after which a try is killed, with all that it started.
        stopped: whether to try no more.
    """
    tries = 0
    for wait_s in (*BACKOFF_S, None):
        tries += 1
        problem = _try(command, status_file, timeout_s)
        if problem is None or wait_s is None or stopped():
            break
        time.sleep(wait_s)
    return Told(tries, problem)


def _try(command: Sequence[str], status_file: Path, timeout_s: float) -> str | None:
    """What went wrong, if anything did."""
    try:
        said = tempfile.TemporaryFile()  # noqa: SIM115 (closed below; where it cannot be made, that is the problem)
    except OSError as error:
        return f"cannot be started: {error}"
    with said:
        try:
            process = subprocess.Popen(  # noqa: S603 (the operator's own command)
                [*command, str(status_file)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be started: {error}"
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"did not end within {timeout_s:g} s"
        if code == 0:
            return None
        said.seek(max(0, said.tell() - _SAID_BYTES))
        words = said.read().decode(errors="replace").strip()
        return f"ended with {code}: {words}" if words else f"ended with {code}"
