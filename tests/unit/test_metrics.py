"""Metrics as Prometheus reads them, and the three addresses that serve them."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from config.settings import MetricsSettings
from daemon import http, metrics
from scheduler.assign import Reason, WaitReason
from spool.record import Status

# Design, section 8: name -> its labels. Scripts and dashboards outside this repository use them.
CONTRACT = {
    "batchd_batches_total": {"status"},
    "batchd_batches_active": {"status"},
    "batchd_queue_depth": set(),
    "batchd_queue_wait_seconds": set(),
    "batchd_batch_duration_seconds": {"status"},
    "batchd_requests_total": {"model", "outcome"},
    "batchd_request_duration_seconds": {"model"},
    "batchd_requests_shared_total": {"model"},
    "batchd_tokens_total": {"model", "kind"},
    "batchd_inflight_requests": {"model"},
    "batchd_engine_up": {"model"},
    "batchd_engine_restarts_total": {"model"},
    "batchd_engine_start_seconds": {"model"},
    "batchd_engine_replicas": {"model"},
    "batchd_engine_replicas_wanted": {"model"},
    "batchd_engine_swaps_total": {"model"},
    "batchd_pool_capacity": {"pool"},
    "batchd_pool_available": {"pool"},
    "batchd_pool_assignments_total": {"pool", "reason"},
    "batchd_pool_preemptions_total": {"pool"},
    "batchd_sla_batches_total": {"met"},
    "batchd_sla_margin_seconds": set(),
    "batchd_sla_at_risk": set(),
    "batchd_rejected_lines_total": {"code"},
    "batchd_ignored_drops_total": {"reason"},
    "batchd_resumed_batches_total": set(),
    "batchd_adopted_batches_total": set(),
    "batchd_spool_free_bytes": set(),
    "batchd_spool_min_free_bytes": set(),
    "batchd_last_scan_timestamp_seconds": set(),
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def measured(registry: CollectorRegistry) -> metrics.Metrics:
    return metrics.Metrics(registry, ["tiny-adder"])


def _families(registry: CollectorRegistry) -> dict[str, Metric]:
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    for family in _families(registry).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def test_names_and_labels_are_those_of_the_contract(
    registry: CollectorRegistry, measured: metrics.Metrics
) -> None:
    """Each metric of the design is there under its name, with its labels and a help text, from the start."""
    measured.engine_started("tiny-adder", 22.1)  # the one without a value before its first event
    seen: dict[str, set[str]] = {}
    for family in _families(registry).values():
        assert family.documentation
        for sample in family.samples:
            seen.setdefault(sample.name.removesuffix("_count"), set()).update(sample.labels)
    assert {name: seen.get(name) for name in CONTRACT} == CONTRACT


def test_known_label_values_exist_at_zero_from_the_start(
    registry: CollectorRegistry, measured: metrics.Metrics
) -> None:
    """rate() and increase() need the sample before the first event."""
    assert _value(registry, "batchd_batches_total", status="failed") == 0
    assert _value(registry, "batchd_batches_active", status="in_progress") == 0
    assert _value(registry, "batchd_requests_total", model="tiny-adder", outcome="expired") == 0
    assert _value(registry, "batchd_tokens_total", model="tiny-adder", kind="reasoning") == 0
    assert _value(registry, "batchd_engine_up", model="tiny-adder") == 0
    assert _value(registry, "batchd_pool_preemptions_total", pool="spot") == 0
    assert _value(registry, "batchd_pool_assignments_total", pool="dedicated", reason="deadline_at_risk") == 0
    assert _value(registry, "batchd_sla_batches_total", met="false") == 0
    assert _value(registry, "batchd_rejected_lines_total", code="duplicate_custom_id") == 0
    assert _value(registry, "batchd_paused", reason="pause_file") == 0


def test_what_is_counted_can_be_read_back(registry: CollectorRegistry, measured: metrics.Metrics) -> None:
    """Each method moves its own series."""
    measured.batch_ended(Status.COMPLETED, 61)
    measured.deadline_judged(is_met=False, margin_s=-30)
    measured.set_active({Status.IN_PROGRESS: 2})
    measured.set_held(1)
    measured.batch_resumed()
    measured.batch_adopted()
    measured.requests_ended("tiny-adder", metrics.Outcome.COMPLETED, 128)
    measured.requests_took("tiny-adder", [0.02])
    measured.tokens_used("tiny-adder", metrics.TokenKind.OUTPUT, 512)
    measured.set_inflight("tiny-adder", 7)
    measured.engine_started("tiny-adder", 22.5)
    measured.engine_restarted("tiny-adder")
    measured.set_engine_replicas("tiny-adder", 2)
    measured.set_engine_replicas_wanted("tiny-adder", 3)
    measured.engine_swapped("tiny-adder")
    measured.lines_rejected("invalid_url", 3)
    measured.set_queue(4, 1, {WaitReason.NO_CAPACITY: 4})
    measured.queue_waited(3)
    measured.set_pool("spot", 2, 1)
    measured.pool_assigned("spot", Reason.SPOT_FIRST)
    measured.pool_preempted("spot")
    measured.drop_ignored("fifo")
    measured.set_free_bytes(10**12, 10**9)
    measured.scanned(1.7e9, is_complete=True)
    measured.scanned(1.8e9, is_complete=False)
    measured.set_paused([metrics.Pause.PAUSE_FILE])
    measured.set_watch_mode("polling")
    measured.step_took(0.01)
    for name, labels, value in [
        ("batches_total", {"status": "completed"}, 1),
        ("batch_duration_seconds_sum", {"status": "completed"}, 61),
        ("sla_batches_total", {"met": "false"}, 1),
        ("sla_margin_seconds_bucket", {"le": "-60.0"}, 0),
        ("sla_margin_seconds_bucket", {"le": "0.0"}, 1),
        ("batches_active", {"status": "in_progress"}, 2),
        ("batches_active", {"status": "finalizing"}, 0),
        ("batches_held", {}, 1),
        ("resumed_batches_total", {}, 1),
        ("adopted_batches_total", {}, 1),
        ("requests_total", {"model": "tiny-adder", "outcome": "completed"}, 128),
        ("request_duration_seconds_bucket", {"model": "tiny-adder", "le": "0.025"}, 1),
        ("tokens_total", {"model": "tiny-adder", "kind": "output"}, 512),
        ("inflight_requests", {"model": "tiny-adder"}, 7),
        ("engine_start_seconds", {"model": "tiny-adder"}, 22.5),
        ("engine_up", {"model": "tiny-adder"}, 1),
        ("engine_restarts_total", {"model": "tiny-adder"}, 1),
        ("engine_replicas", {"model": "tiny-adder"}, 2),
        ("engine_replicas_wanted", {"model": "tiny-adder"}, 3),
        ("engine_swaps_total", {"model": "tiny-adder"}, 1),
        ("rejected_lines_total", {"code": "invalid_url"}, 3),
        ("queue_depth", {}, 4),
        ("sla_at_risk", {}, 1),
        ("queue_waiting", {"reason": "no_capacity"}, 4),
        ("queue_waiting", {"reason": "engine_starting"}, 0),
        ("queue_wait_seconds_sum", {}, 3),
        ("pool_capacity", {"pool": "spot"}, 2),
        ("pool_available", {"pool": "spot"}, 1),
        ("pool_assignments_total", {"pool": "spot", "reason": "spot_first"}, 1),
        ("pool_preemptions_total", {"pool": "spot"}, 1),
        ("ignored_drops_total", {"reason": "fifo"}, 1),
        ("spool_free_bytes", {}, 1e12),
        ("spool_min_free_bytes", {}, 1e9),
        ("last_scan_timestamp_seconds", {}, 1.7e9),
        ("scan_errors_total", {}, 1),
        ("paused", {"reason": "pause_file"}, 1),
        ("paused", {"reason": "stopping"}, 0),
        ("watch_mode", {"mode": "polling"}, 1),
        ("watch_mode", {"mode": "inotify"}, 0),
        ("loop_step_seconds_count", {}, 1),
    ]:
        assert _value(registry, f"batchd_{name}", **labels) == value, name


def test_unknown_label_values_count_as_other(registry: CollectorRegistry, measured: metrics.Metrics) -> None:
    """Whatever users or other packages come up with, the number of series stays the same."""
    for number in range(100):
        measured.requests_ended(f"model-{number}", metrics.Outcome.FAILED)
        measured.lines_rejected(f"code-{number}")
        measured.drop_ignored(f"/inbox/{number}.jsonl")
    assert _value(registry, "batchd_requests_total", model="other", outcome="failed") == 100
    assert _value(registry, "batchd_rejected_lines_total", code="other") == 100
    assert _value(registry, "batchd_ignored_drops_total", reason="other") == 100
    assert b"-99" not in generate_latest(registry)


def test_build_info_names_versions(registry: CollectorRegistry, measured: metrics.Metrics) -> None:
    """Without importing what it names."""
    (sample,) = _families(registry)["batchd_build_info"].samples
    assert sample.value == 1
    assert {"version", "python"} <= sample.labels.keys()


def test_counters_have_no_created_series(registry: CollectorRegistry, measured: metrics.Metrics) -> None:
    """They would double the number of series for nothing."""
    assert b"_created" not in generate_latest(registry)


# HTTP


class Clock:
    """Monotonic seconds that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> http.Health:
    return http.Health(stale_s=60, clock=clock)


