"""The measures of batchd's data path alone, with no model: speed and memory by size, validation, planning."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import yaml

from benchmarks import batchd, workloads
from benchmarks.figures import Mark, Outcome, ratio
from benchmarks.measured import BATCHD, ECHOING, Measured
from benchmarks.memory import Peak, peak_mib
from benchmarks.served import ECHO
from benchmarks.sessions import ALONE, Bench, Live, Session
from config.settings import LimitSettings
from pipeline import validate
from pipeline.order_notes import Wishes
from tests.daemons import batchd as command

# A file may cost this much more memory than one a tenth as large; custom_ids alone take 12 to 17 bytes each.
FLAT_MIB = 32.0
# Runs of `order_cost` in one session: one takes less than a second.
ROUNDS = 7
VALIDATE_LIMIT_S = 600.0
REPLICAS = (1, 2, 4)
# Of an answer. Runs take a hundred times as long, so that the last round of answers weighs little.
LATENCY_S = 0.5
PLANNED, UNPLANNED = "no daemon: validated and planned", "no daemon: validated, the file's order"


class Scale(Measured):
    """The echo engine on ever larger files, a fresh daemon for each."""

    name = "scale"
    repetitions = 1

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, ECHO)
        fresh = tuple(Session(f"{BATCHD} echo {size} lines", ECHO) for size in bench.sizes.scale)
        self.sessions = (ECHOING,) if bench.is_quick else fresh

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Answer one size, and look at the memory of all that takes part."""
        assert live.daemon is not None
        size = self.bench.sizes.scale[self.sessions.index(session)]
        file = workloads.write(live.folder / "scale.jsonl", workloads.many(ECHO.name, size))
        with Peak(live.daemon.pid) as peak:
            live.daemon.drop({"scale": file})
            seen_at, status = live.daemon.ended("scale")
        label = f"{size:,} lines"
        self.book.add(label, "lines/s", size / (seen_at - batchd.claimed_at(status)))
        for step, seconds in batchd.steps(status, seen_at).items():
            self.book.add(f"{label}: {step}", "s", seconds)
        self.book.add(f"{label}: daemon", "MiB", peak_mib(live.daemon.pid))
        self.book.add(f"{label}: all processes", "MiB", peak.tree_mib)
        self.check(label, file, live.daemon.results("scale"))

    def outcome(self) -> Outcome:
        """The slowest and the largest size are judged."""
        found = self.book.all()
        speeds = [each.median for each in found if each.unit == "lines/s"]
        daemons = [each.median for each in found if each.name.endswith("daemon")]
        trees = [each.median for each in found if each.name.endswith("all processes")]
        slowest, fastest = min(speeds, default=float("nan")), max(speeds, default=float("nan"))
        marks = [
            Mark("lines/s from claim to published, slowest size", slowest, 30_000.0),
            Mark("x between fastest and slowest size", ratio(fastest, slowest), 1.15, is_least=False),
            Mark("MiB at most, the daemon", max(daemons, default=float("nan")), 400.0, is_least=False),
            Mark(
                "MiB at most, all processes (PSS)", max(trees, default=float("nan")), 3072.0, is_least=False
            ),
        ]
        return self.end("echo engine, claim to published", marks)


