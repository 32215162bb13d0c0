"""The merge: the parts of a batch become merged/output.jsonl and merged/errors.jsonl, in input order.

Some shards at a time are in memory (pipeline/merge_groups.py), and no answer's JSON is parsed. Where requests
did not run in the file's order, their results go through buckets, which lie in merged/ for a while
(pipeline/buckets.py). It may be repeated: what an earlier merge left is thrown away first. A request without
a result gets an error line with the code that the caller gives. Publishing the files is the spool's duty. No
ray here. How long it takes: benchmarks/merge_scale.py.
"""

from __future__ import annotations

import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline import errors, result_file
from pipeline.result_file import ResultFile
from spool import files, plan
from spool.record import FileFacts, Latency, Timeline, UsageTotals
from spool.timeline import Pace

FOLDER = "merged"
OUTPUT_FILE = "output.jsonl"
ERRORS_FILE = "errors.jsonl"


@dataclass(frozen=True)
class Merged:
    """What a merge found and wrote.

    Attributes:
        total: requests of the batch; equal to completed + failed.
        usage: tokens of the completed ones.
        shared: how many took the answer of an identical request.
        output: None where no request was completed; there is no file then.
        errors: None where no request failed; there is no file then.
        timeline: None where there was no part. So latency, and where no part knows it.
    """

    total: int
    completed: int
    failed: int
    usage: UsageTotals
    shared: int
    output: FileFacts | None
    errors: FileFacts | None
    timeline: Timeline | None
    latency: Latency | None


def merge(
    batch: Path,
    plan_requests: int,
    unanswered: tuple[str, str] | None,
    mode: int,
    began: float | None = None,
) -> Merged:
    """Write the result files into `merged/` of a batch's folder, durably.

    Args:
        batch: the batch's folder, named `<batch_id>~<epoch>`.
        plan_requests: requests in the batch, as its plan says.
        unanswered: code and message for requests without a result; None where each must have one.
        mode: permission bits of the files.
        began: when its first run did, Unix seconds.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
        PipelineError: the parts do not fit the plan; nothing may be published.
        ValueError: a part is damaged.
        OSError: the files cannot be written.
    """
    from pipeline import merge_groups, merge_results  # which import numpy and pyarrow at the top

    folder = batch / FOLDER
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    files.make_folder(folder, is_durable=False)  # becomes so with final.json beside it
    shards = sorted(plan.read(batch), key=lambda shard: shard.first_line)
    _check_plan(batch, shards, plan_requests)
    pace = Pace()
    groups = merge_groups.Groups(batch, shards, unanswered, pace)
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(result_file.THREADS, "merge"))
        output = ResultFile(folder / OUTPUT_FILE, mode, stack, "merge.output", executor)
        failures = ResultFile(folder / ERRORS_FILE, mode, stack, "merge.errors", executor)
        totals = merge_results.write(groups, folder, output, failures, executor)
    if output.lines + failures.lines != plan_requests:
        raise errors.PipelineError(
            f"{batch.name}: merged {output.lines} + {failures.lines} lines of {plan_requests} requests"
        )
    return Merged(
        total=plan_requests,
        completed=output.lines,
        failed=failures.lines,
        usage=UsageTotals(**totals.usage._asdict()),
        shared=totals.shared,
        output=output.facts(),
        errors=failures.facts(),
        timeline=pace.timeline(began),
        latency=pace.latency(),
    )


def _check_plan(batch: Path, shards: list[plan.Shard], plan_requests: int) -> None:
    """Raise PipelineError unless the shards cover each request once."""
    line = 0
    for shard in shards:
        if shard.first_line != line:
            raise errors.PipelineError(
                f"{batch.name}: shard {shard.index} begins at request {shard.first_line}, not {line}"
            )
        line += shard.lines
    if line != plan_requests:
        raise errors.PipelineError(f"{batch.name}: the shards hold {line} requests, the plan {plan_requests}")
