"""The measures that need a model: how each workload is run on batchd and on its peers.

See benchmarks/README.md for what each of them stands for. A repetition ends when results can be read; whether
they are right is looked at afterwards, outside of what is timed.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from benchmarks import answers, batchd, workloads
from benchmarks.figures import Mark, Outcome, ratio
from benchmarks.measured import BARE, BATCHD, ECHOING, RUN_BATCH, Measured
from benchmarks.served import ECHO, Served
from benchmarks.sessions import ALONE, Bench, Live, Session
from benchmarks.workloads import Request


class AgainstBare(Measured):
    """One file, on warm batchd and on the warm bare engine."""

    bar = 1.0
    title = ""

    def __init__(self, bench: Bench, served: Served | None = None) -> None:
        super().__init__(bench, served)
        self.sessions = (self.warm, self.bare)
        requests = self.requests()
        self.lines = len(requests)
        self.file = self.write(requests)

    def requests(self) -> list[Request]:
        """What the file holds."""
        raise NotImplementedError

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Answer the file with the session's engine."""
        run = live.answer(self.file, self.name)
        peer = BARE if session.is_bare else BATCHD
        self.book.add(peer, "s", run.seconds)
        self.book.add(peer, "lines/s", self.lines / run.seconds)
        self.check(peer, self.file, run.results)

    def outcome(self) -> Outcome:
        """Batchd's speed as a multiple of the bare engine's."""
        value = ratio(self.book.median(BARE), self.book.median(BATCHD))
        return self.end(f"{self.lines:,} {self.title}", [Mark("x the bare engine's speed", value, self.bar)])


class Steady(AgainstBare):
    """Many lines: what the data path costs. Ray Data's own processor beside it."""

    name = "steady"
    bar = 0.95
    title = f"chat requests of {workloads.STEADY_TOKENS} tokens, warm engine, drop to published"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.sessions = (*self.sessions, ALONE)

    def requests(self) -> list[Request]:
        """All distinct, so that nothing can be saved."""
        return workloads.steady(self.served.name, self.bench.sizes.steady)

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Answer the file with the session's engine, or with Ray Data's."""
        if session == ALONE:
            self.ray_data(live, self.file, repetition)
        else:
            super().measure(session, live, repetition)


class Twins(AgainstBare):
    """Deterministic requests that are asked more than once."""

    name = "twins"
    bar = 3.0

    def requests(self) -> list[Request]:
        """Each body four times, shuffled."""
        sizes = self.bench.sizes
        self.title = f"deterministic requests, {sizes.twins_distinct:,} of them distinct"
        return workloads.twins(self.served.name, sizes.twins, sizes.twins_distinct)


class Tail(AgainstBare):
    """A few long answers that stand last in the file."""

    name = "tail"
    bar = 1.15
    title = f"requests, the last 1 % {workloads.TAIL_FACTOR} x longer"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, bench.tail_served)

    def requests(self) -> list[Request]:
        """Short ones first, so many that they take about as long as a long one."""
        count = self.bench.sizes.tail_per_place * self.served.engine_args["max_num_seqs"]
        return workloads.tail(self.served.name, count)


class Cold(Measured):
    """From the start of the process: the file lies there already."""

    name = "cold"
    sessions = (ALONE,)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._lines = bench.sizes.cold
        self._file = self.write(workloads.steady(self.served.name, self._lines))

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """All peers, in turn."""
        whole = {BATCHD: self._batchd, RUN_BATCH: self._run_batch}
        if self.bench.is_quick:  # other workloads try the peers
            del whole[RUN_BATCH]
        else:
            self.ray_data(live, self._file, repetition)
        for peer in sorted(whole, reverse=repetition % 2 == 1):
            self.book.add(peer, "s", whole[peer](live, repetition))

    def _batchd(self, live: Live, repetition: int) -> float:
        log = self.log(BATCHD, repetition)
        daemon = batchd.Batchd(live.folder / "cold", log, batchd.settings(self.served))
        daemon.lay(self._file, "cold")
        try:
            daemon.begin()
            daemon.ended("cold")
            seconds = daemon.since_begin_s()
            self.check(BATCHD, self._file, daemon.results("cold"))
        finally:
            daemon.stop()
        return seconds

    def _run_batch(self, live: Live, repetition: int) -> float:
        return self.run_batch(live, self._file, repetition).whole_s

    def outcome(self) -> Outcome:
        """To published as a multiple of run-batch's time to its exit."""
        value = ratio(self.book.median(RUN_BATCH), self.book.median(BATCHD))
        title = f"{self._lines:,} chat requests from the start of the process"
        return self.end(title, [Mark("x the speed of vllm run-batch", value, 1.0)])


