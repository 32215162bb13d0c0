"""A run: batches of one model through Ray Data, from their missing requests to durable parts.

`run` blocks and may be called in several threads at a time; request_stop of spool/control.py ends a batch's
share of it early, with all finished lines kept. It neither merges nor changes any record: the parts on disk
are its whole result. Imports ray inside functions only.

After a crash only lines without a durable result run again, so what was answered in vain is what the tasks in
flight held, a bundle each: DEPTH * max_num_seqs * replicas lines, rounded up to whole shards of 128
for each task, and their twins. For one replica that computes 256 requests at once that is 512, whatever the
size of the file (tests/integration/test_run.py kills a run of 20,000 lines at 90 %).

Limits: the driver keeps an entry for each unfinished shard.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import settings
from pipeline import errors, gate, slices
from pipeline.fleet import Fleet
from spool import control


@dataclass(frozen=True)
class Work:
    """One batch of a run.

    Attributes:
        folder: the batch's folder, named `<batch_id>~<epoch>`.
        attempt: number of its run, from 1; no two runs of a batch share one.
    """

    folder: Path
    attempt: int


def run(
    works: Sequence[Work],
    model: str,
    fleet: Fleet,
    configured: settings.Settings,
    pool: str,
) -> None:
    """Work on every missing request of these batches, until all were tried or stopped.

    Args:
        works: batches of this model.
        model: name of a configured model; its replicas are up or coming back.
        fleet: started.
        configured: all settings.
        pool: whose engines answer.

    Raises:
        RunError: not all could be tried; what is finished is kept, and another run may go on.
    """
    from pipeline import calls, data

    chosen = configured.model_named(model)
    attempts = configured.engine.max_attempts
    route = calls.Route(fleet.handles(model, pool), gate.slots(chosen), attempts, os.urandom(8).hex())
    shape = slices.shape(gate.max_num_seqs(chosen), len(route.replicas))
    try:
        bundles = list(slices.bundled(slices.spread(_pending(works), len(route.replicas)), shape.lines))
        if bundles:
            # More where twins make bundles small: as many as it takes, were all of average size.
            load = sum(each.load for bundle in bundles for each in bundle) / len(bundles)
            tasks = min(slices.MAX_TASKS, max(shape.tasks, round(shape.depth / load)))
            dealt = list(slices.dealt(bundles, tasks))
            data.execute(dealt, route, tasks, configured.engine.dedupe)
        left = sum(each.missing for each in _pending(works))
    except Exception as error:  # Ray wraps whatever a task raised, and has errors of its own
        _abort(works, route.replicas)
        raise errors.RunError(f"model {model!r}: {calls.reason(error)}") from error
    if left:
        raise errors.RunError(
            f"model {model!r}: {left} requests have no answer yet: its engine did not come back"
        )


def _pending(works: Sequence[Work]) -> list[slices.Slice]:
    """What is to be done; nothing of batches that are stopped or were adopted by another daemon."""
    found: list[slices.Slice] = []
    for work in works:
        if control.must_stop(work.folder):
            continue
        try:
            found += slices.pending(work.folder, work.attempt)
        except FileNotFoundError:
            if work.folder.is_dir():
                raise
    return found


def _abort(works: Sequence[Work], replicas: Sequence[Any]) -> None:
    """Free the engines of requests that nobody waits for any more."""
    for work in works:
        for handle in replicas:
            handle.abort.remote(str(work.folder))
