"""Named crash points: a test makes the process end at one, as a kill or a power cut would.

Each step named below has two: just before it takes effect and just after it is durable.
With `FAILPOINT=final.before` in the environment the process exits there without any clean-up;
`FAILPOINT=part.after:3` means the third time. Nothing happens otherwise. Ray's workers inherit the variable.

What the next start does, by the step that was cut off:

    claim.record      either: the drop stands in the inbox; the folder without a drop is removed
    claim.drop        before: as above; after: claimed, the claim's last steps and validation run (again);
                      a link or a folder that was swapped in and moved is a claimed drop too, and fails there
    place             before: out/ is still in the folder, a free name is tried; after: it is shown
    record            before: the state before stands, and what leads to the new one is done again;
                      after: the new one stands, status.json follows
    status            either: the record is the truth, status.json is written again from it
    plan.input        either: no plan in the record, so the drop is validated from the start
    plan.order        as plan.input; only where the order is not the file's
    plan.shards       as plan.input
    attempts          before: nothing is known of that death; after: its suspects run in small company
    part              before: its lines run again; after: they never do
    merge.output      either: nothing is committed, so the parts are merged again
    merge.errors      as merge.output
    final             before: as merge.output; after: rolled forward to this outcome, never decided again
    publish.output    before: moved by the next start; after: found moved, left alone
    publish.errors    as publish.output
    publish.status    before: its results stand in the outbox, it is shown as ended; after: only archived,
                      also where its user took the folder away since
    archive           before: what a running batch needs is gone, the rename is left; after: nothing is
    adopt             before: the dead daemon still holds it; after: ours, adopted from us next time, and
                      counted again
"""

from __future__ import annotations

import os
from typing import Literal

VARIABLE = "FAILPOINT"
# Unlike any exit code that Python or batchd gives by itself.
EXIT_CODE = 86

Step = Literal[
    "claim.record",
    "claim.drop",
    "place",
    "record",
    "status",
    "plan.input",
    "plan.order",
    "plan.shards",
    "attempts",
    "part",
    "merge.output",
    "merge.errors",
    "final",
    "publish.output",
    "publish.errors",
    "publish.status",
    "archive",
    "adopt",
]

_wanted, _left = "", 1


def arm(failpoint: str) -> None:
    """Choose where this process is to end, as VARIABLE does at its start; nowhere for an empty one."""
    global _wanted, _left
    _wanted, _, count = failpoint.partition(":")
    _left = int(count or 1)


def reach(step: Step | None, side: Literal["before", "after"]) -> None:
    """End the process here if a test asked for it."""
    global _left
    if not _wanted or f"{step}.{side}" != _wanted:
        return
    _left -= 1
    if _left <= 0:
        os._exit(EXIT_CODE)


arm(os.environ.get(VARIABLE, ""))
