"""Signals: SIGINT and SIGTERM ask the loop to stop; a second one ends the process at once.

The handler only sets events. SIGIO is ignored: it comes when someone opens a drop in the instant in which its
lease is tested, and its default action would end the daemon.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


def install(stop: threading.Event, wake: threading.Event) -> None:
    """Take over the signals; to be called in the main thread."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)  # the spool is crash-safe; whoever asks twice means it
        stop.set()
        wake.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
