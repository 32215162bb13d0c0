"""A slow volume: strace holds up the calls by which processes make files durable, move or remove them.

Whether strace may do that here, disk_calls.why_not says.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import daemons

CALLS = "fsync,fdatasync,rename,renameat2,link,linkat,mkdir,unlink"
ATTACH_LIMIT_S = 20.0


@contextlib.contextmanager
def slowed(pids: Sequence[int], delay_s: float, trace: Path) -> Iterator[None]:
    """Hold up these calls of these processes, and of what they start.

    Args:
        pids: of processes that are there.
        delay_s: for each call.
        trace: a file for what was held up.
    """
    command = ["strace", "-f", "-o", str(trace), "-e", "signal=none", "-e", f"trace={CALLS}"]
    command += ["-e", f"inject={CALLS}:delay_enter={round(delay_s * 1e6)}"]
    for pid in pids:
        command += ["-p", str(pid)]
    said: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr
        listening = threading.Thread(target=said.extend, args=(strace.stderr,), daemon=True)
        listening.start()
        try:
            daemons.until(
                lambda: all(any(f"Process {pid} attached" in line for line in list(said)) for pid in pids),
                ATTACH_LIMIT_S,
                f"strace at {len(pids)} processes",
            )
            yield
        finally:
            strace.terminate()  # it lets go of them first
            strace.wait(ATTACH_LIMIT_S)
            listening.join(ATTACH_LIMIT_S)


def held_up(trace: Path) -> int:
    """How many calls were."""
    return trace.read_text(errors="replace").count("(DELAYED)")
