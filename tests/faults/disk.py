"""The long run of the disk's faults: `python -m tests.faults.disk --full`; exits with 1 if any went wrong.

--full            every N of every call, and many rounds of the rest (never yet run to its end)
--only PART       of calls, space, clock, power, control
--rounds N        of each fault of space, clock and power
--seed N          replays a run; printed at the start
--folder DIR      where the spools stand (default: a temporary folder)
--json FILE       the table, for machines
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults import disk_calls, disk_clock, disk_rounds, disk_space, power
from tests.faults.disk_rounds import Nursery, Outcome
from tests.faults.tally import Tally

# Of a run without --full.
SAMPLE_ROUNDS = 30
# Rounds of failing calls at a time: each mostly waits for the next try.
AT_A_TIME = 3 * (os.cpu_count() or 1)
# Swept from the process's start on as well, not only from its first pass.
FROM_THE_START = (("fsync", "EIO"), ("open", "ENOSPC"), ("write", "ENOSPC"), ("fsync", "KILL"))


def calls(nursery: Nursery, folder: Path, table: Tally, rounds: int, seed: int, *, full: bool) -> None:
    """System calls that fail or kill: all of them, or a sample."""
    if problem := disk_calls.why_not():
        print(f"left out, calls: {problem}")
        return
    numbers = itertools.count(1)

    def sweep(call: str, error: str, count: int, adopts: bool, place: str = "loop") -> None:
        here = folder / str(next(numbers))
        with disk_rounds.open_nursery() as own:
            last = disk_calls.sweep(
                own, here, table, call, error, count, adopts=adopts, step=count, place=place
            )
        how = f"{count} in a row, adopting: {adopts}, from the {place}"
        print(f"{error} at {call}, {how}: N = 1 to {last}", flush=True)

    def play(chosen: list[tuple[disk_calls.Fault, bool]]) -> None:
        here = folder / str(next(numbers))
        with disk_rounds.open_nursery() as own:
            for fault, adopts in chosen:
                outcome = disk_calls.run_round(own, here, fault, adopts=adopts)
                if outcome.was_hit:
                    disk_rounds.note(table, fault.row, fault.seed(adopts=adopts), outcome)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        if full:
            jobs = [pool.submit(sweep, *each) for each in disk_calls.sweeps(full=True)]
            jobs += [pool.submit(sweep, *each, 1, False, "start") for each in FROM_THE_START]
        else:
            chosen = disk_calls.sample(seed, rounds)
            jobs = [pool.submit(play, chosen[number::AT_A_TIME]) for number in range(AT_A_TIME)]
        for job in jobs:
            job.result()


def space(nursery: Nursery, folder: Path, table: Tally, rounds: int, seed: int, *, full: bool) -> None:
    """Full, read-only and missing filesystems; no descriptors."""
    if problem := disk_space.why_not():
        print(f"left out, space: {problem}")
        return
    for fault in disk_space.FAULTS:
        disk_space.run_rounds(nursery, folder, fault, rounds, seed, table)


def clock(nursery: Nursery, folder: Path, table: Tally, rounds: int, seed: int, *, full: bool) -> None:
    """Wall clocks that jump."""
    disk_clock.run_rounds(nursery, folder, rounds, table)


def power_loss(nursery: Nursery, folder: Path, table: Tally, rounds: int, seed: int, *, full: bool) -> None:
    """Power losses on real filesystems."""
    for kind in power.KINDS:
        if problem := power.why_not(kind):
            print(f"left out, power loss on {kind}: {problem}")
        else:
            power.run_rounds(nursery, folder, kind, rounds, seed, table)


def control(nursery: Nursery, folder: Path, table: Tally, rounds: int, seed: int, *, full: bool) -> None:
    """The same without fsync: it has to lose."""
    for kind in power.KINDS:
        if not power.why_not(kind):
            own = Tally()
            power.run_rounds(nursery, folder, kind, min(rounds, 10), seed, own, has_fsync=False)
            print(f"the control, which has to lose:\n{own}", flush=True)
            if not own.failures:
                blind = Outcome()
                blind.blame("it lost nothing: these rounds prove nothing")
                disk_rounds.note(table, f"the control on {kind}", f"seed {seed}", blind)


PARTS: dict[str, Callable[..., None]] = {
    "calls": calls,
    "space": space,
    "clock": clock,
    "power": power_loss,
    "control": control,
}


def main() -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds = arguments.rounds or (100 if arguments.full else SAMPLE_ROUNDS)
    print(f"seed {arguments.seed}", flush=True)
    table = Tally()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, disk_rounds.open_nursery() as nursery:
        for name in arguments.only or PARTS:
            PARTS[name](nursery, Path(folder) / name, table, rounds, arguments.seed, full=arguments.full)
            print(f"after {name}:\n{table}", flush=True)
            if arguments.json:
                table.write(arguments.json, seed=arguments.seed)
    print("\n".join(f"{each.fault}, {each.seed}: {each.verdict}" for each in table.failures))
    return not table.is_right


if __name__ == "__main__":
    sys.exit(main())
