"""Two processes that do the same thing at the same moment, many times: who won.

Each is told by a line when to begin the next one, so that neither runs ahead; they take turns at being told
first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

Deed = Literal["rename", "create", "link"]

_CODE = "import sys; from spool.probe_race import contend; contend(*sys.argv[1:])"


def race(deed: Deed, source: Path, target: Path, count: int) -> list[tuple[str, str]]:
    """Let two processes contend.

    Args:
        deed: rename source/N to target/N.WHO; create target/race-N; or link source to target/race-N.
        source: folder, or file for link.
        target: folder.
        count: how often.

    Returns:
        What both say of each: `won`, `lost`, or an error's name.

    Raises:
        OSError: the processes could not be started, or one of them died.
    """
    # The one place that holds this package: it may be a checkout that is not installed.
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    both = [
        subprocess.Popen(  # noqa: S603 (our own code, and paths as arguments)
            [sys.executable, "-c", _CODE, deed, str(source), str(target), who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
        )
        for who in ("a", "b")
    ]
    try:
        return [_one(both, number) for number in range(count)]
    finally:
        for process in both:
            process.kill()
            process.communicate()


def _one(both: list[subprocess.Popen[bytes]], number: int) -> tuple[str, str]:
    for process in both if number % 2 else reversed(both):
        assert process.stdin
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
    answers = []
    for process in both:
        assert process.stdout
        if not (answer := process.stdout.readline()):
            raise OSError(0, "a process that was to race ended")
        answers.append(answer.decode().strip())
    return answers[0], answers[1]


def contend(deed: Deed, source: str, target: str, who: str) -> None:
    """What each of the two processes runs, until it is killed or its input ends."""
    for line in sys.stdin.buffer:
        number = line.decode().strip()
        try:
            _do(deed, source, target, number, who)
            said = "won"
        except (FileNotFoundError, FileExistsError):
            said = "lost"
        except OSError as error:
            said = str(error.errno)
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


def _do(deed: Deed, source: str, target: str, number: str, who: str) -> None:
    match deed:
        case "rename":
            os.rename(f"{source}/{number}", f"{target}/{number}.{who}")
        case "create":
            os.close(os.open(f"{target}/race-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        case "link":
            os.link(source, f"{target}/race-{number}")
