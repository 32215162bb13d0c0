"""`make faults`: every kind of fault one after the other, and one table of all rounds at the end.

    python -m tests.faults.campaign --minutes 60 --folder build/faults

Daemons that are killed, stopped and crowded (rounds.py) for so many minutes; then disks, power and clocks
(disk.py), about 15 minutes for a sample, much longer with --full; then ten minutes of fuzzing (fuzz.py). A
part that cannot run here says so and is left out. Exit code 1 if anything was lost, doubled, wrong or found.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
from pathlib import Path

from tests.faults import tally

FUZZ_MINUTES = 10.0


def _run(module: str, *arguments: object) -> bool:
    """Run a part in a process of its own; whether it went well."""
    command = [sys.executable, "-u", "-m", f"tests.faults.{module}", *map(str, arguments)]
    print(f"$ python -m tests.faults.{module} {' '.join(map(str, arguments))}", flush=True)
    return subprocess.run(command).returncode == 0


def main() -> int:
    """Play everything and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of the rounds with daemons")
    parser.add_argument("--seed", type=int, help="of everything that is random; random by default")
    parser.add_argument("--full", action="store_true", help="every N-th system call instead of a sample")
    parser.add_argument("--folder", type=Path, default=Path("build/faults"), help="for tables as JSON")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    arguments.folder.mkdir(parents=True, exist_ok=True)
    tables = [arguments.folder / "rounds.json", arguments.folder / "disk.json"]
    for table in tables:
        table.unlink(missing_ok=True)
    went_well = [
        _run("rounds", "--minutes", arguments.minutes, "--seed", seed, "--json", tables[0]),
        _run("disk", "--seed", seed, "--json", tables[1], *(["--full"] if arguments.full else [])),
    ]
    if importlib.util.find_spec("atheris"):
        went_well.append(_run("fuzz", "--minutes", FUZZ_MINUTES))
    else:
        print("left out, fuzzing: atheris is not installed (it has wheels for some Pythons only)")
    print(tally.render(tally.read(table for table in tables if table.exists())))
    return not all(went_well)


if __name__ == "__main__":
    sys.exit(main())
