"""A user's view: the installed command, real vLLM under real Ray Data, files in folders."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client.parser
import pytest

from tests import daemons, prometheus, promql
from tests.daemons import Daemon, addition, jsonl, request

pytestmark = pytest.mark.engine

MODEL: dict[str, Any] = {
    "name": "tiny-adder",
    "kind": "vllm",
    "source": str(daemons.REPOSITORY / "examples/tiny-adder"),
    "engine_args": {"max_model_len": 512, "enforce_eager": True},
}


# The same weights, whose hidden states serve as embeddings: what matters is the path.
EMBEDDER = {
    **MODEL,
    "name": "embedder",
    "engine_args": {**MODEL["engine_args"], "runner": "pooling", "convert": "embed"},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon with the real engine for all tests that do not stop it."""
    running = Daemon(
        tmp_path_factory.mktemp("daemon"),
        {
            "models": [{**MODEL, "engine_args": {**MODEL["engine_args"], "disable_log_stats": False}}],
            "limits": {"max_line_bytes": 20_000, "max_requests": 20_000, "max_bytes": 5_000_000},
        },
    ).start()
    yield running
    assert running.stop() == 0


def test_a_thousand_additions_are_each_answered_on_their_own_line(daemon: Daemon) -> None:
    """Each answer follows from its own custom_id, in the order of the input."""
    rows = [addition(a, (a * 7 + k * 13) % 100) for k in range(10) for a in range(100)]
    daemon.drop("thousand.jsonl", jsonl(rows))
    shown = daemon.ended("thousand", 120)
    output = daemon.lines("thousand")
    assert shown.status == "completed"
    assert [row["custom_id"] for row in output] == [row["custom_id"] for row in rows]
    assert daemons.wrong_sums(output) == []
    assert len({row["id"] for row in output}) == 1000
    assert (shown.request_counts.total, shown.request_counts.completed, shown.request_counts.failed) == (
        1000,
        1000,
        0,
    )
    assert shown.usage.output_tokens == sum(
        row["response"]["body"]["usage"]["completion_tokens"] for row in output
    )
    assert (
        shown.created_at
        <= shown.in_progress_at
        <= shown.finalizing_at
        <= shown.completed_at
        <= shown.expires_at
    )


def test_a_file_can_be_dropped_by_cp_and_by_mv(daemon: Daemon, tmp_path: Path) -> None:
    """Into a subfolder too, whose name becomes part of the result's."""
    (tmp_path / "one.jsonl").write_bytes(jsonl([addition(1, 2)]))
    (tmp_path / "two.jsonl").write_bytes(jsonl([addition(3, 4)]))
    (daemon.spool / "inbox/team-a").mkdir()
    subprocess.run(["cp", tmp_path / "one.jsonl", daemon.spool / "inbox/"], check=True)
    subprocess.run(["mv", tmp_path / "two.jsonl", daemon.spool / "inbox/team-a/"], check=True)
    daemon.ended("one")
    daemon.ended("team-a~two")
    assert daemons.answers(daemon.lines("one")) == {"add-1-2": "3"}
    assert daemons.answers(daemon.lines("team-a~two")) == {"add-3-4": "7"}


def test_a_rename_within_the_inbox_is_picked_up_within_a_second(daemon: Daemon) -> None:
    """It need not settle."""
    daemon.drop("renamed.jsonl", jsonl([addition(5, 6)]))
    began = time.monotonic()
    daemons.until(lambda: daemon.status("renamed"), 5)
    assert time.monotonic() - began < 1.0
    daemon.ended("renamed")