class Small(Measured):
    """Many small files at once, and the same lines as one file."""

    name = "small"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.sessions = (self.warm,) if bench.is_quick else (self.warm, ALONE)
        each, count = bench.sizes.small_lines, bench.sizes.small_files
        requests = workloads.sums(self.served.name, each * count)
        slices = [requests[n * each : (n + 1) * each] for n in range(count)]
        self._files = {f"small-{n}": self.write(part, f"-{n}") for n, part in enumerate(slices)}
        self._one = self.write(requests)

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """batchd on all files, run-batch on one of them."""
        if live.daemon is None:
            file = list(self._files.values())[repetition]
            self.book.add(f"{RUN_BATCH}, a file", "s", self.run_batch(live, file, repetition).whole_s)
            return
        dropped_at = live.daemon.drop(self._files)
        seconds = max(live.daemon.ended(name)[0] for name in self._files) - dropped_at
        self.book.add(f"batchd, {len(self._files)} files", "s", seconds)
        self.book.add("batchd, a file", "s", seconds / len(self._files))
        for name, file in self._files.items():
            self.check(BATCHD, file, live.daemon.results(name))
        run = live.daemon.answer(self._one, "small")
        self.book.add("batchd, the same lines in one file", "s", run.seconds)
        self.check(BATCHD, self._one, run.results)

    def outcome(self) -> Outcome:
        """Per file, and against the one large file."""
        per_file = ratio(self.book.median(f"{RUN_BATCH}, a file"), self.book.median("batchd, a file"))
        together = self.book.median(f"batchd, {len(self._files)} files")
        one = self.book.median("batchd, the same lines in one file")
        marks = [
            Mark("x the speed of vllm run-batch, per file", per_file, 200.0),
            Mark("x the time of one file with the same lines", ratio(together, one), 1.3, is_least=False),
        ]
        sizes = self.bench.sizes
        return self.end(f"{sizes.small_files} files of {sizes.small_lines} lines, dropped at once", marks)


class Latency(Measured):
    """One request on an idle daemon."""

    name = "latency"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.sessions = (self.warm,)
        self._file = self.write(workloads.sums(self.served.name, 1))
        self._phases = random.Random(0)

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Drop, wait, be idle for a while, again; the pauses differ so that no timer is met each time."""
        assert live.daemon is not None
        for n in range(self.bench.sizes.latency):
            time.sleep(self._phases.uniform(1.0, 2.5))
            name = f"latency-{n}"
            dropped_at = live.daemon.drop({name: self._file})
            seen_at, status = live.daemon.ended(name)
            self.book.add("rename to terminal status", "s", seen_at - dropped_at)
            self.book.add("  rename to claim", "s", batchd.claimed_at(status) - dropped_at)
            for step, seconds in batchd.steps(status, seen_at).items():
                self.book.add(f"  {step}", "s", seconds)
            self.check(BATCHD, self._file, live.daemon.results(name))

    def outcome(self) -> Outcome:
        """The median of all drops of all repetitions."""
        mark = Mark(
            "s from rename to terminal status",
            self.book.median("rename to terminal status"),
            0.5,
            is_least=False,
        )
        return self.end("one request on an idle warm daemon", [mark])


class Prefix(Measured):
    """Shared long prompts and a KV cache that cannot hold them all."""

    name = "prefix"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, bench.prefix_served)
        self.sessions = (self.warm, ALONE)
        sizes = bench.sizes
        self._file = self.write(workloads.prefix(self.served.name, sizes.prefix, sizes.prefix_prompts))

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """batchd warm; run-batch with and without its start."""
        if live.daemon:
            run, peer = live.daemon.answer(self._file, self.name), BATCHD
            self.check(BATCHD, self._file, run.results)
        else:
            run, peer = self.run_batch(live, self._file, repetition), RUN_BATCH
        self.book.add(peer, "s", run.seconds)
        self.book.add(f"{peer}, with the engine's start", "s", run.whole_s)

    def outcome(self) -> Outcome:
        """The strictest of three readings is judged: neither start counts."""
        work, whole = self.book.median(RUN_BATCH), self.book.median(f"{RUN_BATCH}, with the engine's start")
        ours, ours_whole = self.book.median(BATCHD), self.book.median(f"{BATCHD}, with the engine's start")
        notes = [
            f"{ratio(whole, ours_whole):.2f} x with the engine start of both",
            f"{ratio(whole, ours):.2f} x with that of run-batch alone, since batchd stays warm",
        ]
        sizes = self.bench.sizes
        title = f"{sizes.prefix} requests over {sizes.prefix_prompts} shared prompts of 900 tokens"
        mark = Mark("x the speed of vllm run-batch, without either's start", ratio(work, ours), 2.5)
        return self.end(title, [mark], notes)


class Correct(Measured):
    """The same answers whatever batchd does to be fast."""

    name = "correct"
    repetitions = 1

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, ECHO if bench.is_quick else None)
        usual = ECHOING if bench.is_quick else self.warm
        plain = {"engine": {"order": "file", "dedupe": False}}
        self.sessions = (usual, Session(f"{usual.label} order file", self.served, sections=plain))
        self._lines = bench.sizes.correct
        self._file = self.write(workloads.repeated_sums(self.served.name, self._lines))
        self._results: dict[str, Path] = {}
        self._different: list[str] | None = None

    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Answer the file, keep the results until both are there."""
        run = live.answer(self._file, self.name)
        self.book.add(session.label, "s", run.seconds)
        self.check(session.label, self._file, run.results)
        kept = self.bench.work / f"correct.{len(self._results)}"
        self._results[session.label] = Path(shutil.copyfile(run.results, kept))
        if len(self._results) == len(self.sessions):
            self._different = answers.differences(*self._results.values())

    def outcome(self) -> Outcome:
        """Differences are wrong where the model is sure of its answers; else they are counted."""
        notes = []
        if self._different and self.served.answers == "any":
            notes = [f"answers differ, as a model's may when others run beside it: {self._different}"]
        elif self._different:
            self.wrong += [f"order and dedupe change an answer: {problem}" for problem in self._different]
        elif self._different is not None:
            notes = ["every answer is the same"]
        return self.end(f"{self._lines:,} sums, with order and dedupe against without", [], notes)


ALL = (Steady, Cold, Small, Latency, Prefix, Twins, Tail, Correct)
