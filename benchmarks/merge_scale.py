"""How long merging and publishing a large batch takes, against `cp` and fsync of the same bytes.

Makes the parts of a batch, answers of the size that the tiny-adder gives, once for a plan in the file's order
and once for one in an order of prefixes. The merge runs in a process of its own, as the daemon runs it: from
the decision to the terminal status. Merge and copy run in turn; all is in the page cache for both. Bar: at
most twice the copy. input.jsonl is not there, because a merge reads it only for requests without a result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine
from benchmarks.memory import peak_mib
from daemon import work
from daemon.held import Outcome
from pipeline import shards
from pipeline.order import Order
from spool import layout, lines, parts, plan
from spool.parts import Result, Usage
from spool.record import Status
from spool.status import Progress
from tests import spools

BAR = 2.0
REPETITIONS = 3
PLANS = ("file", "prefix")
# Requests below one prompt, and bytes of each in input.jsonl.
GROUP_LINES, REQUEST_BYTES = 400, 220
_BODY = (
    b'{"id":"chatcmpl-%s","object":"chat.completion","created":1764000000,"model":"tiny-adder","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null,'
    b'"reasoning":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"service_tier":null,"usage":'
    b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null},'
    b'"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null}'
)


def main() -> int:
    """Measure both plans, or be the process that merges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--plan", choices=PLANS, action="append", help="both without any")
    parser.add_argument("--folder", type=Path, help="where; five times the bytes of the results must fit")
    parser.add_argument("--merge", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.merge:
        print(json.dumps(_merge(arguments.merge, arguments.lines)))
        return 0
    print(json.dumps(machine.describe()))
    is_met = True
    for kind in arguments.plan or PLANS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            is_met &= _measure(Path(folder), kind, arguments.lines, arguments.repetitions)
    return int(not is_met)


def _measure(folder: Path, kind: str, count: int, repetitions: int) -> bool:
    began = time.monotonic()
    _make(folder / "made", kind, count)
    print(f"\n{kind} order, {count:,} lines: parts made in {time.monotonic() - began:.0f} s", flush=True)
    merged, copied, peaks = [], [], []
    for repetition in range(repetitions):
        os.sync()  # what is dirty is nobody's who is measured next
        command = [sys.executable, __file__, "--merge", str(folder), "--lines", str(count)]
        facts = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        os.sync()
        copy_s = _copy(Path(facts["output"]), folder / "copy")
        shutil.rmtree(folder / "spool")
        merged.append(facts["seconds"])
        copied.append(copy_s)
        peaks.append(facts["peak_mib"])
        print(
            f"  {repetition + 1}. merge and publish {merged[-1]:.2f} s "
            f"(processor time {facts['processor_s']:.2f} s), {peaks[-1]:.0f} MiB, "
            f"{facts['more_mib']:.0f} of them the merge; "
            f"copy {copy_s:.2f} s of {facts['size_bytes'] / 2**20:,.0f} MiB",
            flush=True,
        )
    merge_s, copy_s = statistics.median(merged), statistics.median(copied)
    ratio = merge_s / copy_s
    print(
        f"  medians: {merge_s:.2f} s, {merge_s / count * 1e6:.2f} s a million lines; copy {copy_s:.2f} s; "
        f"{'MET' if ratio <= BAR else 'MISSED'}: {ratio:.2f} x the copy (bar: at most {BAR:g} x); "
        f"at most {max(peaks):.0f} MiB"
    )
    return bool(ratio <= BAR)


def _copy(source: Path, target: Path) -> float:
    """Seconds for a durable copy."""
    began = time.monotonic()
    subprocess.run(["cp", str(source), str(target)], check=True)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    target.unlink()
    return seconds


def _merge(folder: Path, count: int) -> dict[str, float | str]:
    """Give the parts to a batch, and end it as the daemon does."""
    home, instance = spools.make(folder)
    batch = spools.planned(spools.claimed(home, instance), requests=count)
    for name in (plan.FOLDER, parts.FOLDER):
        (batch.folder / name).rmdir()
        (folder / "made" / name).rename(batch.folder / name)
    _warm()
    before_mib = peak_mib(os.getpid())
    began, processor = time.monotonic(), time.process_time()
    outcome = Outcome(Status.COMPLETED, "every request has a result")
    work.finish(batch, outcome, Progress(count, 0, count), time.time)
    seconds, processor_s = time.monotonic() - began, time.process_time() - processor
    for name in (plan.FOLDER, parts.FOLDER):
        (batch.folder / name).rename(folder / "made" / name)
    output = home.outbox / "jan" / layout.OUTPUT_FILE
    peak = peak_mib(os.getpid())
    return {
        "seconds": seconds,
        "processor_s": processor_s,
        "peak_mib": peak,
        "more_mib": peak - before_mib,
        "output": str(output),
        "size_bytes": output.stat().st_size,
    }


def _warm() -> None:
    """Import what a daemon has imported by the end of a run."""
    from pipeline import merge_groups, merge_results  # noqa: F401


def _make(folder: Path, kind: str, count: int) -> None:
    """A plan and the parts of all its shards, in which results stand in the order in which they ended."""
    for each in (folder / plan.FOLDER, folder / parts.FOLDER):
        each.mkdir(parents=True)
    order = _order(count) if kind == "prefix" else None
    sizes = np.full(count, REQUEST_BYTES, np.uint32)
    cut = list(shards.cut(sizes, order))
    (folder / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, cut)))
    if order:
        with open(folder / plan.FOLDER / plan.ORDER_FILE, "wb") as file:
            file.writelines(shards.addresses(sizes, order))
    generator = random.Random(20261124)
    # Forty thousand fsyncs are not what is measured here.
    with mock.patch("os.fsync"):
        for shard in cut:
            span = range(shard.first_line, shard.first_line + shard.lines)
            held = [int(order.lines[place]) for place in span] if order else list(span)
            generator.shuffle(held)
            parts.write(folder, shard.index, 1, _results(held, generator))
    os.sync()


def _order(count: int) -> Order:
    """Requests of which any few hundred share a prompt, wherever they stand in the file."""
    groups = np.random.default_rng(20261124).integers(0, max(1, count // GROUP_LINES), count)
    lines_ = np.argsort(groups, kind="stable").astype(np.uint32)
    ordered = groups[lines_]
    shared = np.zeros(count, np.uint8)
    shared[1:] = (ordered[1:] == ordered[:-1]) * 3
    return Order(lines_, shared)


def _results(held: list[int], generator: random.Random) -> Iterator[Result]:
    for line in held:
        key = lines.request_key("batch_2026112412000000000000000001", line)
        asked, told = generator.randrange(20, 60), generator.randrange(5, 40)
        body = _BODY % (key.encode(), b"0123456789" * (told // 4), asked, asked + told, told)
        text = lines.response_line(key, f"request-{line}", 200, body)
        yield Result(line, True, Usage(asked, 0, told, 0), text, latency=generator.randrange(12, 16))


if __name__ == "__main__":
    sys.exit(main())