@pytest.fixture
def server(
    registry: CollectorRegistry, measured: metrics.Metrics, health: http.Health
) -> Iterator[http.Server]:
    made = http.Server(MetricsSettings(port=0), registry, health)
    made.start()
    yield made
    made.stop()


def _get(server: http.Server, path: str, **headers: str) -> tuple[int, str, str]:
    host, port = server.address
    request = urllib.request.Request(f"http://{host}:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_are_served_as_plain_text_whatever_is_asked_for(server: http.Server) -> None:
    """Prometheus asks for OpenMetrics first; ours would be invalid because of the negative buckets."""
    for accept in ("*/*", "application/openmetrics-text; version=1.0.0, text/plain; version=0.0.4; q=0.2"):
        status, kind, text = _get(server, "/metrics?x=1", Accept=accept)
        assert status == 200
        assert kind.startswith("text/plain; version=0.0.4")
        assert "batchd_queue_depth" in {family.name for family in text_string_to_metric_families(text)}


def test_healthz_follows_the_loop(server: http.Server, health: http.Health, clock: Clock) -> None:
    """It is well while steps complete, and says for how long none did."""
    assert _get(server, "/healthz")[::2] == (200, "ok\n")
    clock.now = 61
    status, _, text = _get(server, "/healthz")
    assert status == 503
    assert text == "the loop completed no step for 61 s (limit 60 s)\n"
    health.beat()
    assert _get(server, "/healthz")[0] == 200
    health.beat(now=0)
    assert _get(server, "/healthz")[0] == 503


def test_readyz_gives_one_line_for_each_reason(
    server: http.Server, health: http.Health, clock: Clock
) -> None:
    """Not ready at first, ready without reasons, never ready while the loop is stuck."""
    assert _get(server, "/readyz")[::2] == (503, "starting\n")
    health.set_not_ready(["engine starting: tiny-adder", "disk nearly\nfull"])
    assert _get(server, "/readyz")[::2] == (503, "engine starting: tiny-adder\ndisk nearly\\nfull\n")
    health.set_not_ready([])
    assert _get(server, "/readyz")[::2] == (200, "ok\n")
    clock.now = 100
    status, _, text = _get(server, "/readyz")
    assert status == 503
    assert "no step" in text


def test_other_paths_say_what_there_is(server: http.Server) -> None:
    """The root lists the three addresses; anything else is not found."""
    for path, expected in (("/", 200), ("/metrics/", 404), ("/favicon.ico", 404)):
        status, _, text = _get(server, path)
        assert status == expected
        assert all(name in text for name in ("/metrics", "/healthz", "/readyz"))


def test_head_has_no_body(server: http.Server) -> None:
    """Some probes ask with HEAD."""
    with socket.create_connection(server.address, timeout=10) as client:
        client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "127.0.0.1"}, r"port \d+ on 127.0.0.1 is in use: set metrics.port"),
        ({"host": "192.0.2.1"}, "192.0.2.1 is no address of this machine: set metrics.host"),
        ({"host": "no such host"}, "the host 'no such host' is unknown: set metrics.host"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_clear_line(
    server: http.Server, registry: CollectorRegistry, health: http.Health, settings: Any, message: str
) -> None:
    """The line names the setting to change."""
    second = http.Server(MetricsSettings(port=server.address[1], **settings), registry, health)
    with pytest.raises(http.CannotListen, match=message):
        second.start()
    second.stop()


def test_a_slow_client_holds_up_nobody(
    server: http.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Silent connections and ones that drip a byte now and then are cut off; others are served meanwhile."""
    monkeypatch.setattr(http, "CONNECTION_S", 1.0)
    began = time.monotonic()  # here: on a busy machine the first may be cut off before the last is there
    # All places at once: one that was taken for a request is given back a moment after its answer.
    clients = [socket.create_connection(server.address, timeout=10) for _ in range(http.MAX_CONNECTIONS)]
    try:
        clients[0].sendall(b"GET /metrics HTTP/1.0\r\n")
        while time.monotonic() < began + 20:
            try:
                clients[0].sendall(b"X")
                if _get(server, "/healthz")[0] == 200:
                    break
            except (OSError, urllib.error.URLError):
                pass  # no place is free yet, or the dripping one is cut off
            time.sleep(0.05)
        assert 0.5 < time.monotonic() - began < 20
    finally:
        for client in clients:
            client.close()
    assert capsys.readouterr().err == ""


def test_a_failing_collector_is_an_answer_and_a_log_line(
    server: http.Server, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of ours shows as 500, and the server goes on."""

    class Broken:
        def collect(self) -> Any:
            raise RuntimeError("broken")

        def describe(self) -> list[Any]:
            return []

    registry.register(Broken())
    assert _get(server, "/metrics")[0] == 500
    assert _get(server, "/healthz")[0] == 200
    assert "http_answer_failed" in caplog.text


def test_stopping_is_quick_frees_the_port_and_cuts_off(
    registry: CollectorRegistry, measured: metrics.Metrics, health: http.Health
) -> None:
    """Also while clients hang, also twice, also before a start; the next start can have the port."""
    for _ in range(3):
        server = http.Server(MetricsSettings(port=0), registry, health)
        server.stop()
        server.start()
        address = server.address
        with socket.create_connection(address, timeout=10) as client:
            _get(server, "/healthz")
            began = time.monotonic()
            server.stop()
            server.stop()
            assert client.recv(10) == b""
            assert time.monotonic() - began < 3
        again = http.Server(MetricsSettings(port=address[1]), registry, health)
        again.start()
        again.stop()


def test_no_access_log(server: http.Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A scrape every 15 s is no news; nor is a request that is none."""
    _get(server, "/metrics")
    _get(server, "/nothing%0a")
    with socket.create_connection(server.address, timeout=10) as client:
        client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        client.recv(4096)
    assert capsys.readouterr() == ("", "")


def test_scrapes_at_the_same_time_all_get_an_answer(server: http.Server, measured: metrics.Metrics) -> None:
    """While the loop goes on counting."""
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(_get(server, "/metrics")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        measured.requests_ended("tiny-adder", metrics.Outcome.COMPLETED)
    for thread in threads:
        thread.join(30)
    assert answers == [200] * 8
