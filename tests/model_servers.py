"""Real OpenAI-compatible servers as processes of their own, for tests of `kind: openai`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from tests import daemons

KEY = "sk-of-a-real-server"


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ModelServer:
    """A server that is started by a command; it keeps its port."""

    def __init__(self, command: list[str], log: Path, **environ: str) -> None:
        """Set it up.

        Args:
            command: without host, port and key, which every server takes under the same names or nearly so.
            log: of what it prints.
            environ: added to the environment.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        self._environ = {**os.environ, **environ}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, limit_s: float) -> None:
        """Start it and wait until it lists its models."""
        with open(self._log, "ab") as sink:
            self._process = subprocess.Popen(
                self._command, stdout=sink, stderr=sink, env=self._environ, start_new_session=True
            )
        daemons.until(self._is_ready, limit_s, f"the server of {self._command[:3]}")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended:\n{self._log.read_text()[-3000:]}"
        headers = {"Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{self.url}/v1/models", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def kill(self) -> None:
        """End it at once, with all processes that it started."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