def test_a_slow_append_is_claimed_only_when_it_is_complete(tmp_path: Path) -> None:
    """A writer with pauses shorter than settle_s, with and without its file open, is waited for."""
    # echo: what is tested is the claim, and a second vLLM beside the first would only cost time.
    model = {"name": "tiny-adder", "kind": "echo"}
    daemon = Daemon(tmp_path, {"models": [model], "inbox": {"settle_s": 1.5}}).start()
    try:
        drop = daemon.spool / "inbox/slow.jsonl"
        for n in range(30):
            with open(drop, "ab") as file:
                file.write(jsonl([addition(n, n)]))
            time.sleep(1.0)
            assert daemon.status("slow") is None, f"claimed after {n + 1} of 30 lines"
        assert daemon.ended("slow", 20).request_counts.total == 30
        with open(daemon.spool / "inbox/open.jsonl", "ab") as file:
            file.write(jsonl([addition(1, 1)]))
            file.flush()
            time.sleep(3.0)  # twice settle_s: only the open descriptor keeps it from being claimed
            assert daemon.status("open") is None
        daemon.ended("open", 20)
    finally:
        daemon.stop()


def _bad_rows() -> dict[str, tuple[bytes, str, str | None]]:
    good = addition(1, 1)
    body = good["body"]

    def row(**changes: Any) -> bytes:
        return jsonl([{**good, **changes}])

    return {
        "empty_file": (b"\n\n", "empty_file", None),
        "not-json": (b"{\n", "invalid_json_line", None),
        "not-utf8": (b'{"custom_id":"\xff"}\n', "invalid_json_line", None),
        "no-object": (b"[1]\n", "invalid_request", None),
        "no-messages": (row(body={"model": "tiny-adder"}), "invalid_request", "body.messages"),
        "no-model": (row(body={"messages": body["messages"]}), "invalid_request", "body.model"),
        "no-id": (
            jsonl([{key: good[key] for key in good if key != "custom_id"}]),
            "missing_required_parameter",
            "custom_id",
        ),
        "no-body": (
            jsonl([{key: good[key] for key in good if key != "body"}]),
            "missing_required_parameter",
            "body",
        ),
        "get": (row(method="GET"), "invalid_method", "method"),
        "url": (row(url="/v1/images"), "invalid_url", "url"),
        "two-urls": (jsonl([good, {**addition(2, 2), "url": "/v1/embeddings"}]), "invalid_url", "url"),
        "model": (row(body={**body, "model": "gpt-4o"}), "model_not_found", "body.model"),
        "twice": (jsonl([good, good]), "duplicate_custom_id", "custom_id"),
        "stream": (row(body={**body, "stream": True}), "streaming_unsupported", "body.stream"),
        "long": (row(custom_id="a", body={**body, "user": "x" * 20_000}), "line_too_long", None),
        "many": (jsonl([request(str(n)) for n in range(20_001)]), "too_many_tasks", None),
        "large": (b" " * 1000 + b"\n" * 5_000_000, "file_too_large", None),
        "template": (
            row(body={**body, "chat_template": "{{ 1 }}"}),
            "unsupported_parameter",
            "body.chat_template",
        ),
    }


@pytest.mark.parametrize("case", list(_bad_rows()))
def test_each_row_of_the_validation_table(daemon: Daemon, case: str) -> None:
    """The file fails with the code and the param, and nothing of it runs."""
    content, code, param = _bad_rows()[case]
    daemon.drop(f"bad-{case}.jsonl", content)
    shown = daemon.ended(f"bad-{case}")
    assert shown.status == "failed"
    assert (shown.errors.data[-1].code, shown.errors.data[-1].param) == (code, param)
    assert (shown.in_progress_at, shown.output_file_id, shown.error_file_id) == (None, None, None)
    assert shown.failed_at is not None
    assert shown.request_counts.total == 0
    kept = daemon.spool / "archive" / shown.id / "drop.jsonl"
    daemons.until(kept.exists, what="the archive")  # comes after the end is shown
    assert kept.read_bytes() == content


def test_ten_thousand_bad_lines_are_judged_within_two_seconds(daemon: Daemon) -> None:
    """From the claim to `failed`, with the first hundred errors and the number of all."""
    daemon.drop("many-bad.jsonl", jsonl([request("x", method="PUT") for _ in range(10_000)]))
    shown = daemon.ended("many-bad")
    assert shown.failed_at - shown.created_at <= 2
    assert len(shown.errors.data) == 100
    assert "10000" in shown.errors.data[-1].message.replace(",", "")


