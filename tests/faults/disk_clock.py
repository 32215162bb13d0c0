"""A wall clock that jumps by an hour, either way: in mid-batch, and between two starts.

Only time.time is bent, which is all of the wall clock that the daemon asks for. libfaketime would bend the
monotonic clock as well, which no real clock change does, and without that breaks time.sleep of Python 3.11.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal, get_args

from spool import files
from tests.faults import disk_rounds, oracle
from tests.faults.disk_rounds import DONE, Nursery, Outcome, Wishes
from tests.faults.tally import Tally

Fault = Literal["jump +1 h", "jump -1 h", "restart at +1 h", "restart at -1 h"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_HOUR_S = 3600.0


def run_round(nursery: Nursery, folder: Path, fault: Fault) -> Outcome:
    """One round; the window of the big batch is half an hour, so that a jump that counts would expire it.

    Except where a start finds the clock an hour later: then that hour may really have passed.
    """
    spool, put = disk_rounds.prepare(folder)
    if fault != "restart at +1 h":
        files.write_durable(spool / "inbox" / "big.batch.yaml", b"completion_window: 30m\n")
    jump_s = _HOUR_S if "+" in fault else -_HOUR_S
    reader, outcome = oracle.Reader(spool), Outcome()
    if fault.startswith("jump"):
        child = nursery.fork(Wishes(str(folder), str(folder / "first.log"), shard_s=0.1, jump_s=jump_s))
        disk_rounds.note_code(outcome, child.wait(), child, [DONE])
        disk_rounds.end_all(nursery, folder, outcome, put)
    else:
        disk_rounds.leave_something(nursery, folder)
        started = time.monotonic()
        child = nursery.fork(Wishes(str(folder), str(folder / "second.log"), unix_offset_s=jump_s))
        disk_rounds.note_code(outcome, child.wait(), child, [DONE])
        outcome.recovery_s = time.monotonic() - started
        disk_rounds.judge(spool, outcome, put)
    outcome.verdict.wrong += reader.stop()
    _judge_times(spool, outcome)
    return outcome


def _judge_times(spool: Path, outcome: Outcome) -> None:
    for path in (spool / "outbox").glob("*/status.json"):
        status = json.loads(path.read_bytes())
        if status["status"] != "completed":
            outcome.blame(f"{path.parent.name} is {status['status']}")
        times = [event["at"] for event in status["batchd"]["history"]]
        if times != sorted(times) or status["created_at"] > times[0]:
            outcome.blame(f"{path.parent.name}: its history goes backwards: {times}")


def run_rounds(nursery: Nursery, folder: Path, rounds: int, table: Tally) -> None:
    """Each fault so many times."""
    for fault in FAULTS:
        for number in range(rounds):
            disk_rounds.note(table, f"clock: {fault}", f"round {number}", run_round(nursery, folder, fault))
