"""`kind: openai` against vLLM's own API server: batches through a real server, a real daemon, real HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import daemons, model_servers
from tests.daemons import Daemon, addition, jsonl, request
from tests.model_servers import ModelServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

START_S = 240.0
# As when it computes only a few at a time, so that a kill finds it at work.
PLACES = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ModelServer]:
    """vLLM's server with tiny-adder, up."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--model",
        str(daemons.REPOSITORY / "examples/tiny-adder"),
        "--served-model-name",
        "tiny-adder",
    ]
    command += ["--max-model-len", "512", "--enforce-eager", "--api-key", model_servers.KEY]
    log = tmp_path / "vllm.log"
    made = ModelServer(command, log, VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
    try:
        made.start(START_S)
        yield made
    finally:
        made.kill()


def model(server: ModelServer, **changes: Any) -> dict[str, Any]:
    named = {"name": "tiny-adder", "kind": "openai", "urls": [f"{server.url}/v1"], "api_key_env": "VLLM_KEY"}
    return {**named, **changes}


def test_batches_through_a_vllm_server_that_is_killed_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ModelServer
) -> None:
    """Each line is answered once, with vLLM's own body; a refusal is the line's; the kill loses nothing."""
    monkeypatch.setenv("VLLM_KEY", model_servers.KEY)
    daemon = Daemon(tmp_path, {"models": [model(server, max_concurrency=PLACES)]}).start()
    try:
        rows = [addition(a, (a * 7 + k) % 100) for k in range(3) for a in range(100)]
        bad = request("too-long", "a" * 5000)
        twins = [request(f"twin-{n}", "What is 17+25?") for n in range(3)]
        daemon.drop("sums.jsonl", jsonl([*rows, bad, *twins]))
        shown = daemon.ended("sums", 120)
        check(daemon, "sums", [*rows, *twins])
        (failed,) = daemon.lines("sums", "errors.jsonl")
        assert (failed["custom_id"], failed["response"]["status_code"]) == ("too-long", 400)
        assert failed["response"]["body"]["error"]["message"]
        assert shown.usage.output_tokens > len(rows)

        more = [addition(n // 100, n % 100) for n in range(2000)]
        daemon.drop("more.jsonl", jsonl(more))
        daemons.until(lambda: begun(daemon), what="progress")
        server.kill()
        daemons.until(lambda: daemon.events("server_down"), what="the outage")
        server.start(START_S)
        daemon.ended("more", 200)
        check(daemon, "more", more)
        assert not daemon.lines("more", "errors.jsonl")
    finally:
        daemon.stop()
    assert model_servers.KEY not in daemon.log.read_text()


def begun(daemon: Daemon) -> bool:
    shown = daemon.status("more")
    return bool(shown and shown.request_counts and shown.request_counts.completed)


def check(daemon: Daemon, name: str, rows: list[dict[str, Any]]) -> None:
    """Each of these has its answer, once, in the order of the file, and the sums are right."""
    output = daemon.lines(name)
    assert [row["custom_id"] for row in output] == [row["custom_id"] for row in rows]
    assert daemons.wrong_sums([row for row in output if row["custom_id"].startswith("add-")]) == []
