"""A Ray cluster of several nodes on this one machine, started with `ray start` as on real machines.

Each node has a loopback address of its own. To try batchd on a cluster (`make demo-cluster`), and for tests:

    with Cluster() as cluster:
        cluster.add("spot-1", resources={"spot": 1})
        ...                                   # batchd run with cluster.environ
        cluster.kill("spot-1")                # as when a machine loses its power

The first node is the daemon's: it has no CPUs to give, so no engine comes to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

HEAD = "head"
START_LIMIT_S = 60.0
_OBJECT_STORE_BYTES = 100 << 20


class Cluster:
    """Nodes by name; each is a process with Ray's processes below it."""

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        """Start the head.

        Args:
            environ: for the processes of all nodes.
        """
        self._environ = environ or {}
        self._folder = Path(tempfile.mkdtemp(prefix="batchd-ray-", dir="/tmp"))  # paths of sockets are short
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts = 0
        self._port = _free_port()
        self._token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.start_head()

    @property
    def address(self) -> str:
        """For `ray.address`."""
        return f"127.0.0.1:{self._port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a daemon needs in its environment."""
        return {**self._token, "BATCHD_RAY__ADDRESS": self.address}

    def start_head(self) -> None:
        """Start the head, or start it again at the same address."""
        (self._folder / "ray_current_cluster").unlink(missing_ok=True)  # as `ray stop` does
        port = f"--port={self._port}"
        self._start(HEAD, "127.0.0.1", "--head", port, "--num-cpus=0", "--include-dashboard=false")

    def add(
        self, name: str, num_cpus: int = 2, resources: dict[str, float] | None = None, num_gpus: int = 0
    ) -> None:
        """Start a node that joins the head's cluster; Ray takes the number of GPUs on trust."""
        self._hosts += 1
        host = f"127.0.0.{self._hosts + 1}"
        named = f"--resources={json.dumps(resources or {})}"
        self._start(
            name, host, f"--address={self.address}", f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}", named
        )

    def _start(self, name: str, host: str, *arguments: str) -> None:
        log = self._folder / f"{name}.log"
        with open(log, "wb") as sink:
            node = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "ray"),
                    *("start", "--block", "--disable-usage-stats", "--include-log-monitor=false"),
                    *(f"--node-ip-address={host}", f"--temp-dir={self._folder}"),
                    *(f"--object-store-memory={_OBJECT_STORE_BYTES}", *arguments),
                ],
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                env={**os.environ, **self._environ, **self._token},
            )
        self._nodes[name] = node
        ends_at = time.monotonic() + START_LIMIT_S
        while b"Ray runtime started" not in log.read_bytes():
            if node.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(
                    f"the node {name} did not start:\n{log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """SIGKILL all processes of a node at once."""
        self.freeze(name)  # else one of them could start another meanwhile
        node = self._nodes.pop(name)
        _signal_tree(node.pid, signal.SIGKILL)
        node.wait()

    def freeze(self, name: str) -> None:
        """Stop all processes of a node, as a network does that is cut: its peers hear nothing."""
        _signal_tree(self._nodes[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen node go on."""
        _signal_tree(self._nodes[name].pid, signal.SIGCONT)

    @property
    def names(self) -> set[str]:
        """The nodes that are there."""
        return set(self._nodes)

    def pids(self, name: str) -> list[int]:
        """The processes of a node."""
        return _tree(self._nodes[name].pid)

    def close(self) -> None:
        """Kill all nodes, the head last."""
        for name in reversed(list(self._nodes)):
            self.kill(name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tree(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _signal_tree(pid: int, number: int) -> None:
    for each in _tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)


def main() -> None:
    """Keep a cluster of three nodes until standard input is closed; says what a daemon needs."""
    with Cluster() as cluster:
        for number in (1, 2):
            cluster.add(f"node-{number}")
        said: dict[str, Any] = cluster.environ
        print("\n".join(f"export {name}={value}" for name, value in said.items()), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
