"""The daemon's only door to the network: /metrics for Prometheus, /healthz and /readyz for probes.

Health carries the loop's state over to the server's threads. The server never waits for the loop and the loop
never for the server. At most MAX_CONNECTIONS are served at a time, each for at most CONNECTION_S, so a slow
client holds up nobody for long; nothing is read from a request but its path. Raises
CannotListen when the address cannot be had; after that a failing request costs a log line, nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest

from config.settings import MetricsSettings
from daemon import logs

MAX_CONNECTIONS = 32
CONNECTION_S = 10.0
STOP_S = 5.0
POLL_S = 0.2  # how often it looks whether to stop and whom to cut off
_PLAIN = "text/plain; charset=utf-8"
_INDEX = b"""batchd
/metrics  for Prometheus
/healthz  200 while the daemon's loop runs
/readyz   200 while new batches are taken and run
"""

_log = logs.get()


class CannotListen(Exception):
    """The address cannot be had; the message is one line and says which setting to change."""


class Health:
    """What the loop says of itself. Safe from any thread."""

    def __init__(self, stale_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin as alive and not ready.

        Args:
            stale_s: without a completed step for this long the loop counts as stuck; longer than its longest
                wait (inbox.rescan_s) and than start-up recovery.
            clock: monotonic seconds.
        """
        self._stale_s = stale_s
        self._clock = clock
        self._beat_at = clock()
        self._reasons: tuple[str, ...] = ("starting",)

    def beat(self, now: float | None = None) -> None:
        """Note that a step was completed.

        Args:
            now: monotonic seconds, on the clock given at the start; None is now.
        """
        self._beat_at = self._clock() if now is None else now

    def set_not_ready(self, reasons: Iterable[str]) -> None:
        """Say why the daemon is not ready, a line each, as `engine starting: tiny-adder`; none: ready."""
        self._reasons = tuple(reasons)

    def stuck(self) -> str | None:
        """Why the loop counts as stuck, or None."""
        age_s = self._clock() - self._beat_at
        if age_s <= self._stale_s:
            return None
        return f"the loop completed no step for {age_s:.0f} s (limit {self._stale_s:g} s)"

    def not_ready(self) -> tuple[str, ...]:
        """All reasons why the daemon is not ready."""
        stuck = self.stuck()
        return (*((stuck,) if stuck else ()), *self._reasons)


class Server:
    """Serves in threads of its own from start() to stop()."""

    def __init__(self, settings: MetricsSettings, registry: CollectorRegistry, health: Health) -> None:
        self._settings = settings
        self._registry = registry
        self._health = health
        self._server: _Listener | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on; the port is the real one where the settings say 0."""
        if self._server is None:
            return self._settings.host, self._settings.port
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Listen and serve.

        Raises:
            CannotListen: the address is taken, unknown or forbidden.
        """
        host, port = self._settings.host, self._settings.port
        try:
            self._server = _Listener(host, port, self._answer)
        except OSError as error:
            raise CannotListen(_explain(error, host, port)) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the door; waits at most STOP_S. Requests being answered are cut off."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        # shutdown() waits without a limit for the serving thread.
        threading.Thread(target=server.shutdown, name="http-stop", daemon=True).start()
        self._thread.join(STOP_S)
        server.server_close()
        server.cut_off(older_than_s=0)

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            # Never as OpenMetrics: prometheus_client 0.26.0 writes a histogram with negative buckets
            # (sla_margin_seconds) in a way that makes its own parser refuse the whole answer.
            return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)
        if path == "/healthz":
            stuck = self._health.stuck()
            return (503, _PLAIN, _lines([stuck])) if stuck else (200, _PLAIN, b"ok\n")
        if path == "/readyz":
            reasons = self._health.not_ready()
            return (503, _PLAIN, _lines(reasons)) if reasons else (200, _PLAIN, b"ok\n")
        if path == "/":
            return 200, _PLAIN, _INDEX
        return 404, _PLAIN, b"not found; there are /metrics, /healthz and /readyz\n"


def _lines(reasons: Iterable[str]) -> bytes:
    return "".join(f"{logs.one_line(reason)}\n" for reason in reasons).encode()


def _explain(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"the host {host!r} is unknown: set metrics.host"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: set metrics.port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: set metrics.host"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not allowed to this user: set metrics.port to 1024 or higher"
    return (
        f"cannot listen on {host} port {port}: {error.strerror or error}: set metrics.host and metrics.port"
    )


Answer = Callable[[str], tuple[int, str, bytes]]


class _Listener(ThreadingMixIn, TCPServer):
    """One thread for each connection, a bounded number of them, each for a bounded time.

    TCPServer and not HTTPServer: that one asks the name service who we are, which can take a minute.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True  # a restart need not wait for the connections of the last one to be forgotten
    request_queue_size = 64

    def __init__(self, host: str, port: int, answer: Answer) -> None:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self.answer = answer
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # since when, monotonic seconds
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]  # (host, port) for IPv4 and IPv6

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse a connection that is one too many; it is closed without an answer."""
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                return False
            self._open[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by serve_forever() after each connection, and every POLL_S."""
        self.cut_off(older_than_s=CONNECTION_S)

    def cut_off(self, older_than_s: float) -> None:
        """End connections, also those whose client sends a byte now and then to stay."""
        before = time.monotonic() - older_than_s
        with self._lock:
            for connection, since in self._open.items():
                if since <= before:
                    with contextlib.suppress(OSError):  # the client was faster
                        connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The default prints a traceback; a client that went away is no news."""
        _log.debug("http_connection_failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One request for each connection."""

    server: _Listener
    timeout = CONNECTION_S
    server_version = "batchd"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            status, content_type, body = self.server.answer(self.path.partition("?")[0])
        except Exception:  # noqa: BLE001 (a mistake of ours in one answer must not look like a lost connection)
            _log.exception("http_answer_failed")
            status, content_type, body = 500, _PLAIN, b"internal error, see the log\n"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Say nothing: a scrape each 15 s is no news."""
