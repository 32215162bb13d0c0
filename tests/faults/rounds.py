"""Rounds of faults on the real daemon: drop, break something, mend it, wait for the end, judge.

    python -m tests.faults.rounds --seed 7 --rounds 1 --fault "kill -9 daemon" --engine light

A round is one injected fault and one judgement of every file that was dropped in it; one whose fault came
when nothing was under way any more is judged, but not counted. A life is a spool and its daemons for a few
rounds of one fault. Its seed, which is printed, decides all that is random in it, and the options above play
it again; timing is the machine's own, so a replay comes close, no more. Exit code 1 if anything was lost,
doubled or wrong; the folder of such a life is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults import catalog, injections_ray, judgement, tally
from tests.faults.nodes import Engine, RayHost
from tests.faults.scene import Scene

ENGINES: tuple[Engine, ...] = ("light", "ray", "local", "vllm", "broken")
# Lives of each engine in a mixed run: a local Ray costs 10 s a start, vLLM 30 s, light ones 1 s.
_SHARES: dict[Engine, int] = {"light": 6, "ray": 4, "local": 1, "vllm": 1}
# Most rounds of a life, so that a run of an hour gets to every kind.
_ROUNDS: dict[Engine, int] = {"ray": 4, "local": 2, "vllm": 2}


class Hosts:
    """The Rays that lives share; started when first needed, two of them."""

    def __init__(self) -> None:
        self._hosts: list[RayHost] = []

    def get(self, count: int) -> list[RayHost]:
        """So many Rays."""
        while len(self._hosts) < count:
            self._hosts.append(RayHost("hosts"))
        return self._hosts[:count]

    def close(self) -> None:
        """End them."""
        for host in self._hosts:
            host.close()
        self._hosts.clear()


def play_life(
    name: str, engine: Engine, seed: int, rounds: int, hosts: Hosts, base: Path
) -> Iterator[judgement.Round]:
    """The rounds of one life."""
    fault = catalog.FAULTS[name]
    rng = random.Random(f"{seed} {name} {engine}")
    needed = (2 if fault.act is injections_ray.outlive else 1) if engine == "ray" else 0
    folder = base / f"{_slug(name)}-{engine}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    here = Scene(folder, engine, rng, nodes=fault.nodes, hosts=hosts.get(needed), settings=fault.settings)
    is_right = True
    try:
        for number in range(min(rounds, fault.rounds, _ROUNDS.get(engine, fault.rounds))):
            done = _play_round(here, name, fault, seed, number)
            is_right = is_right and done.verdict.is_right
            yield done
            if not done.verdict.is_right:
                break  # what is left of it would spoil the next round
    finally:
        here.close()
        if is_right:
            shutil.rmtree(folder, ignore_errors=True)


def _play_round(here: Scene, name: str, fault: catalog.Fault, seed: int, number: int) -> judgement.Round:
    began = time.monotonic()
    here.begin_round()
    seen = len(here.reader.problems)
    done = judgement.Round(name, here.engine, seed)
    if number == 0 or here.rng.random() < 0.7:
        here.start_all()  # else the fault may hit a daemon that is still starting
    here.drop(here.rng.randint(*fault.files), longest=fault.longest)
    at = fault.act(here)
    if not here.until_over():
        done.verdict.lost.append("not over in time")
    done.recovery_s = time.monotonic() - at
    found = judgement.judge(here.spool, here.files, here.cancelled, here.expected)
    done.verdict.lost += found.lost
    done.verdict.doubled += found.doubled
    done.verdict.wrong += found.wrong + here.problems + here.reader.problems[seen:]
    done.has_struck = here.has_struck
    done.notes, done.took_s = list(here.notes), time.monotonic() - began
    return done


def _slug(name: str) -> str:
    """A fault's name as a folder's."""
    return "".join(char if char.isalnum() else "-" for char in name.lower())


def lives(arguments: argparse.Namespace) -> Iterator[tuple[str, Engine, int]]:
    """Which fault on which engine with which seed, without end."""
    seed = arguments.seed
    kinds = [
        (name, engine)
        for name, fault in catalog.FAULTS.items()
        for engine in fault.engines
        if (not arguments.fault or name in arguments.fault) and engine in (arguments.engine or _engines())
    ]
    if not kinds:
        raise SystemExit("no fault of that name on that engine; faults: " + ", ".join(catalog.FAULTS))
    if arguments.fault and len(kinds) == 1:
        while True:
            yield *kinds[0], seed
            seed += 1
    rng = random.Random(seed)
    # Each kind once; from then on the cheap ones several times, in a new order every time.
    turn = list(kinds)
    while True:
        rng.shuffle(turn)
        for kind in turn:
            yield *kind, seed
            seed += 1
        turn = [kind for kind in kinds for _ in range(_SHARES.get(kind[1], 1))]


def _engines() -> list[Engine]:
    """Those of a mixed run."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    return [engine for engine in _SHARES if engine != "vllm" or has_vllm]


def play(arguments: argparse.Namespace) -> tally.Tally:
    """Play lives until there are enough rounds or the time is over."""
    table, hosts = tally.Tally(), Hosts()
    ends_at = time.monotonic() + arguments.minutes * 60
    base = Path(arguments.folder or tempfile.mkdtemp(prefix="faults-"))
    base.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(hosts.close)
        for name, engine, seed in lives(arguments):
            left = arguments.rounds - len(table.rounds)
            if left <= 0 or time.monotonic() >= ends_at:
                break
            for done in play_life(name, engine, seed, left, hosts, base):
                if done.has_struck or not done.verdict.is_right:
                    table.add(done)  # a fault after the end of everything proves nothing
                _say(done, base)
                if arguments.json:
                    table.write(Path(arguments.json), seed=arguments.seed)
                if time.monotonic() >= ends_at:
                    break
    return table


def _say(done: judgement.Round, base: Path) -> None:
    what = "right" if done.has_struck else "too late, not counted"
    what = what if done.verdict.is_right else f"WRONG: {done.verdict}"
    notes = f" ({', '.join(done.notes)})" if done.notes else ""
    print(
        f"seed {done.seed}  {done.fault} [{done.engine}]  {done.took_s:.1f} s, "
        f"recovered in {done.recovery_s:.1f} s: {what}{notes}",
        flush=True,
    )
    if not done.verdict.is_right:
        print(f"    kept in {base}", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=None, help="of the first life; random by default")
    parser.add_argument("--fault", action="append", help="only this one (may be given several times)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only this one; likewise")
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", help="file for the table, for machines")
    parser.add_argument("--folder", help="where spools are made; a temporary folder by default")
    arguments = parser.parse_args(argv)
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1_000_000)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Play, print the table; 1 if anything was lost, doubled or wrong."""
    arguments = parse(argv)
    print(f"first seed {arguments.seed}", flush=True)
    table = play(arguments)
    print(table, flush=True)
    return 0 if table.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
