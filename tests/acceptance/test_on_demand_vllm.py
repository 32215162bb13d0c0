"""Engines on demand with the real vLLM: two models that share a GPU, and a start that fails.

The GPU is Ray's: a node says that it has one, and vLLM's CPU build asks for none. Who waits for whom is real.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.cluster import Cluster
from spool import create
from tests import daemons
from tests.daemons import addition, jsonl
from tests.faults.nodes import Node

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

SOURCE = daemons.REPOSITORY / "examples/tiny-adder"
# More than a turn of some seconds is enough for.
MANY = 10_000
LIMIT_S = 400.0


def _model(name: str, source: Path = SOURCE) -> dict[str, Any]:
    engine_args = {"max_model_len": 64, "enforce_eager": True, "max_num_seqs": 16}
    return {"name": name, "kind": "vllm", "source": str(source), "engine_args": engine_args}


def _rows(model: str, count: int) -> bytes:
    rows = [addition(a % 100, a // 100) for a in range(count)]
    return jsonl([{**row, "body": {**row["body"], "model": model}} for row in rows])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A daemon with models a and b, each of one GPU, on a cluster that has one."""
    with Cluster() as cluster:
        cluster.add("gpu", num_gpus=1)
        settings = {
            "models": [_model("a"), _model("b")],
            "inbox": {"settle_s": 0.1, "rescan_s": 2},
            "log": {"format": "json"},
            "metrics": {"port": 0},
        }
        spool = create.create(tmp_path / "spool").root
        made = Node(tmp_path / "d", spool, "turns", settings, cluster.environ)
        yield made.start(wait_ready=True)
        if made.is_alive:
            made.stop(signal.SIGKILL)


def test_two_models_on_one_gpu_take_turns(node: Node) -> None:
    """A long batch of one gives way to a short one of the other, and loses nothing."""
    assert not node.events("engine_starting")
    node.drop("long.jsonl", _rows("a", MANY))
    daemons.until(lambda: node.status("long") and node.extra("long")["progress"]["done"], 120, "progress")
    node.drop("short.jsonl", _rows("b", 100))
    assert node.ended("short", LIMIT_S).status == "completed"
    assert node.status("long").status == "in_progress"
    assert node.ended("long", LIMIT_S).status == "completed"
    assert daemons.wrong_sums(node.lines("short")) == []
    long = node.lines("long")
    assert (len(long), daemons.wrong_sums(long)) == (MANY, [])
    assert [event["model"] for event in node.events("engine_starting")][:2] == ["b", "a"]
    assert [(event["model"], event["reason"]) for event in node.events("engine_stopped")][:2] == [
        ("a", "swapped"),
        ("b", "swapped"),
    ]
    reasons = [event["reason"] for event in node.extra("long")["history"]]
    assert any(reason.startswith("swapped: ") for reason in reasons), reasons
    assert "waits: the engine of a waits for the GPUs of b" in reasons
    assert not node.events("requests_lost") + node.events("run_failed") + node.events("engine_down")
    assert node.stop() == 0


def test_an_engine_that_does_not_start_on_demand_is_tried_again(tmp_path: Path) -> None:
    """The daemon goes on, the batch waits and says why, and is answered once the model is mended."""
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    model = {**_model("tiny-adder", source), "replicas": {"min": 0, "max": 1}}
    daemon = daemons.Daemon(tmp_path, {"models": [model], "engine": {"idle_s": 600}}).start()
    try:
        daemon.drop("jan.jsonl", _rows("tiny-adder", 10))
        daemons.until(lambda: daemon.events("engine_not_started"), 120, "the start's failure")
        assert "vLLM did not start" in daemon.events("engine_not_started")[0]["reason"]
        daemons.until(lambda: daemon.get("/readyz")[0] == 503, what="its end")

        def reasons() -> list[str]:
            return [event["reason"] for event in daemon.extra("jan")["history"]]

        failed = "waits: the engine of tiny-adder did not start: "
        daemons.until(lambda: any(each.startswith(failed) for each in reasons()), 120, "the reason")
        shutil.copytree(SOURCE, source, dirs_exist_ok=True)
        assert daemon.ended("jan", LIMIT_S).status == "completed"
        assert daemons.wrong_sums(daemon.lines("jan")) == []
        daemons.until(lambda: daemon.get("/readyz")[0] == 200, what="readiness")
    finally:
        code = daemon.stop()
    assert code == 0
