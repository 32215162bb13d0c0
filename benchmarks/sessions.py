"""Sessions: the warm engines that measures need, one at a time.

Measures that need the same engine share its session, so that it is started once for each repetition. No
engine is up while another one is measured: both would want the same cores, or the same GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import batchd, peers, workloads
from benchmarks.served import Served


@dataclass(frozen=True)
class Bench:
    """What all measures of a run share.

    Attributes:
        sizes: how much of each workload.
        served: the model.
        prefix_served: the model of `prefix`, with its small KV cache.
        tail_served: the model of `tail`, with few places.
        work: a folder for inputs and spools, deleted at the end.
        logs: a folder for the logs of all processes, kept.
        is_quick: whether this is a smoke test.
    """

    sizes: workloads.Sizes
    served: Served
    prefix_served: Served
    tail_served: Served
    work: Path
    logs: Path
    is_quick: bool


@dataclass(frozen=True)
class Session:
    """An engine that is kept warm; with no model, none is: its measures start what they need.

    Attributes:
        label: names it in logs and on the screen.
        served: None where no engine is up.
        is_bare: the bare engine instead of batchd.
        sections: of batchd's settings, beside the model.
    """

    label: str
    served: Served | None = None
    is_bare: bool = False
    sections: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def open(self, bench: Bench, repetition: int) -> Iterator[Live]:
        """Start it, and end it with all that belongs to it."""
        name = f"{self.label.replace(' ', '-')}.{repetition}"
        folder, log = bench.work / name, bench.logs / f"{name}.log"
        if self.served is None:
            folder.mkdir()
            yield Live(folder, None, None)
        elif self.is_bare:
            bare = peers.BareEngine(self.served, folder, log)
            warm_up = bench.work / f"{name}.warm-up"
            workloads.write(warm_up, workloads.sums(self.served.name, batchd.WARM_UP_LINES, seed=0))
            try:
                bare.start(warm_up)
                yield Live(folder, None, bare)
            finally:
                bare.stop()
        else:
            daemon = batchd.Batchd(folder, log, batchd.settings(self.served, **self.sections))
            try:
                daemon.start(self.served.name)
                yield Live(folder, daemon, None)
            finally:
                daemon.stop()


@dataclass(frozen=True)
class Live:
    """What a session gives to its measures.

    Attributes:
        folder: for files of this repetition.
        daemon: batchd, where the session is one of batchd.
        bare: the bare engine, where it is one of that.
    """

    folder: Path
    daemon: batchd.Batchd | None
    bare: peers.BareEngine | None

    def answer(self, file: Path, name: str) -> batchd.Run:
        """Have the session's engine answer a file."""
        engine = self.daemon or self.bare
        assert engine is not None
        return engine.answer(file, name)


ALONE = Session("alone")
