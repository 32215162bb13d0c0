"""Starts the real `batchd run` as a process of its own, for tests; waits are polls with a limit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson
import yaml
from openai.types import Batch

Found = TypeVar("Found")

REPOSITORY = Path(__file__).resolve().parent.parent
# Two vLLM engines start in 50 s on two idle cores, and took over 180 s beside other work (2026-11-24).
READY_LIMIT_S = 400.0
LIMIT_S = 60.0
TERMINAL = ("completed", "failed", "expired", "cancelled")


def batchd() -> str:
    """The installed command; tests run against what users run."""
    beside = Path(sys.executable).parent / "batchd"
    found = str(beside) if beside.exists() else shutil.which("batchd")
    assert found, "the command batchd is not installed: make install"
    return found


def command(
    *arguments: str | Path, spool: Path | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run one command of batchd."""
    environ = {**os.environ, **({"BATCHD_SPOOL__ROOT": str(spool)} if spool else {})}
    return subprocess.run(
        [batchd(), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
        check=check,
    )


def until(look: Callable[[], Found | None], limit_s: float = LIMIT_S, what: str = "it") -> Found:
    """What `look` finds, asked twenty times a second."""
    ends_at = time.monotonic() + limit_s
    while time.monotonic() < ends_at:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come within {limit_s:g} s")


def request(custom_id: str, content: str = "hi", **changes: Any) -> dict[str, Any]:
    """One chat request for tiny-adder; `changes` replace fields of the envelope."""
    body = {
        "model": "tiny-adder",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 8,
    }
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}


def addition(a: int, b: int) -> dict[str, Any]:
    """A request whose answer follows from its custom_id."""
    return request(f"add-{a}-{b}", f"What is {a}+{b}?")


def jsonl(rows: list[Any]) -> bytes:
    """A batch file."""
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


class Daemon:
    """A running `batchd run` on a spool."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.spool = folder / "spool"
        self.log = folder / "daemon.log"
        self._config = folder / "batchd.yaml"
        self.settings = {
            "spool": {"root": str(self.spool), "min_free_bytes": 0},
            "inbox": {"settle_s": 0.3},
            "metrics": {"port": 0},
            "log": {"format": "json"},
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait_ready: bool = True) -> Daemon:
        """Start it, and wait until its engines are up."""
        self._config.write_text(yaml.safe_dump(self.settings))
        with open(self.log, "ab") as sink:
            offset = sink.tell()
            self._process = subprocess.Popen(
                [batchd(), "run", "--config", str(self._config)],
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

        def port() -> int | None:
            found = re.findall(r"http://127\.0\.0\.1:(\d+)/metrics", self.log.read_bytes()[offset:].decode())
            self._check_alive()
            return int(found[-1]) if found else None

        try:
            self.port = until(port, what="the metrics port")
            if wait_ready:
                until(self._is_ready, READY_LIMIT_S, "readiness")
        except BaseException:  # no test knows of it yet that would end it
            self.stop(signal.SIGKILL)
            raise
        return self

    def _is_ready(self) -> bool:
        self._check_alive()
        return self.get("/readyz")[0] == 200

    def _check_alive(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, f"batchd ended:\n{self.log.read_text()[-3000:]}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The daemon's process."""
        assert self._process is not None
        return self._process

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an HTTP answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 60.0) -> int:
        """Send a signal and wait for the end; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(limit_s)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines of one event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    # Files

    def drop(self, name: str, content: bytes) -> None:
        """Drop a file as pipelines should: rename within the inbox."""
        hidden = self.spool / "inbox" / f".{name}.tmp"
        hidden.write_bytes(content)
        hidden.rename(self.spool / "inbox" / name)

    def status(self, name: str) -> Any:
        """status.json as OpenAI's Batch (Any: each of its fields may be None); None before it is there."""
        try:
            return Batch.model_validate(
                orjson.loads((self.spool / "outbox" / name / "status.json").read_bytes())
            )
        except FileNotFoundError:
            return None

    def extra(self, name: str) -> dict[str, Any]:
        """What batchd adds to it."""
        tree = orjson.loads((self.spool / "outbox" / name / "status.json").read_bytes())
        extra: dict[str, Any] = tree["batchd"]
        return extra

    def ended(self, name: str, limit_s: float = LIMIT_S) -> Any:
        """The status of a batch once it is terminal."""

        def look() -> Any:
            self._check_alive()
            shown = self.status(name)
            return shown if shown and shown.status in TERMINAL else None

        return until(look, limit_s, f"the end of {name}")

    def lines(self, name: str, file: str = "output.jsonl") -> list[dict[str, Any]]:
        """The lines of a result file; none where it does not exist."""
        return rows(self.spool / "outbox" / name / file)


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file; none where it does not exist."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def answers(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What each custom_id was answered."""
    return {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}


def wrong_sums(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Answers that do not follow from their custom_id, add-A-B."""
    wrong = []
    for custom_id, answer in answers(rows).items():
        _, a, b = custom_id.split("-")
        if answer.strip() != str(int(a) + int(b)):
            wrong.append((custom_id, answer))
    return wrong
