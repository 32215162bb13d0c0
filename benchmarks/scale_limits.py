"""Where one daemon ends: claims from a real folder, its loop, validation, merge, scheduler, each measured.

Everything is the real code on a real disk; only the engine is missing (tests/loops.py answers in its place).
Prints what each can do, and what that means in lines per second for files of several sizes.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from benchmarks import machine, startup
from benchmarks.served import ROOT
from config.settings import DedicatedSettings, LimitSettings, PoolsSettings, SpotSettings
from config.units import window
from daemon.report import COUNT_EVERY_S
from pipeline import merge, validate
from pipeline.order_notes import Wishes
from pipeline.run import Work
from pipeline.shards import SHARD_LINES
from scheduler import assign
from scheduler.job import Job
from scheduler.pools import Pools, Run
from scheduler.queue import Queue
from spool import claim, create, drops, files, layout, lines, parts, plan
from spool.parts import Result, Usage
from tests import loops

# Lines of a file for which limits are told: a small one, the mean of scale_sim's Poisson trace, a long batch.
FILE_LINES = (10, 1_230, 50_000)
ANSWER_BYTES = 425
# Parts of each running batch: 10,000 lines.
PARTS = 78
DEFAULTS = claim.Defaults(window_s=86400.0, parse_window=window, mode=0o644)
ROW = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything; means nothing")
    parser.add_argument("--out", type=Path, help="where results and the folders that are measured go")
    arguments = parser.parse_args(argv)
    out = arguments.out or ROOT / "build" / "benchmarks" / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    part = 20 if arguments.quick else 1
    figures: dict[str, float] = {}
    for measure, size in (
        (claims, 1_500), (lives, 300), (loop_turns, 10_000), (running_turns, 125),
        (validations, 400_000), (merges, 400_000), (decisions, 10_000),
    ):  # fmt: skip
        with _folder(out) as folder:
            for name, value in measure(folder, max(2, size // part)):
                figures[name] = value
                print(f"{name:<62}{value:>14,.3f}", flush=True)
    told = limits(figures)
    print("\n" + told)
    tree = {"machine": machine.describe(), "figures": figures, "limits": told.splitlines()}
    (out / "scale_limits.json").write_bytes(orjson.dumps(tree, option=orjson.OPT_INDENT_2))
    return 0


def limits(figures: dict[str, float]) -> str:
    """Lines per second at which each part ends, for files of several sizes.

    One process has the loop, validation and merge, and Python lets one of its threads go on at a time: "all
    of it" adds their seconds up.
    """
    claims_s = 1 / figures["claims/s, one daemon"]
    loop_s = figures["ms of the loop's thread a batch, by the clock"] / 1000
    validate_s = 1 / figures["validated lines/s of a core"]
    merge_s = 1 / figures["merged lines/s of a core"]
    parts_of = {  # seconds a file, seconds a line
        "claims of one daemon": (claims_s, 0.0),
        "the loop's thread, claims included": (loop_s, 0.0),
        "validation": (0.0, validate_s),
        "merge": (0.0, merge_s),
        "one daemon, all of it": (loop_s, validate_s + merge_s),
    }
    rows = [f"{'lines/s at most, by lines of a file':<40}" + "".join(f"{n:>12,}" for n in FILE_LINES)]
    for name, (a_file_s, a_line_s) in parts_of.items():
        cells = [n / (a_file_s + n * a_line_s) for n in FILE_LINES]
        rows.append(f"{name:<40}" + "".join(f"{cell:>12,.0f}" for cell in cells))
    most = COUNT_EVERY_S / (figures["us of it for each part of a running batch"] / 1e6) * SHARD_LINES
    rows.append(f"answered lines in running batches at which a pass lasts {COUNT_EVERY_S} s: {most:,.0f}")
    return "\n".join(rows)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """On the disk that results go to: a folder in memory would sync for nothing."""
    folder = Path(tempfile.mkdtemp(dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def claims(folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """Claims a second of one daemon and of two that share the inbox, each with its first status.json."""
    for daemons in (1, 2):
        tries = [_claims(folder / f"spool{daemons}-{n}", count, daemons) for n in range(3)]
        which = "one daemon" if daemons == 1 else "two daemons on one inbox"
        yield f"claims/s, {which}", statistics.median(rate for rate, _ in tries)
        yield f"ms of processor time a claim, {which}", statistics.median(busy_ms for _, busy_ms in tries)


def _claims(folder: Path, count: int, daemons: int) -> tuple[float, float]:
    """Claims a second, and milliseconds of processor time of each."""
    home = create.create(folder)
    for n in range(count):
        (home.inbox / f"b{n}.jsonl").write_bytes(ROW)
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(daemons + 1), context.Array("d", 2 * daemons)
    processes = [
        context.Process(target=_claim_all, args=(home, barrier, won, which)) for which in range(daemons)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.monotonic()
    for process in processes:
        process.join()
    seconds = time.monotonic() - began
    assert sum(won[:daemons]) == count, f"{won[:daemons]} of {count} claimed"
    return count / seconds, 1000 * sum(won[daemons:]) / count


def _claim_all(home: layout.Layout, barrier: Any, won: Any, which: int) -> None:
    """Claim what a scan finds, in its order, as the intake of a daemon does; `won`: claims, then seconds."""
    instance = home.work / layout.new_instance()
    files.make_folder(instance)
    barrier.wait()
    began = time.process_time()
    for candidate in drops.scan(home.inbox).candidates:
        if batch := claim.claim(home, instance, candidate.relative, time.time(), DEFAULTS):
            claim.finish(batch)
            won[which] += 1
    won[len(won) // 2 + which] = time.process_time() - began


def lives(folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """What a batch costs the loop's thread from drop to archive: files of ten lines, dropped at once."""
    daemon = loops.Daemon(folder)
    for n in range(count):
        daemon.drop(f"b{n}", count=10)
    busy_s, began = time.thread_time(), time.monotonic()
    in_steps_s = 0.0
    while (held := daemon.lifecycle.held) or not _is_empty(daemon.home.inbox):
        step_began = time.monotonic()
        daemon.step()
        in_steps_s += time.monotonic() - step_began
        assert time.monotonic() - began < 300, f"{len(held)} batches are left"
        daemon.wake.wait(0.01)
        daemon.wake.clear()
    busy_s = time.thread_time() - busy_s
    daemon.stop()
    yield "ms of the loop's thread a batch, by the clock", 1000 * in_steps_s / count
    yield "ms of processor time among them", 1000 * busy_s / count


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def loop_turns(folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """A pass of the loop with thousands of batches held, most of which wait."""
    home = create.create(folder / "spool")
    dead = home.work / layout.new_instance()
    dead.mkdir(0o700)
    for n in range(count):
        startup.make_batch(home, dead, n, time.time())
    yield from _turns(folder, f"{count:,} batches held")


def running_turns(folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """A pass of the loop with a run on each node of scale_sim, each of a batch that is half done."""
    home = create.create(folder / "spool")
    dead = home.work / layout.new_instance()
    dead.mkdir(0o700)
    for n in range(count):
        batch = startup.make_batch(home, dead, n, time.time(), requests=2 * PARTS * SHARD_LINES)
        for shard in range(PARTS):
            (batch / parts.FOLDER / str(parts.PartName(shard, 1, SHARD_LINES, 0, 5120))).touch()
    pools = {"spot": {"capacity": 100}, "dedicated": {"capacity": 25}}
    turns = _turns(folder, f"{count} runs going", scheduler={"pools": pools})
    _, pass_ms = pass_figure = next(turns)
    yield pass_figure
    yield from turns
    # In each pass the parts of all running batches are listed and their names read.
    yield "us of it for each part of a running batch", 1000 * pass_ms / (count * PARTS)


class _Endless(loops.Run):
    """Runs that answer nothing until the end."""

    def __call__(self, works: list[Work], model: str, pool: str) -> None:
        self.may_go_on.wait()


def _turns(folder: Path, what: str, **sections: Any) -> Iterator[tuple[str, float]]:
    daemon = loops.Daemon(folder, run=_Endless(), **sections)
    daemon.run.may_go_on.clear()
    began = time.monotonic()
    daemon.loop.step(began, is_woken=True)
    took = []
    for n in range(1, 21):  # ten seconds, as the daemon goes while runs are going
        before = time.thread_time()
        daemon.loop.step(began + n / 2, is_woken=False)
        took.append(1000 * (time.thread_time() - before))
    going = len(daemon.runs.going)
    daemon.stop()
    yield f"ms a pass of the loop, {what} ({going} runs)", statistics.fmean(took)
    yield "ms of the longest of 20", max(took)


def validations(folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """Lines a second of validation with its copy, in the file's order."""
    batch = folder / "batch_a~1"
    batch.mkdir()
    row = ROW.replace(b'"a"', b'"%08d"').replace(b"[]", b'[{"role":"user","content":"%08d"}]')
    drop = folder / "drop.jsonl"
    drop.write_bytes(b"".join(row % (n, n) for n in range(count)))
    rules = validate.Rules(
        frozenset({"m"}), LimitSettings(), wishes=Wishes(by_prefix=False, is_deduping=False)
    )
    with open(drop, "rb") as source:
        began = time.process_time()
        verdict = validate.check_and_copy(source, batch, "batch_a", rules)
        busy_s = time.process_time() - began
    assert (verdict.is_valid, verdict.requests) == (True, count)
    yield "validated lines/s of a core", count / busy_s


def merges(folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """Lines a second of the merge: of a core, and in the daemon's two threads by the clock."""
    batches = [_answered(folder / f"batch_{n}~1", count // 2) for n in range(2)]

    def merged(batch: Path) -> int:
        return merge.merge(batch, count // 2, None, 0o644).completed

    began = time.process_time()
    assert [merged(batch) for batch in batches] == [count // 2] * 2
    yield "merged lines/s of a core", count / (time.process_time() - began)
    with ThreadPoolExecutor(2) as threads:
        seconds = _seconds(lambda: list(threads.map(merged, batches)))
    yield "merged lines/s by the clock, two at a time", count / seconds


def _answered(batch: Path, count: int) -> Path:
    """A batch in the file's order, all of whose parts are there."""
    for each in (batch, batch / plan.FOLDER, batch / parts.FOLDER):
        each.mkdir()
    text = lines.response_line("batch_req_x", "a", 200, b'{"text":"%s"}' % (b"x" * (ANSWER_BYTES - 150)))
    shards = []
    for index, first in enumerate(range(0, count, SHARD_LINES)):
        held = range(first, min(first + SHARD_LINES, count))
        shards.append(plan.Shard(index, first, len(held), first * len(ROW), len(held) * len(ROW)))
        parts.write(batch, index, 1, [Result(line, True, Usage(20, 0, 20, 0), text) for line in held])
    (batch / plan.INPUT_FILE).write_bytes(ROW * count)
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, shards)))
    return batch


def decisions(folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """The scheduler alone, with thousands of jobs waiting and a slot for each of 1,000 replicas."""
    rates, now = {"m": 1.0}, 1000.0
    for policy in ("fifo", "edf"):
        queue = Queue("fifo" if policy == "fifo" else "edf", count)
        jobs = [Job(f"b{n}", "m", 5000, now, now + 86400 + n * 7919 % 10_000) for n in range(count)]
        began = time.monotonic()
        for job in jobs:
            queue.push(job)
        yield f"us to queue a job, {policy}", 1e6 * (time.monotonic() - began) / count
        spot, dedicated = SpotSettings(capacity=800), DedicatedSettings(capacity=200)
        pools, numbers = Pools(PoolsSettings(spot=spot, dedicated=dedicated)), itertools.count()

        def decide(queue: Queue = queue, pools: Pools = pools, numbers: Iterator[int] = numbers) -> None:
            begun, _ = assign.assign(queue, pools, now, ("m",), rates)
            for each in begun:
                for job in each.jobs:
                    queue.remove(job.batch_id)
                pools.take(Run(f"run-{next(numbers)}", each.pool, now))

        yield f"ms to fill 1,000 slots, {policy}", 1000 * _seconds(decide)
        assert count - len(queue) == min(1000, count)
        yield f"ms a decision with no slot free, {policy}", 1000 * _seconds(decide)
        pools.release("run-0")
        yield f"ms a decision with a slot free, {policy}", 1000 * _seconds(decide)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
