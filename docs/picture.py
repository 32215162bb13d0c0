"""Makes docs/terminal.svg, the picture in README.md: real commands on a real spool, in a terminal.

A daemon with the tiny model on real vLLM serves a spool in a temporary folder; the commands run one after
the other in a pseudo terminal, and what stands on its screen at the end becomes the picture. Nothing is
written by hand but the prompts. `make picture` takes a minute.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich import _export_format
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
BATCHD = Path(sys.executable).with_name("batchd")
WIDTH, HEIGHT = 96, 60
REQUESTS = 8000
START_LIMIT_S = 300.0
COMMAND_LIMIT_S = 300.0

# Text, or what moves the cursor or erases; colours stay in the text.
_MOVES = re.compile(r"(\r|\n|\x1b\[\d*[AK]|\x1b\[\?25[lh])")


class Screen:
    """What a terminal shows of what programs wrote that redraw lines as a whole, as rich does."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = 0
        self._is_at_start = True

    def write(self, written: str) -> None:
        """Draw.

        Raises:
            ValueError: a sequence that this little terminal does not know.
        """
        for piece in _MOVES.split(written):
            if piece == "\n":
                self._row += 1
                self.lines += [""] * (self._row + 1 - len(self.lines))
            elif piece == "\r":
                self._is_at_start = True
            elif piece.endswith("A") and piece.startswith("\x1b"):
                self._row -= int(piece[2:-1] or 1)
            elif piece.endswith("K") and piece.startswith("\x1b"):
                self.lines[self._row] = ""
            elif piece and not piece.startswith("\x1b[?25"):
                self._draw(piece)

    def _draw(self, text: str) -> None:
        if re.search(r"\x1b(?!\[[\d;]*m)", text):
            raise ValueError(f"cannot draw {text!r}")
        self.lines[self._row] = text if self._is_at_start else self.lines[self._row] + text
        self._is_at_start = False


def main() -> int:
    """Make the picture."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = Path(name)
        _write_sums(folder / "sums.jsonl")
        environment = {
            **os.environ,
            "PATH": f"{BATCHD.parent}:{os.environ['PATH']}",
            "TZ": "UTC",
            "TERM": "xterm-256color",
            "BATCHD_SPOOL__ROOT": "spool",
            "BATCHD_METRICS__PORT": "0",
            "COLUMNS": str(WIDTH),
        }
        screen = Screen()
        with _daemon(folder, environment):
            _play(screen, folder, environment)
    console = Console(record=True, width=WIDTH, force_terminal=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi("\n".join(screen.lines)))
    # Without fonts from elsewhere: a picture in a page asks no third party for anything.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", _export_format.CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    target = HERE / "terminal.svg"
    target.write_text(console.export_svg(title="batchd", code_format=form, unique_id="batchd"))
    print(f"wrote {target}: {len(screen.lines)} lines")
    return 0


def _play(screen: Screen, folder: Path, environment: dict[str, str]) -> None:
    def run(command: str, until: Callable[[], bool] | None = None) -> None:
        screen.write(f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m\r\n")
        for written in _run(command, folder, environment, until):
            screen.write(written)
        screen.write("\r\n" * bool(screen.lines[-1]))

    run("cp sums.jsonl spool/inbox/june.jsonl")
    status = folder / "spool/outbox/june/status.json"
    _await(status.exists, START_LIMIT_S)
    run("batchd watch june", lambda: _share(status) > 0.3)
    screen.write("\r\n")
    run("batchd status")
    screen.write("\r\n")
    run("batchd submit may.jsonl --wait --window 1h")
    screen.write("\r\n")
    run("batchd verify may")


def _run(
    command: str, folder: Path, environment: dict[str, str], until: Callable[[], bool] | None
) -> Iterator[str]:
    """What a command writes to its terminal; Ctrl-C is pressed once `until` says so."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment,
        preexec_fn=_own_terminal,
    )
    os.close(theirs)
    ends_at = time.monotonic() + COMMAND_LIMIT_S
    written = b""
    with contextlib.suppress(OSError):  # the last writer has closed the terminal
        while time.monotonic() < ends_at:
            if until and until():
                os.write(ours, b"\x03")
                until = None
            if select.select([ours], [], [], 0.05)[0]:
                if not (more := os.read(ours, 65536)):
                    break
                written += more
    process.wait(10)
    os.close(ours)  # not before: whoever leads a session gets SIGHUP when its terminal goes
    if process.returncode not in (0, 130):
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{written.decode()}")
    yield written.decode()


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def _daemon(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A daemon whose engine is ready."""
    log = folder / "daemon.log"
    with open(log, "wb") as sink:
        daemon = subprocess.Popen([BATCHD, "run"], cwd=folder, env=environment, stdout=sink, stderr=sink)
    try:
        _await(lambda: daemon.poll() is not None or "engine_ready" in log.read_text(), START_LIMIT_S)
        if daemon.poll() is not None:
            raise RuntimeError(f"the daemon ended with {daemon.returncode}:\n{log.read_text()[-2000:]}")
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def _write_sums(path: Path) -> None:
    """Sums for the tiny model, and a small file of them beside."""
    lines = []
    for number in random.Random(1).sample(range(10_000), REQUESTS):
        messages = [{"role": "user", "content": f"What is {number // 100}+{number % 100}?"}]
        body = {"model": "tiny-adder", "messages": messages, "temperature": 0, "max_tokens": 8}
        request = {"custom_id": f"sum-{number}", "method": "POST", "url": "/v1/chat/completions"}
        lines.append(json.dumps({**request, "body": body}) + "\n")
    path.write_text("".join(lines))
    path.with_name("may.jsonl").write_text("".join(lines[:200]))


def _share(status: Path) -> float:
    counts = json.loads(status.read_text())["request_counts"]
    done, total = int(counts["completed"] + counts["failed"]), int(counts["total"])
    return done / max(1, total)


def _await(holds: Callable[[], bool], limit_s: float) -> None:
    ends_at = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > ends_at:
            raise RuntimeError("it took too long")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
