"""What all rounds of the disk's faults share: the nursery's children, the drops, the judging and the table.

A round prepares a spool with drops, lets a process work on it while something goes wrong, lets a second one
go on without the fault, and hands what there is to the oracle, together with what a reader of status.json
saw meanwhile. A process that dies of an I/O error, or waits for ever after it is over, counts as wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spool import create, files
from tests import daemons
from tests.faults import disk_stand_in, oracle
from tests.faults.disk_stand_in import DIED, DONE, REFUSED, STUCK, Wishes
from tests.faults.judgement import Round
from tests.faults.tally import Tally

__all__ = ["DIED", "DONE", "REFUSED", "STUCK", "Wishes"]

BIG_LINES = 300
# In the table: the real loop with a stand-in for the run, in the nursery's child.
ENGINE = "loop"


def drops() -> dict[str, bytes]:
    """A batch of three shards, and a small one with a line that validation refuses."""
    rows = [daemons.request(f"a{n}", f"text {n}") for n in range(BIG_LINES)]
    for row in rows:
        row["body"]["model"] = "m"
    small = daemons.jsonl(rows[:3]) + b'{"custom_id": "bad"}\n'
    return {"big.jsonl": daemons.jsonl(rows), "small.jsonl": small}


def expected(request: dict[str, Any]) -> str | None:
    """The right answer: the stand-in says what it was told."""
    content: str = request["body"]["messages"][0]["content"]
    return content


def prepare(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A spool with the drops in its inbox; whatever was in the folder before is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    home = create.create(folder / "spool")
    return home.root, put_drops(home.root)


def put_drops(spool: Path, prefix: str = "") -> dict[str, bytes]:
    """Put the drops into the inbox, durable, so that what is lost later was not lost by us."""
    put = {f"{prefix}{name}": content for name, content in drops().items()}
    files.write_durable(spool / "inbox" / f"{prefix}small.batch.yaml", b"on_invalid: skip\n")
    for name, content in put.items():
        files.write_durable(spool / "inbox" / name, content)
    return put


@dataclass
class Outcome:
    """How a round went.

    Attributes:
        was_hit: whether the fault came to pass at all.
        recovery_s: how long it took from the end of the fault, or from the next start, to the end of all.
    """

    verdict: oracle.Verdict = field(default_factory=oracle.Verdict)
    was_hit: bool = True
    recovery_s: float = 0.0
    log: str = ""

    def blame(self, problem: str) -> None:
        """Note something wrong."""
        self.verdict.wrong.append(problem)


class Child:
    """One forked process of the nursery."""

    def __init__(self, nursery: Nursery, wishes: Wishes) -> None:
        self._nursery = nursery
        self._wishes = wishes
        self.pid = int(nursery.hear(60))
        self._code: int | None = None

    def go(self) -> None:
        """Let it go on from where it stopped itself."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, limit_s: float = 60.0) -> int:
        """Its exit code, negative for a signal; one that does not end is killed."""
        if self._code is None:
            try:
                self._code = int(self._nursery.hear(limit_s))
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)
                self._code = int(self._nursery.hear(30))
        return self._code

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        if self._code is None and self._nursery.has_news():
            self._code = int(self._nursery.hear(1))
        return self._code is None

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.is_running():
            os.kill(self.pid, number)

    def log(self) -> str:
        """What it logged."""
        path = Path(self._wishes.log)
        return path.read_text(errors="replace") if path.exists() else ""


class Nursery:
    """A warm process that forks off children in milliseconds; one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", disk_stand_in.__name__],
            cwd=daemons.REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(daemons.REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.hear(60) == "ready"

    def fork(self, wishes: Wishes) -> Child:
        """A child; stopped where its wishes say, or working already."""
        assert self._process.stdin
        Path(wishes.log).unlink(missing_ok=True)
        self._process.stdin.write(json.dumps(asdict(wishes)).encode() + b"\n")
        return Child(self, wishes)

    def has_news(self, limit_s: float = 0.0) -> bool:
        """Whether it has something to say."""
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], limit_s)[0])

    def hear(self, limit_s: float) -> str:
        """Its next line."""
        assert self._process.stdout
        if not self.has_news(limit_s):
            raise TimeoutError("the nursery says nothing")
        line = self._process.stdout.readline().decode().strip()
        assert line, "the nursery has ended"
        return line

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


@contextlib.contextmanager
def open_nursery() -> Iterator[Nursery]:
    """A nursery for as long as the block lasts."""
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.close()


def note_code(outcome: Outcome, code: int, child: Child, allowed: Iterable[int]) -> None:
    """Blame an exit that is not among those that the fault excuses."""
    outcome.log += child.log()
    if code not in allowed:
        last = outcome.log.strip().splitlines()[-1:] or [""]
        said = {DIED: "died", STUCK: "was stuck", REFUSED: "did not start"}.get(code, f"ended with {code}")
        outcome.blame(f"the process {said}: {last[0][-300:]}")


def leave_something(nursery: Nursery, folder: Path) -> None:
    """Let a process work until its first part is durable, and kill it: something to adopt."""
    child = nursery.fork(Wishes(str(folder), str(folder / "zeroth.log"), shard_s=0.1))
    ends_at = time.monotonic() + 20
    while not any((folder / "spool" / "work").glob("*/batch_*/parts/0*.1.*")) and time.monotonic() < ends_at:
        time.sleep(0.005)
    child.signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "nothing is left to adopt"


def end_all(
    nursery: Nursery,
    folder: Path,
    outcome: Outcome,
    put: dict[str, bytes],
    logs: Path | None = None,
    limit_s: float = 45.0,
) -> None:
    """Start a process without any fault, wait for its end, and judge."""
    started = time.monotonic()
    child = nursery.fork(Wishes(str(folder), str((logs or folder) / "second.log"), limit_s=limit_s))
    note_code(outcome, child.wait(), child, [DONE])
    outcome.recovery_s = max(outcome.recovery_s, time.monotonic() - started)
    judge(folder / "spool", outcome, put)


def judge(spool: Path, outcome: Outcome, put: dict[str, bytes]) -> None:
    """Add the oracle's verdict."""
    try:
        found = oracle.judge(spool, put, expected)
    except (AssertionError, OSError, ValueError, KeyError, TypeError) as error:
        outcome.verdict.lost.append(f"what is there cannot be read: {error!r}")
        return
    for path in (spool / "outbox").glob("*/errors.jsonl"):
        failed = [json.loads(line) for line in path.read_bytes().splitlines()]
        found.wrong += [f"a good line failed: {row}" for row in failed if row["custom_id"] != "bad"]
    outcome.verdict.lost += found.lost
    outcome.verdict.doubled += found.doubled
    outcome.verdict.wrong += found.wrong


def note(table: Tally, fault: str, seed: str, outcome: Outcome) -> None:
    """Count a round in the table; `seed` says how it is played again."""
    done = Round(fault, ENGINE, seed, outcome.verdict, outcome.recovery_s, has_struck=outcome.was_hit)
    table.add(done)
