"""`kind: openai` against the server of llama-cpp-python, with a tiny model of random weights.

Runs where LLAMA_PYTHON names a Python with `llama-cpp-python[server]` and `gguf`, which batchd does not need.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons, model_servers
from tests.daemons import Daemon, addition, jsonl
from tests.model_servers import ModelServer

START_S = 60.0
LINES = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ModelServer]:
    """The server, up."""
    python = os.environ.get("LLAMA_PYTHON")
    if not python:
        pytest.skip("LLAMA_PYTHON names no Python with llama-cpp-python[server] and gguf")
    model = tmp_path / "tiny.gguf"
    subprocess.run([python, daemons.REPOSITORY / "tests/make_gguf.py", model], check=True, timeout=60)
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "tiny-adder"]
    command += ["--n_ctx", "512", "--n_threads", "1", "--api_key", model_servers.KEY]
    made = ModelServer(command, tmp_path / "llama.log")
    try:
        made.start(START_S)
        yield made
    finally:
        made.kill()


@pytest.mark.timeout(240)
def test_a_batch_through_llama_cpp_outlives_it(tmp_path: Path, server: ModelServer) -> None:
    """It is killed in the middle, and comes back; what it cannot answer fails alone, in its own words."""
    (tmp_path / "key").write_text(f"{model_servers.KEY}\n")
    model = {"name": "tiny-adder", "kind": "openai", "urls": [server.url], "max_concurrency": 4}
    daemon = Daemon(tmp_path, {"models": [{**model, "api_key_file": "key"}]}).start()
    try:
        rows = [addition(n, n) for n in range(LINES)]
        body = {**rows[7]["body"], "max_tokens": "many"}
        rows[7]["body"] = body
        daemon.drop("sums.jsonl", jsonl(rows))
        daemons.until(lambda: b'"POST /v1/chat' in (tmp_path / "llama.log").read_bytes(), what="requests")
        server.kill()
        daemons.until(lambda: daemon.events("server_down"), what="its outage")
        server.start(START_S)
        shown = daemon.ended("sums", 120)
    finally:
        daemon.stop()
    output, (failed,) = daemon.lines("sums"), daemon.lines("sums", "errors.jsonl")
    assert (shown.status, shown.request_counts.completed) == ("completed", LINES - 1)
    expected = [row["custom_id"] for row in rows if row is not rows[7]]
    assert [row["custom_id"] for row in output] == expected
    bodies = [row["response"]["body"] for row in output]
    assert all(body["model"] == "tiny-adder" and body["choices"][0]["finish_reason"] for body in bodies)
    assert shown.usage.total_tokens == sum(body["usage"]["total_tokens"] for body in bodies)
    # llama-cpp-python answers 500 to a request that is none.
    assert failed["custom_id"] == "add-7-7" and failed["response"]["status_code"] in (400, 422, 500)
    assert "max_tokens" in failed["response"]["body"]["error"]["message"]
