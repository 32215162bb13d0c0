"""What batchd is compared with: `vllm run-batch`, Ray Data's own LLM processor, and the bare engine.

Each is a process of its own with a log of its own. The bare engine is the limit: vLLM's handlers in one
process, the whole list at once, no data path around them; it stays warm between files. The other two are
started for each file, as their users have to.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.batchd import READY_LIMIT_S, STOP_LIMIT_S, WORK_LIMIT_S, Run
from benchmarks.served import ROOT, Served
from tests.faults import processes

# What run-batch logs when its engine has started and it opens the file.
_RUN_BATCH_READS = b"Reading batch from"


def run_batch(served: Served, file: Path, results: Path, log: Path) -> Run:
    """`vllm run-batch`, from its start to its end.

    Raises:
        RuntimeError: it failed or took too long.
    """
    # What batchd sets where nothing else is said, so that it does no less work than this does.
    same = ["--disable-log-stats", "--enable-prompt-tokens-details"]
    program = ["-m", "vllm.entrypoints.openai.run_batch", "-i", str(file), "-o", str(results)]
    began = time.monotonic()
    process = _start([*program, *served.flags(), *same], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    stamps: dict[str, float] = {}
    reader = threading.Thread(target=_copy, args=(process, log, stamps), daemon=True)
    reader.start()
    code = _wait(process, READY_LIMIT_S + WORK_LIMIT_S)
    ended = time.monotonic()
    reader.join(STOP_LIMIT_S)
    if code != 0 or "reads" not in stamps:
        raise RuntimeError(f"vllm run-batch ended with {code}, see {log}")
    written = results.stat().st_mtime - time.time() + time.monotonic()  # of the wall clock, as the other
    return Run(written - stamps["reads"], ended - began, results)


def _copy(process: subprocess.Popen[bytes], log: Path, stamps: dict[str, float]) -> None:
    """Write what a process says to its log, and note when it opens the file."""
    assert process.stdout is not None
    with open(log, "ab") as sink:
        for line in process.stdout:
            if _RUN_BATCH_READS in line:
                stamps.setdefault("reads", time.monotonic())
            sink.write(line)


def ray_data(served: Served, file: Path, results: Path, log: Path) -> tuple[float, float]:
    """Ray Data's processor, from its start to its end.

    Returns:
        Seconds of the whole process; lines per second of the middle 80 %, since no clock can be read when its
        engine has started.

    Raises:
        RuntimeError: it failed or took too long.
    """
    model = {"source": served.source, "engine_args": served.engine_args}
    job = orjson.dumps({**model, "file": str(file), "results": str(results)})
    began = time.monotonic()
    with open(log, "ab") as sink:
        process = _start(["-m", "benchmarks.ray_data_llm", job.decode()], stdout=subprocess.PIPE, stderr=sink)
    code = _wait(process, READY_LIMIT_S + WORK_LIMIT_S)
    whole_s = time.monotonic() - began
    assert process.stdout is not None
    said = process.stdout.read()
    if code != 0 or not said:
        raise RuntimeError(f"Ray Data's processor ended with {code}, see {log}")
    return whole_s, float(orjson.loads(said)["lines_per_s"])


class BareEngine:
    """vLLM's own handlers in a warm process; `start`, then files, then `stop`."""

    def __init__(self, served: Served, folder: Path, log: Path) -> None:
        folder.mkdir(parents=True)
        self._served = served
        self._folder = folder
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.start_s = 0.0

    def start(self, warm_up: Path) -> None:
        """Start it and have it answer something."""
        model = orjson.dumps(self._served.settings()).decode()
        began = time.monotonic()
        with open(self._log, "ab") as sink:
            self._process = _start(
                ["-m", "benchmarks.bare_engine", model],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
            )
        self._reply(READY_LIMIT_S)
        self.start_s = time.monotonic() - began
        self.answer(warm_up, "warm-up")

    def answer(self, file: Path, name: str) -> Run:
        """Answer all requests of a file at once, and write the results when the last one is there."""
        assert self._process is not None
        assert self._process.stdin is not None
        results = self._folder / f"{name}.jsonl"
        self._process.stdin.write(orjson.dumps({"file": str(file), "results": str(results)}) + b"\n")
        self._process.stdin.flush()
        seconds = float(self._reply(WORK_LIMIT_S)["seconds"])
        return Run(seconds, self.start_s + seconds, results)

    def stop(self) -> None:
        """End it: it ends by itself when nobody can ask any more."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            _wait(self._process, STOP_LIMIT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _reply(self, limit_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            why = "said nothing in time" if not ready else f"ended with {self._process.wait(STOP_LIMIT_S)}"
            raise RuntimeError(f"the bare engine {why}, see {self._log}")
        reply: dict[str, Any] = orjson.loads(line)
        return reply


def _start(arguments: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start one of our Python's modules, as the head of a group of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        **streams,
    )


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """Its exit code. At the limit, or when we are told to end, it and all below it are killed."""
    try:
        code = process.wait(limit_s)
    except BaseException as error:
        processes.kill_tree(process.pid)
        code = process.wait(STOP_LIMIT_S)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    for each in processes.all_processes().values():
        if _is_of(each.pid, process.pid):
            processes.send(each.pid, signal.SIGKILL)
    return code


def _is_of(pid: int, session: int) -> bool:
    """Whether a process belongs to a session."""
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False
