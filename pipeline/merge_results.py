"""Writes the results of a batch into its result files, in the file's order, and adds up what they took.

Imported only inside functions, because it imports modules that import numpy and pyarrow at the top.
"""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from pipeline import buckets
from pipeline.buckets import Buckets
from pipeline.merge_groups import Groups
from pipeline.result_file import ResultFile
from spool.parts import Usage

# Bytes of parts that are in memory together, unless one shard has more.
GROUP_BYTES = 2 << 20


class Totals(NamedTuple):
    """Sums over all results.

    Attributes:
        usage: tokens of those in output.jsonl.
        shared: how many took the answer of an identical request.
    """

    usage: Usage
    shared: int


def write(
    groups: Groups, folder: Path, output: ResultFile, failures: ResultFile, executor: Executor
) -> Totals:
    """Write them all.

    Args:
        groups: the results.
        folder: where buckets lie for a while.
        output: gets the lines that are ok.
        failures: gets the others.
        executor: has a thread for the writing of buckets.

    Raises:
        PipelineError: the parts do not fit the plan.
        ValueError: a part is damaged.
        OSError: such as on a full disk.
    """
    usage, shared, waiting = Usage(), 0, None
    if groups.is_ordered:
        waiting = Buckets(folder, range(groups.requests), groups.size_bytes(), executor)
    for chosen in groups.read(buckets.HELD_BYTES if waiting else GROUP_BYTES):
        usage = usage.plus(chosen.usage)
        shared += chosen.shared
        if waiting:
            waiting.add(chosen.lines, chosen.ok, chosen.rows, chosen.spans)
            continue
        texts = chosen.spans.split(chosen.rows, chosen.ok)
        output.write(*texts.output)
        failures.write(*texts.errors)
    for texts in waiting.drain() if waiting else ():
        output.write(*texts.output)
        failures.write(*texts.errors)
    return Totals(usage, shared)
