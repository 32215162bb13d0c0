"""The processes of a scene: daemons that may be killed and started again, and a Ray that they share."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import yaml

from tests import daemons
from tests.faults import processes

# light: stand-ins for Ray. ray: the echo engine on a Ray that the harness keeps. local: the same, on a Ray of
# the daemon's own. vllm: tiny-adder on vLLM, on a Ray of the daemon's own. broken: light, with a bad claim.
# turns: models of the test's choice, whose turns are short.
Engine = Literal["light", "ray", "local", "vllm", "broken", "turns"]

READY_LIMIT_S = 400.0
_MODULES = {
    "light": "tests.faults.light_daemon",
    "broken": "tests.faults.broken_daemon",
    "turns": "tests.faults.quick_turns",
}


class RayHost:
    """A Ray in a process of its own, to which daemons connect by address."""

    def __init__(self, mark: str) -> None:
        self.environ = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            processes.MARK: mark,
            "PYTHONPATH": str(daemons.REPOSITORY),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ray_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.environ},
            cwd=daemons.REPOSITORY,
            start_new_session=True,
        )
        assert self._process.stdout
        said = json.loads(self._process.stdout.readline())
        self.address: str = said["address"]
        self.raylet: int = said["raylet"]

    def close(self) -> None:
        """End it and all of its processes."""
        below = processes.descendants(self._process.pid)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        for process in below:
            processes.send(process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class Node(daemons.Daemon):
    """One daemon of a scene; it may be killed, stopped and started again."""

    def __init__(
        self, folder: Path, spool: Path, engine: Engine, settings: dict[str, Any], environ: dict[str, str]
    ) -> None:
        folder.mkdir()
        super().__init__(folder, settings)
        self.spool = spool
        self.settings["spool"] = {"root": str(spool), "min_free_bytes": 0}
        self.engine = engine
        self.environ = environ
        self.begins_at = 0

    def start(self, wait_ready: bool = False, environ: dict[str, str] | None = None) -> Node:
        """Start the process; `environ` is for this start alone."""
        self._config.write_text(yaml.safe_dump(self.settings))
        module = _MODULES.get(self.engine)
        program = [sys.executable, "-m", module] if module else [daemons.batchd()]
        with open(self.log, "ab") as sink:
            self.begins_at = sink.tell()
            self._process = subprocess.Popen(
                [*program, "run", "--config", str(self._config)],
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                cwd=daemons.REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(daemons.REPOSITORY), **self.environ, **(environ or {})},
            )
        if wait_ready:
            self.until_logged("engine_ready", READY_LIMIT_S)
        return self

    @property
    def is_alive(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """What it has logged since it was started last."""
        return self.log.read_bytes()[self.begins_at :].decode(errors="replace")

    def until_logged(self, event: str, limit_s: float = 30.0) -> bool:
        """Wait for an event of this start, or for its end; whether the event came."""
        ends_at = time.monotonic() + limit_s
        while time.monotonic() < ends_at and self.is_alive:
            if f'"{event}"' in self.said:
                return True
            time.sleep(0.02)
        return f'"{event}"' in self.said

    def kill(self) -> None:
        """kill -9, of the daemon alone."""
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        """Any other signal."""
        self.process.send_signal(number)
