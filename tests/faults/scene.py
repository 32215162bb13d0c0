"""Where rounds take place: one spool, the daemons that serve it, the Rays they use, and what was dropped.

A scene starts and stops processes and waits for the end of files; what goes wrong in between is the business
of injections.py. Everything that it starts carries a mark, and `close` ends what still has it.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spool import create
from tests import daemons
from tests.faults import light_daemon, processes, traffic
from tests.faults.judgement import Reader
from tests.faults.nodes import READY_LIMIT_S, Engine, Node, RayHost

END_LIMIT_S = 120.0
# What a broken daemon has lost never ends.
BROKEN_LIMIT_S = 8.0
# vLLM starts in 20 s on two idle cores, and took 143 s beside other work (measured 2026-11-23).
VLLM_LIMIT_S = 400.0
_LIMITS_S = {"broken": BROKEN_LIMIT_S, "vllm": VLLM_LIMIT_S}
LEASE: dict[str, float] = {"heartbeat_s": 0.5, "expire_s": 3.0}


class Scene:
    """A spool and its daemons.

    Attributes:
        files: what was dropped in the round that is under way.
        cancelled: names of those whose user asked for a cancel.
        notes: of the round that is under way.
        excused: what a daemon may have said that ended by itself.
        problems: likewise, beyond what the oracle looks at.
        has_struck: whether something was under way when the fault came.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        rng: random.Random,
        *,
        nodes: int = 1,
        hosts: list[RayHost] | None = None,
        settings: dict[str, Any] | None = None,
        mark: str = "",
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.engine: Engine = engine
        self.rng = rng
        self.spool = create.create(folder / "spool").root
        self.clock = folder / "clock"
        self.hosts = hosts or []
        self.files: list[traffic.File] = []
        self.cancelled: set[str] = set()
        self.notes: list[str] = []
        self._over: set[traffic.File] = set()
        self.problems: list[str] = []
        self.excused: set[str] = set()
        self.has_struck = False
        self.expected = traffic.added if engine == "vllm" else traffic.echoed
        self._mark = mark or secrets.token_hex(8)
        self._number = 0
        self.nodes = [self._make_node(n, settings or {}) for n in range(nodes)]
        self.reader = Reader(self.spool)

    def _make_node(self, number: int, settings: dict[str, Any]) -> Node:
        latency_s = self.rng.choice([0.1, 0.4] if self.engine in ("light", "broken") else [0.3, 1.0])
        model: dict[str, Any] = {"name": traffic.MODEL, "kind": "echo", "latency_s": latency_s}
        if self.engine == "vllm":
            source = str(daemons.REPOSITORY / "examples/tiny-adder")
            arguments = {"max_model_len": 512, "enforce_eager": True}
            model = {"name": traffic.MODEL, "kind": "vllm", "source": source, "engine_args": arguments}
        chosen: dict[str, Any] = {
            "models": [model],
            "inbox": {"settle_s": 0.1, "rescan_s": 2},
            "lease": LEASE,
            "log": {"format": "json", "level": "info"},
            **settings,
        }
        environ = {processes.MARK: self._mark, light_daemon.CLOCK: str(self.clock)}
        if self.engine == "ray":
            host = self.hosts[number % len(self.hosts)]
            chosen["ray"] = {"address": host.address}
            environ = {**environ, **host.environ, processes.MARK: self._mark}
        return Node(self.folder / f"d{number}", self.spool, self.engine, chosen, environ)

    def start_all(self) -> None:
        """Start every daemon that does not run, and wait until all are ready."""
        fresh = [node for node in self.nodes if not node.is_alive]
        for node in fresh:
            node.start()
        for node in fresh:
            if not node.until_logged("engine_ready", READY_LIMIT_S):
                if "while this one started" in node.said:  # two starts met; the daemon said what to do
                    self.notes.append("start refused once")
                    node.start(wait_ready=True)
                else:
                    raise AssertionError(f"a daemon did not start:\n{node.said[-2000:]}")

    def begin_round(self) -> None:
        """Forget the round before; a daemon that slept in it may still find out only now."""
        self.files, self.cancelled = [], set()
        self.notes, self.problems, self.has_struck = [], [], False

    # Files

    def drop(self, count: int, *, longest: int = 600) -> list[traffic.File]:
        """Drop files, most as pipelines do (a rename), some as people do (written in place)."""
        fresh = []
        for _ in range(count):
            self._number += 1
            file = traffic.make(self.rng, f"f{self._number:04d}.jsonl", longest=longest)
            self._put(file)
            fresh.append(file)
        self.files += fresh
        return fresh

    def _put(self, file: traffic.File) -> None:
        inbox = self.spool / "inbox"
        if file.sidecar:
            (inbox / f"{file.stem}.batch.yaml").write_text(file.sidecar)
        if self.rng.random() < 0.2:
            (inbox / file.name).write_bytes(file.content)
            return
        hidden = inbox / f".{file.name}.tmp"
        hidden.write_bytes(file.content)
        hidden.rename(inbox / file.name)

    def status_of(self, file: traffic.File) -> dict[str, Any] | None:
        """What status.json says; None before it is there."""
        try:
            tree: dict[str, Any] = json.loads(
                (self.spool / "outbox" / file.stem / "status.json").read_bytes()
            )
        except (OSError, ValueError):
            return None
        return tree

    def is_over(self, file: traffic.File) -> bool:
        """Whether it has ended."""
        if file not in self._over:
            status = self.status_of(file)
            if status is None or status["status"] not in daemons.TERMINAL:
                return False
            self._over.add(file)
        return True

    def held(self) -> Iterator[Path]:
        """Folders of batches in work/."""
        return (self.spool / "work").glob("*/batch_*")

    def cancel(self, file: traffic.File) -> None:
        """Touch its cancel file, if it is shown and has not ended."""
        folder = self.spool / "outbox" / file.stem
        with contextlib.suppress(OSError):
            (folder / "cancel").touch()
            if self.is_over(file):
                (folder / "cancel").unlink(missing_ok=True)  # we came too late: no daemon looks any more
                self.notes.append("cancel after the end")
                return
            self.cancelled.add(file.name)

    def strike(self) -> None:
        """The fault comes now: note whether there is anything that it could hurt."""
        self.has_struck = self.has_struck or not all(map(self.is_over, self.files))

    # Waits

    def until(self, look: Callable[[], Any], limit_s: float) -> bool:
        """Look until it holds."""
        ends_at = time.monotonic() + limit_s
        while time.monotonic() < ends_at:
            if look():
                return True
            time.sleep(0.01)
        return False

    def until_over(self) -> bool:
        """Wait until every file of the round has ended and nothing is held; restart daemons that end."""
        left = list(self.files)
        ends_at = time.monotonic() + _LIMITS_S.get(self.engine, END_LIMIT_S)
        while time.monotonic() < ends_at:
            left = [file for file in left if not self.is_over(file)]
            if not left and next(self.held(), None) is None:
                return True
            self.look_after_nodes()
            time.sleep(0.02)
        return False

    def look_after_nodes(self) -> None:
        """A daemon that has ended without being told to is a mistake of its own; it is started again."""
        for node in self.nodes:
            if node.is_alive:
                continue
            code = node.process.poll()
            if "while this one started" in node.said:
                self.notes.append("start refused once")
            elif reasons := [text for text in self.excused if text in node.said]:
                self.notes.append(f"ended: {reasons[0]}")
            else:
                self.problems.append(f"a daemon ended with {code}: {node.said.strip()[-400:]}")
            node.start()

    def close(self) -> None:
        """End everything."""
        self.reader.stop()
        for node in self.nodes:
            if node.is_alive:
                node.signal(signal.SIGCONT)
                if self.engine in ("light", "broken"):
                    node.kill()
                else:
                    processes.kill_tree(node.process.pid)
                    node.process.wait()
        for pid in processes.marked(self._mark):
            processes.send(pid, signal.SIGKILL)
