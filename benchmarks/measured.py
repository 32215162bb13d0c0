"""What every measure has: figures, a list of what was wrong, and ways to run the peers that stand alone."""

from __future__ import annotations

import abc
from pathlib import Path

from benchmarks import answers, batchd, peers, workloads
from benchmarks.figures import Book, Mark, Outcome
from benchmarks.served import ECHO, Served
from benchmarks.sessions import Bench, Live, Session
from benchmarks.workloads import REPETITIONS, Request

BATCHD, BARE, RUN_BATCH, RAY_DATA = "batchd", "bare engine", "vllm run-batch", "Ray Data LLM"
# batchd as it is set by default, on the echo engine.
ECHOING = Session(f"{BATCHD} echo", ECHO)


class Measured(abc.ABC):
    """One workload.

    Attributes:
        name: what the command line calls it.
        repetitions: how often it is measured.
        sessions: the engines that it needs, each once for each repetition.
        book: the figures.
        wrong: answers that are not what they must be.
    """

    name = ""
    repetitions = REPETITIONS
    sessions: tuple[Session, ...] = ()

    def __init__(self, bench: Bench, served: Served | None = None) -> None:
        self.bench = bench
        self.served = served or bench.served
        self.book = Book()
        self.wrong: list[str] = []
        variant = self.served.variant
        self.warm = Session(f"{BATCHD} {variant}".strip(), self.served)
        self.bare = Session(f"{BARE} {variant}".strip(), self.served, is_bare=True)

    @abc.abstractmethod
    def measure(self, session: Session, live: Live, repetition: int) -> None:
        """Do its part in a session.

        Raises:
            RuntimeError: something that was started failed.
        """

    @abc.abstractmethod
    def outcome(self) -> Outcome:
        """The figures and what they say."""

    def write(self, requests: list[Request], suffix: str = "") -> Path:
        """A file of this workload."""
        return workloads.write(self.bench.work / f"{self.name}{suffix}.jsonl", requests)

    def run_batch(self, live: Live, file: Path, repetition: int) -> batchd.Run:
        """Have `vllm run-batch` answer a file."""
        run = peers.run_batch(
            self.served, file, live.folder / f"{self.name}.run-batch", self.log(RUN_BATCH, repetition)
        )
        self.check(RUN_BATCH, file, run.results)
        return run

    def ray_data(self, live: Live, file: Path, repetition: int) -> None:
        """Have Ray Data's processor answer a file, and keep its figures."""
        results = live.folder / f"{self.name}.ray-data"
        whole_s, rate = peers.ray_data(self.served, file, results, self.log(RAY_DATA, repetition))
        self.book.add(f"{RAY_DATA}, start to exit", "s", whole_s)
        self.book.add(f"{RAY_DATA}, middle 80 %", "lines/s", rate)
        self.check(RAY_DATA, file, results)

    def log(self, peer: str, repetition: int) -> Path:
        """Where a peer that this measure starts writes its log."""
        return self.bench.logs / f"{self.name}.{peer.replace(' ', '-')}.{repetition}.log"

    def check(self, peer: str, file: Path, results: Path) -> None:
        """Keep what is wrong with a peer's answers."""
        wrong = answers.check(file, results, self.served.answers)
        self.wrong += [f"{peer}: {problem}" for problem in wrong]

    def end(self, title: str, marks: list[Mark], notes: list[str] | None = None) -> Outcome:
        """The outcome."""
        return Outcome(self.name, title, self.book.all(), marks, notes or [], self.wrong)
