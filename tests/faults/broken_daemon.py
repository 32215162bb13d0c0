"""A daemon that is broken on purpose, to prove that the harness notices: `light_daemon` with a bad claim.

Its claim looks, copies and unlinks instead of renaming, as a naive daemon would. Two daemons then take the
same drop, and a kill between two steps loses one. Tests alone start this; the product knows nothing of it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from daemon import main
from spool import claim
from spool.batch import Batch
from spool.record import FileIdentity
from tests.faults import light_daemon

# Between two steps of the claim: a slow disk.
PAUSE_S = 0.02


def check_then_create(drop: Path, batch: Batch, beside: int) -> bool:
    """What claim._win must not be."""
    if not drop.exists():
        return False
    content = drop.read_bytes()
    time.sleep(PAUSE_S)
    drop.unlink(missing_ok=True)
    time.sleep(PAUSE_S)
    batch.drop.write_bytes(content)
    batch.save(identity=FileIdentity.of(os.lstat(batch.drop)))
    return True


if __name__ == "__main__":
    light_daemon.patch()
    claim._win = check_then_create
    sys.exit(main.main(sys.argv[1:]))
