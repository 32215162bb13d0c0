"""A whole daemon whose model is served elsewhere: outages, a restart with other URLs, and a secret key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import daemons
from tests.daemons import Daemon, addition, jsonl
from tests.http_server import HttpServer, Request, ServerThread

KEY = "sk-a-key-that-shows-nowhere"
LATENCY_S = 0.3
LINES = 400


async def add(request: Request) -> None:
    """Answer what an addition comes to, after a while."""
    await asyncio.sleep(LATENCY_S)
    question = request.json["messages"][-1]["content"]
    a, b = question.removeprefix("What is ").removesuffix("?").split("+")
    message = {"role": "assistant", "content": str(int(a) + int(b))}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    await request.reply(200, {"choices": [{"message": message}], "usage": usage})


@pytest.fixture
def servers() -> Iterator[list[ServerThread]]:
    """Three that list tiny-adder and add."""
    made = [ServerThread(HttpServer(add, ("tiny-adder",))) for _ in range(3)]
    yield made
    for each in made:
        each.close()


def model(*servers: ServerThread) -> dict[str, Any]:
    urls = [f"{each.server.url}/v1" for each in servers]
    named = {"name": "tiny-adder", "kind": "openai", "urls": urls}
    return {**named, "api_key_env": "ADDER_KEY", "max_concurrency": 8}


def progress(daemon: Daemon) -> int:
    shown = daemon.status("sums")
    return shown.request_counts.completed if shown and shown.request_counts else 0


@pytest.mark.timeout(300)
def test_a_batch_outlives_its_servers_and_its_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: list[ServerThread]
) -> None:
    """Servers go and come, the daemon too, and the URLs change: each line has one answer in the end."""
    monkeypatch.setenv("ADDER_KEY", KEY)
    first, second, third = servers
    daemon = Daemon(tmp_path, {"models": [model(first, second)]}).start()
    try:
        rows = [addition(n // 100, n % 100) for n in range(LINES)]
        daemon.drop("sums.jsonl", jsonl(rows))
        daemons.until(lambda: len(first.server.asked) > 40, what="requests")
        first.stop()
        second.stop()
        daemons.until(lambda: len(daemon.events("server_down")) == 2, what="both outages in the log")
        daemons.until(lambda: daemon.events("engine_down"), what="the outage of the model")
        daemons.until(lambda: daemon.get("/readyz")[0] == 503, what="the end of readiness")
        assert not daemon.lines("sums", "errors.jsonl")
        first.start()
        daemons.until(lambda: daemon.get("/readyz")[0] == 200, what="the first server's return")
        done = progress(daemon)
        daemons.until(lambda: progress(daemon) > done, what="progress")
        assert daemon.status("sums").status == "in_progress"
        assert daemon.stop() == 0
        daemon.settings["models"] = [model(third)]
        daemon.start()
        shown = daemon.ended("sums", 120)
        assert daemon.stop() == 0
    finally:
        daemon.stop()
    output = daemon.lines("sums")
    assert (shown.status, shown.request_counts.completed, shown.request_counts.failed) == (
        "completed",
        LINES,
        0,
    )
    assert [row["custom_id"] for row in output] == [row["custom_id"] for row in rows]
    assert daemons.wrong_sums(output) == []
    assert shown.usage.total_tokens == 6 * LINES
    assert third.server.asked
    asked = [request for each in servers for request in each.server.asked]
    assert {request.headers["authorization"] for request in asked} == {f"Bearer {KEY}"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
