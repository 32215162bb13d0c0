"""What `top` shows, at a given time, with and without a daemon that answers."""

from __future__ import annotations

import prometheus_client
from rich.console import Console

from config.settings import MetricsSettings
from daemon import http, metrics, outbox, overview


def _shown(name: str, *, is_at_risk: bool = False) -> outbox.Shown:
    progress = {"requests_per_s": 12.0, "tokens_per_s": 3400.0, "eta_at": 1065.0}
    extra = {"phase": "running", "pool": "spot", "progress": progress, "sla": {"at_risk": is_at_risk}}
    counts = {"total": 1100, "completed": 1037, "failed": 3}
    tree = {"id": "b", "status": "in_progress", "request_counts": counts, "expires_at": 4600, "batchd": extra}
    return outbox.Shown(name, tree)


def _text(*active: outbox.Shown, numbers: overview.Numbers | None = None) -> str:
    console = Console(width=110)
    with console.capture() as captured:
        console.print(
            overview.panel(
                active, 2, numbers, 1000.0, url="http://host/metrics", is_served=numbers is not None
            )
        )
    return captured.get()


def test_each_batch_has_a_line() -> None:
    """With all that tells whether it ends in time."""
    text = _text(_shown("jan"), _shown("feb", is_at_risk=True))
    assert "2 in the inbox   2 batches   24.0 requests/s   6,800 tokens/s   1 AT RISK" in text
    (line,) = [line for line in text.splitlines() if line.startswith("jan")]
    assert line.split() == ["jan", "running", "spot", "1,040", "1,100", "3", "12.0", "0:01:05", "1:00:00"]


def test_without_a_daemon_it_says_what_is_missing() -> None:
    """And which address was asked."""
    text = _text()
    assert "no daemon answers at http://host/metrics" in text
    assert "no daemon serves this spool" in text
    assert "no batch goes on" in text


def test_a_daemon_that_answers_tells_of_queue_pools_and_engines() -> None:
    """Over HTTP, as Prometheus reads it; nobody at the port is no error."""
    registry = prometheus_client.CollectorRegistry()
    count = metrics.Metrics(registry, ["m", "idle"])
    count.set_engine_replicas_wanted("m", 1)
    count.set_pool("spot", 2, 1)
    count.set_pool("dedicated", 1, 1)
    server = http.Server(MetricsSettings(port=0), registry, http.Health(60))
    server.start()
    host, port = server.address
    url = f"http://{host}:{port}/metrics"
    try:
        numbers = overview.scrape(url)
    finally:
        server.stop()
    text = _text(numbers=numbers)
    assert "queue 0   pools spot 1/2   dedicated 0/1" in text
    assert "m down or starting   idle stopped" in text
    assert overview.scrape(url) is None
