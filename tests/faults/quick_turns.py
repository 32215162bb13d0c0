"""The real `batchd`, whose models take turns of seconds on GPUs that they share, so that a test sees some.

python -m tests.faults.quick_turns run --config FILE
"""

from __future__ import annotations

import sys

from daemon import main
from scheduler import capacity

if __name__ == "__main__":
    capacity.TURN_STARTS, capacity.LEAST_TURN_S = 0.3, 5.0
    sys.exit(main.main(sys.argv[1:]))