class Validate(Measured):
    """`batchd validate` on one core."""

    name = "validate"
    sessions = (ALONE,)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, ECHO)
        self._lines = bench.sizes.validate
        self._config = bench.work / "validate.yaml"
        self._config.write_text(yaml.safe_dump({"models": [ECHO.settings()]}))
        self._files = {
            count: workloads.write(bench.work / f"validate-{count}.jsonl", workloads.many(ECHO.name, count))
            for count in (1, self._lines // 10, self._lines)
        }

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """One line, for the start of the command; a tenth, for its memory; all."""
        took = {}
        for count, file in self._files.items():
            took[count], peak = self._run(file, repetition)
            self.book.add(f"{count:,} lines", "s", took[count])
            self.book.add(f"{count:,} lines", "MiB", peak)
        self.book.add("without the command's start", "lines/s", self._lines / (took[self._lines] - took[1]))
        self.book.add("with the command's start", "lines/s", self._lines / took[self._lines])

    def _run(self, file: Path, repetition: int) -> tuple[float, float]:
        """Seconds, and the most memory in MiB."""
        core = str(min(os.sched_getaffinity(0)))
        arguments = ["taskset", "-c", core, command(), "validate", "--config", str(self._config), str(file)]
        peak = 0.0
        with open(self.log(BATCHD, repetition), "ab") as sink:
            began = time.monotonic()
            process = subprocess.Popen(arguments, stdout=sink, stderr=sink)
            try:
                while process.poll() is None and time.monotonic() < began + VALIDATE_LIMIT_S:
                    # Not rusage's maximum: it begins with what this process has, across the fork.
                    peak = max(peak, peak_mib(process.pid))
                    time.sleep(0.01)
                seconds = time.monotonic() - began
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            self.wrong.append(f"batchd validate ended with {process.returncode}: a valid file was refused")
        return seconds, peak

    def outcome(self) -> Outcome:
        """Speed, and how much more memory ten times the lines take."""
        speed = self.book.median("without the command's start", "lines/s")
        more = self.book.median(f"{self._lines:,} lines", "MiB") - self.book.median(
            f"{self._lines // 10:,} lines", "MiB"
        )
        marks = [
            Mark("lines/s on one core", speed, 150_000.0),
            Mark("MiB more than for a tenth of the lines", more, FLAT_MIB, is_least=False),
        ]
        return self.end(f"batchd validate, {self._lines:,} lines", marks)


class OrderCost(Measured):
    """What it costs to look for shared prefixes and twins where there are none."""

    name = "order_cost"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, ECHO)
        others = tuple(
            self._session(order, dedupe)
            for order, dedupe in (("prefix", False), ("file", True), ("file", False))
        )
        self.sessions = (ALONE, ECHOING) if bench.is_quick else (ALONE, ECHOING, *others)
        self._lines = bench.sizes.order_cost
        self._file = self.write(workloads.sums(ECHO.name, self._lines))

    def _session(self, order: str, dedupe: bool) -> Session:
        label = f"{BATCHD} echo order {order}{' dedupe' if dedupe else ''}"
        return Session(label, ECHO, sections={"engine": {"order": order, "dedupe": dedupe}})

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Answer the file several times; alone, validate and plan it without a daemon."""
        if live.daemon is None:
            self._plan(live.folder)
            return
        runs, plans = [], []
        for n in range(ROUNDS):
            name = f"order-{n}"
            live.daemon.drop({name: self._file})
            seen_at, status = live.daemon.ended(name)
            runs.append(seen_at - batchd.claimed_at(status))
            plans.append(batchd.steps(status, seen_at)["validation and plan"])
            self.check(session.label, self._file, live.daemon.results(name))
        self.book.add(session.label, "s", statistics.median(runs))
        self.book.add(f"{session.label}: validation and plan", "s", statistics.median(plans))

    def _plan(self, folder: Path) -> None:
        """Validate, copy and plan, with and without a wish for order, in turn."""
        found: dict[str, list[float]] = {PLANNED: [], UNPLANNED: []}
        for _ in range(ROUNDS):
            for label, wishes in ((PLANNED, Wishes()), (UNPLANNED, Wishes(False, False))):
                batch = folder / "batch_plan~1"
                batch.mkdir()
                rules = validate.Rules(frozenset({ECHO.name}), LimitSettings(), wishes=wishes)
                began = time.monotonic()
                with open(self._file, "rb") as source:
                    validate.check_and_copy(source, batch, "batch_plan", rules)
                found[label].append(time.monotonic() - began)
                shutil.rmtree(batch)
        for label, seconds in found.items():
            self.book.add(label, "s", statistics.median(seconds))

    def outcome(self) -> Outcome:
        """What planning takes alone, as a share of the whole run on an engine that takes no time itself."""
        cost = self.book.median(PLANNED) - self.book.median(UNPLANNED)
        share = 100 * ratio(cost, self.book.median(ECHOING.label))
        mark = Mark("% of the run for planning", share, 2.0, is_least=False)
        return self.end(f"{self._lines:,} short distinct requests, echo engine", [mark])


class Replicas(Measured):
    """More replicas of an engine that takes the same time for each answer, however many it has at a time."""

    name = "replicas"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, ECHO)
        model = {**ECHO.settings(), "latency_s": LATENCY_S}
        self.sessions = tuple(
            Session(f"{BATCHD} echo x {count}", ECHO, sections={"models": [{**model, "replicas": count}]})
            for count in REPLICAS
        )
        self._lines = bench.sizes.replicas
        self._file = workloads.write(bench.work / "replicas.jsonl", workloads.many(ECHO.name, self._lines))

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Answer the file."""
        run = live.answer(self._file, self.name)
        self.book.add(_count(REPLICAS[self.sessions.index(session)]), "lines/s", self._lines / run.seconds)
        self.check(session.label, self._file, run.results)

    def outcome(self) -> Outcome:
        """What each doubling brings."""
        marks = [
            Mark(
                f"x the speed of {_count(few)} with {many}",
                ratio(self.book.median(_count(many), "lines/s"), self.book.median(_count(few), "lines/s")),
                1.9,
            )
            for few, many in itertools.pairwise(REPLICAS)
        ]
        return self.end(f"{self._lines:,} requests, {LATENCY_S:g} s for each answer", marks)


def _count(replicas: int) -> str:
    return f"{replicas} replica{'s' if replicas > 1 else ''}"


ALL = (Scale, Validate, OrderCost, Replicas)
