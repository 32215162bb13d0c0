"""A process that runs the real loop on a spool with a stand-in for the run, until nothing is left to do.

Started by test_failpoints.py with FAILPOINT in its environment: it then ends in the middle of a step.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.loops import Daemon


def main(folder: Path) -> None:
    """Work until inbox and work/ are empty."""
    daemon = Daemon(folder)
    daemon.until(lambda: not daemon.lifecycle.held and not any(daemon.home.inbox.iterdir()))
    daemon.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
