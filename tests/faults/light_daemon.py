"""The real `batchd` without Ray: its engines and its run are stand-ins, so that it starts in a second.

    python -m tests.faults.light_daemon run --config FILE

All else is the real thing: command line, settings, signals, leases, loop, threads, spool. Requests are
answered shard by shard, each after the model's `latency_s`; a run that is stopped keeps half of the shard it
was at. CLOCK in the environment names a file whose seconds are added to this process's wall clock, for all
Python code; the monotonic clock goes on as it is, as on a machine whose time is set.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import orjson

from config.settings import Settings
from daemon import main, serve
from pipeline import slices
from pipeline.placement import Pools
from pipeline.run import Work
from pipeline.team import ModelState
from spool import control, lines, parts, plan
from spool.parts import Result, Usage

CLOCK = "BATCH_TEST_CLOCK"
POLL_S = 0.01


class Fleet:
    """Engines that are up at once."""

    def __init__(self, configured: Settings) -> None:
        self._models = [model.name for model in configured.models]
        self.places = 1

    def start_ray(self, on_lost: Any) -> None:
        """Nothing to start."""

    def sizes(self) -> dict[str, float]:
        """They take no GPU."""
        return dict.fromkeys(self._models, 0.0)

    def room(self) -> float:
        """No GPU is there."""
        return 0.0

    def start_engines(self, counts: Mapping[str, int]) -> None:
        """Nothing to start."""

    def warm_up(self, is_over: Callable[[], bool]) -> None:
        """Likewise."""

    def poll(self) -> list[ModelState]:
        """All are up."""
        return [ModelState(name, 1, 1, 0, 0.0, 0, (), {}, Usage()) for name in self._models]

    def pools(self) -> Pools:
        """All are open."""
        return Pools()

    def stop(self) -> None:
        """Nothing to stop."""

    def stop_engines(self) -> None:
        """Likewise."""


def run(works: list[Work], model: str, fleet: Any, configured: Settings, pool: str) -> None:
    """Answer all that is missing, as pipeline.run.run does."""
    latency_s = getattr(configured.model_named(model), "latency_s", 0.0)
    for work in works:
        try:
            for piece in slices.pending(work.folder, work.attempt):
                if not _answer(work, piece.shard, latency_s):
                    break
        except FileNotFoundError:
            continue  # adopted by another daemon


def _answer(work: Work, shard: plan.Shard, latency_s: float) -> bool:
    """Answer one shard; False if the batch was stopped meanwhile."""
    names = parts.list_shard(work.folder, shard.index)
    done = {result.line for name in names for result in parts.read(work.folder, name)}
    results = [
        _result(work, line, raw) for line, raw in plan.read_requests(work.folder, shard) if line not in done
    ]
    ends_at = time.monotonic() + latency_s
    is_stopped = control.must_stop(work.folder)
    while not is_stopped and time.monotonic() < ends_at:
        time.sleep(POLL_S)
        is_stopped = control.must_stop(work.folder)
    if is_stopped:
        results = results[: len(results) // 2]
    if results:
        parts.write(work.folder, shard.index, work.attempt, results)
    return not is_stopped


def _result(work: Work, line: int, raw: bytes) -> Result:
    request = orjson.loads(raw)
    content = request["body"]["messages"][-1]["content"]
    body = orjson.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})
    batch_id = work.folder.name.rpartition("~")[0]
    text = lines.response_line(lines.request_key(batch_id, line), request["custom_id"], 200, body)
    return Result(line, True, Usage(2, 0, 1, 0), text)


def set_clock(file: Path) -> None:
    """Add what the file holds to the wall clock, from now on."""
    real = time.time

    def shifted() -> float:
        try:
            return real() + float(file.read_text() or 0)
        except (OSError, ValueError):
            return real()

    time.time = shifted


def patch() -> None:
    """Put the stand-ins in the place of Ray."""
    mock.patch.object(serve, "Fleet", Fleet).start()
    mock.patch.object(serve, "run_works", run).start()
    if os.environ.get(CLOCK):
        set_clock(Path(os.environ[CLOCK]))


if __name__ == "__main__":
    patch()
    sys.exit(main.main(sys.argv[1:]))