def test_a_line_that_only_the_engine_refuses_is_a_line_error(daemon: Daemon) -> None:
    """Status 400 with vLLM's own message; its neighbours are answered."""
    bad = addition(1, 1)
    bad["custom_id"], bad["body"]["temperature"] = "hot", -1
    long = request("long", "What is " + "1+" * 600 + "1?")
    daemon.drop("refused.jsonl", jsonl([addition(20, 22), bad, long, addition(2, 2)]))
    shown = daemon.ended("refused")
    assert shown.status == "completed"
    assert daemons.answers(daemon.lines("refused")) == {"add-20-22": "42", "add-2-2": "4"}
    hot, too_long = daemon.lines("refused", "errors.jsonl")
    assert (hot["custom_id"], hot["response"]["status_code"], hot["error"]) == ("hot", 400, None)
    assert "temperature" in hot["response"]["body"]["error"]["message"]
    assert (too_long["custom_id"], too_long["response"]["status_code"]) == ("long", 400)
    assert "512" in too_long["response"]["body"]["error"]["message"]
    assert shown.error_file_id == "refused/errors.jsonl"
    assert (shown.request_counts.completed, shown.request_counts.failed) == (2, 2)


def test_bodies_are_complete(daemon: Daemon) -> None:
    """n, logprobs, tools, structured output, finish_reason and usage come as the real API gives them."""
    rows = []
    for custom_id, more in {
        "n": {"n": 2, "temperature": 1, "seed": 1},
        "logprobs": {"logprobs": True, "top_logprobs": 2},
        "tools": {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "none",
        },
        "schema": {
            "max_tokens": 20,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}},
            },
        },
        "cut": {"max_tokens": 1},
    }.items():
        row = request(custom_id, "What is 40+2?")
        row["body"].update(more)
        rows.append(row)
    daemon.drop("bodies.jsonl", jsonl(rows))
    daemon.ended("bodies")
    assert daemon.lines("bodies", "errors.jsonl") == []
    bodies = {row["custom_id"]: row["response"]["body"] for row in daemon.lines("bodies")}
    assert len(bodies["n"]["choices"]) == 2
    assert len(bodies["logprobs"]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert bodies["logprobs"]["choices"][0]["message"]["content"] == "42"
    assert not bodies["tools"]["choices"][0]["message"].get("tool_calls")
    assert bodies["schema"]["choices"][0]["message"]["content"] in ('"yes"', '"no"')
    assert bodies["cut"]["choices"][0]["finish_reason"] == "length"
    assert bodies["tools"]["choices"][0]["finish_reason"] == "stop"
    assert all(
        body["usage"]["total_tokens"] > 0 and body["model"] == "tiny-adder" for body in bodies.values()
    )


def test_completions_and_responses_are_served(daemon: Daemon) -> None:
    """Other endpoints of the same engine, a file each."""
    prompt = {"model": "tiny-adder", "prompt": "What is 1+1?", "max_tokens": 4, "temperature": 0}
    daemon.drop("text.jsonl", jsonl([request("a", url="/v1/completions", body=prompt)]))
    said = {"model": "tiny-adder", "input": "What is 40+2?", "max_output_tokens": 8, "temperature": 0}
    daemon.drop("said.jsonl", jsonl([request("a", url="/v1/responses", body=said)]))
    daemon.ended("text")
    daemon.ended("said")
    (text,), (response,) = daemon.lines("text"), daemon.lines("said")
    assert text["response"]["body"]["object"] == "text_completion"
    assert response["response"]["body"]["output"][-1]["content"][0]["text"] == "42"


def test_hostile_names_and_files_do_no_harm(daemon: Daemon) -> None:
    """What is no regular file is left, logged and counted; an odd name gets a safe folder."""
    (daemon.spool / "inbox/link.jsonl").symlink_to("/etc/passwd")
    (daemon.spool / "inbox/folder.jsonl").mkdir()
    daemon.drop("odd\nname.jsonl", jsonl([addition(1, 1)]))
    assert daemon.ended("odd%0Aname").input_file_id == "odd\\nname.jsonl"
    assert (daemon.spool / "inbox/link.jsonl").is_symlink()
    ignored = {event["drop"] for event in daemon.events("drop_ignored")}
    assert ignored == {"link.jsonl", "folder.jsonl"}


def test_commands_work_on_the_folder_alone(daemon: Daemon, tmp_path: Path) -> None:
    """submit --wait, status, validate and cancel, with the exit codes that scripts rely on."""
    batch_file = tmp_path / "mine.jsonl"
    batch_file.write_bytes(jsonl([addition(30, 12)]))
    done = daemons.command(
        "submit", batch_file, "--wait", "--window", "1h", "--metadata", "a=b", spool=daemon.spool
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert str(daemon.spool / "outbox/mine/output.jsonl") in done.stdout
    shown = daemon.ended("mine")
    assert (shown.metadata, shown.completion_window) == ({"a": "b"}, "1h")
    batch_file.write_bytes(jsonl([request("x", method="GET")]))
    failed = daemons.command("submit", batch_file, "--wait", spool=daemon.spool)
    assert failed.returncode == 1
    assert "line 1: invalid_method" in failed.stderr
    assert daemons.command("validate", batch_file).returncode == 1
    listed = daemons.command("status", spool=daemon.spool)
    assert listed.returncode == 0
    assert "mine.2" in listed.stdout
    assert daemons.command("status", "mine", "--json", spool=daemon.spool).stdout.startswith("{")
    assert daemons.command("status", "nobody", spool=daemon.spool).returncode == 2
    assert daemons.command("cancel", "mine", spool=daemon.spool).returncode == 1
    assert daemons.command("status", spool=tmp_path).returncode == 3


def test_metrics_tell_what_happened(daemon: Daemon) -> None:
    """Read with Prometheus' own parser: batches, requests, tokens, engine, pools, and no batch's name."""
    daemon.drop("counted.jsonl", jsonl([addition(n, 1) for n in range(10)]))
    daemon.ended("counted")

    def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = daemon.get("/metrics")[1]
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in prometheus_client.parser.text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(name: str, **labels: str) -> float:
        return samples().get((f"batchd_{name}", tuple(sorted(labels.items()))), 0.0)

    daemons.until(lambda: value("tokens_total", model="tiny-adder", kind="output") > 0, what="tokens")
    assert value("batches_total", status="completed") >= 1
    assert value("requests_total", model="tiny-adder", outcome="completed") >= 10
    assert value("request_duration_seconds_count", model="tiny-adder") >= 10
    assert value("engine_up", model="tiny-adder") == 1
    assert value("engine_start_seconds", model="tiny-adder") > 1
    assert value("pool_capacity", pool="spot") == 2
    assert value("pool_assignments_total", pool="spot", reason="spot_first") >= 1
    assert value("sla_batches_total", met="true") >= 1
    assert value("spool_free_bytes") > 0
    assert "counted" not in daemon.get("/metrics")[1]
    assert daemon.get("/healthz") == (200, "ok\n")


@prometheus.needed
def test_what_vllm_says_of_its_engine_reaches_the_dashboard(daemon: Daemon, tmp_path: Path) -> None:
    """Its statistics are on in this daemon; all that the dashboard asks of them returns data."""
    watching = prometheus.Prometheus(tmp_path / "prometheus", daemon.port)
    try:
        daemons.until(lambda: watching.query("count_over_time(up[1m]) >= 2"), what="two scrapes")
        daemon.drop("watched.jsonl", jsonl([addition(a, 1) for a in range(100)]))
        daemon.ended("watched")
        asked = [expression for _, expression in promql.expressions() if promql.is_for_vllm(expression)]
        for expression in asked:
            daemons.until(lambda expression=expression: watching.query(expression), what=expression)  # type: ignore[misc]
        assert all(f"batchd_engine_{name}" in " ".join(asked) for name in promql.VLLM_STATS)
        [looked_up] = watching.query("batchd_engine_prefix_cache_queries_total")
        assert looked_up > 100
    finally:
        watching.stop()


def test_every_decision_is_logged_with_its_reason(daemon: Daemon) -> None:
    """Claim, validation, assignment and end carry the batch id."""
    daemon.drop("logged.jsonl", jsonl([addition(1, 1)]))
    batch_id = daemon.ended("logged").id
    (assigned,) = [event for event in daemon.events("batch_assigned") if event["batch"] == batch_id]
    assert (assigned["pool"], assigned["reason"]) == ("spot", "spot_first")
    for name in ("batch_claimed", "batch_valid"):
        assert [event for event in daemon.events(name) if event["batch"] == batch_id]
    daemons.until(lambda: [event for event in daemon.events("batch_ended") if event["batch"] == batch_id])


def _check_embeddings(daemon: Daemon) -> None:
    """A batch of embeddings goes the same way; a text gives the same vector twice, another text another."""
    texts = ["one", "two", "one"]
    bodies = [{"model": "embedder", "input": text} for text in texts]
    rows = [request(f"e{n}", url="/v1/embeddings", body=body) for n, body in enumerate(bodies)]
    daemon.drop("vectors.jsonl", jsonl(rows))
    assert daemon.ended("vectors").status == "completed"
    one, two, again = [row["response"]["body"]["data"][0]["embedding"] for row in daemon.lines("vectors")]
    assert len(one) == 128
    assert one == pytest.approx(again)
    assert one != pytest.approx(two)


def test_a_model_that_cannot_be_loaded_ends_the_start_with_one_line(tmp_path: Path) -> None:
    """Exit code 3, the reason last, and what was dropped stays for the next start."""
    broken = tmp_path / "model"
    shutil.copytree(MODEL["source"], broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    daemon = Daemon(tmp_path, {"models": [{**MODEL, "source": str(broken)}]}).start(wait_ready=False)
    daemon.drop("waits.jsonl", jsonl([addition(1, 1)]))
    assert daemon.process.wait(180) == 3
    last = daemon.log.read_text().splitlines()[-1]
    assert last.startswith("batchd: model 'tiny-adder'")
    assert not daemon.lines("waits")
    assert (
        len(list((daemon.spool / "work").rglob("drop.jsonl"))) + len(list((daemon.spool / "inbox").iterdir()))
        == 1
    )


@pytest.mark.timeout(900)
def test_a_stop_in_mid_batch_goes_on_at_the_next_start(tmp_path: Path) -> None:
    """SIGTERM ends the daemon in order, finished lines are kept; the next start answers the rest."""
    daemon = Daemon(tmp_path, {"models": [MODEL]}).start()
    rows = [addition(a, b) for a in range(100) for b in range(0, 100, 2)]
    daemon.drop("long.jsonl", jsonl(rows))
    daemons.until(lambda: (shown := daemon.status("long")) and shown.request_counts.completed > 0, 60)
    began = time.monotonic()
    assert daemon.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 30
    halted = daemon.status("long")
    assert halted.status == "in_progress"
    assert 0 < halted.request_counts.completed < len(rows)
    # The same settings with one model more: what waits for tiny-adder does not mind.
    daemon.settings["models"] = [MODEL, EMBEDDER]
    daemon.start()
    try:
        shown = daemon.ended("long", 120)
        assert shown.id == halted.id
        output = daemon.lines("long")
        assert [row["custom_id"] for row in output] == [row["custom_id"] for row in rows]
        assert daemons.wrong_sums(output) == []
        assert shown.request_counts.completed == len(rows)
        _check_embeddings(daemon)
    finally:
        daemon.stop()
    shutil.rmtree(tmp_path / "spool")
