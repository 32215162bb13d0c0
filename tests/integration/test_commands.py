"""Commands without a daemon: exit codes and one-line errors that say what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from spool import claim, layout
from tests import daemons, spools
from tests.daemons import addition, command, jsonl, request


def _run(tmp_path: Path, settings: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "batchd.yaml"
    config.write_text(settings)
    return command("run", "--config", config, spool=tmp_path / "spool")


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ("models: [{name: m, kind: echo}]\nspol: {}\n", 2, "spol: unknown setting"),
        ("models: [{name: m, kind: echo}]\nmetrics: {port: x}\n", 2, "metrics.port: 'x'"),
        ("models: []\n", 2, "models"),
        ("models: [{name: m, kind: vllm, source: ./absent}]\n", 3, "does not exist"),
        ("models: [{name: m, kind: vllm, source: .}]\n", 3, "holds no config.json"),
        ("models: [{name: m, kind: openai, urls: [x]}]\n", 2, "models.0.urls: URL 1 must be http(s)://"),
        (
            "models: [{name: m, kind: openai, urls: ['http://x'], api_key_env: NO_SUCH_KEY}]\n",
            3,
            "model 'm': api_key_env: the environment variable NO_SUCH_KEY is not set",
        ),
    ],
)
def test_a_start_that_cannot_work_is_refused_at_once_in_one_line(
    tmp_path: Path, settings: str, code: int, message: str
) -> None:
    """Before Ray starts, with the exit code of its kind, and without making a spool."""
    began = time.monotonic()
    done = _run(tmp_path, settings)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 10
    assert not (tmp_path / "spool").exists()


def test_a_check_of_good_settings_says_so(tmp_path: Path) -> None:
    """`run --check` starts nothing."""
    config = tmp_path / "batchd.yaml"
    config.write_text("models: [{name: m, kind: echo}]\n")
    done = command("run", "--config", config, "--check", spool=tmp_path / "spool")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "spool").exists()


def test_a_check_of_servers_elsewhere_asks_none_of_them(tmp_path: Path) -> None:
    """They may be down just now; the key must be there, and is not shown."""
    config, key = tmp_path / "batchd.yaml", tmp_path / "key"
    config.write_text("models: [{name: m, kind: openai, urls: ['http://127.0.0.1:1'], api_key_file: key}]\n")
    checked = ("run", "--config", config, "--check")
    refused = command(*checked, spool=tmp_path / "spool")
    assert refused.returncode == 3 and "api_key_file: " in refused.stderr
    key.write_text("sk-never-to-be-seen\n")
    done = command(*checked, spool=tmp_path / "spool")
    assert (done.returncode, done.stderr) == (0, "")
    assert "models: m" in done.stdout and "sk-" not in done.stdout


def test_a_check_looks_at_the_spool_too(tmp_path: Path) -> None:
    """Where it stands already: a folder that is open to others would stop the start."""
    config = tmp_path / "batchd.yaml"
    config.write_text("models: [{name: m, kind: echo}]\n")
    command("init", tmp_path / "spool", check=True)
    done = command("run", "--config", config, "--check", spool=tmp_path / "spool")
    assert (done.returncode, done.stdout.count("ok  ")) == (0, 2)
    (tmp_path / "spool/work").chmod(0o755)
    done = command("run", "--config", config, "--check", spool=tmp_path / "spool")
    assert done.returncode == 3
    assert "chmod 700" in done.stderr


def test_a_root_without_a_spool_is_unavailable(tmp_path: Path) -> None:
    """An existing folder without spool.json is never taken for an empty spool."""
    (tmp_path / "spool").mkdir()
    done = _run(tmp_path, "models: [{name: m, kind: echo}]\n")
    assert done.returncode == 3
    assert "is the volume mounted" in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """With the setting that changes it, before Ray starts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = _run(tmp_path, f"models: [{{name: m, kind: echo}}]\nmetrics: {{port: {port}}}\n")
    assert done.returncode == 3
    assert f"port {port}" in done.stderr.splitlines()[-1]
    assert "metrics.port" in done.stderr.splitlines()[-1]


def test_a_spool_without_a_daemon_takes_drops_and_says_that_nobody_serves_it(tmp_path: Path) -> None:
    """submit, status and cancel work on the folder alone."""
    spool = tmp_path / "spool"
    assert command("init", spool).returncode == 0
    batch_file = tmp_path / "jan.jsonl"
    batch_file.write_bytes(jsonl([addition(1, 1)]))
    dropped = command("submit", batch_file, "--pool", "spot", "--window", "90m", spool=spool)
    assert dropped.returncode == 0
    assert "no daemon serves" in dropped.stderr
    assert (spool / "inbox/jan.jsonl").read_bytes() == batch_file.read_bytes()
    assert "completion_window: 90m" in (spool / "inbox/jan.batch.yaml").read_text()
    assert sorted(path.name for path in (spool / "inbox").iterdir()) == ["jan.batch.yaml", "jan.jsonl"]
    assert "no batches yet" in command("status", spool=spool).stdout
    timed_out = command("submit", batch_file, "--name", "feb", "--wait", "--timeout", "1s", spool=spool)
    assert timed_out.returncode == 4


def test_a_submit_never_overwrites_a_waiting_drop(tmp_path: Path) -> None:
    """The first drop and its sidecar stay as they are."""
    spool = tmp_path / "spool"
    command("init", spool, check=True)
    batch_file = tmp_path / "jan.jsonl"
    batch_file.write_bytes(jsonl([addition(1, 1)]))
    command("submit", batch_file, spool=spool, check=True)
    before = {path.name: path.read_bytes() for path in (spool / "inbox").iterdir()}
    batch_file.write_bytes(jsonl([addition(2, 2)]))
    refused = command("submit", batch_file, spool=spool)
    assert refused.returncode == 2
    assert "choose" in refused.stderr
    (spool / "inbox/jan.batch.yaml").unlink()
    assert command("submit", batch_file, spool=spool).returncode == 2
    assert {path.name: path.read_bytes() for path in (spool / "inbox").iterdir()} == {
        "jan.jsonl": before["jan.jsonl"]
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "absent.jsonl"],
        ["submit", __file__, "--window", "soon"],
        ["submit", __file__, "--name", "a/b"],
        ["submit", __file__, "--metadata", "novalue"],
        ["validate", "absent.jsonl"],
        ["cancel", "nobody"],
        ["frobnicate"],
    ],
)
def test_wrong_use_is_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    """With something on standard error, and no traceback."""
    command("init", tmp_path / "spool", check=True)
    done = command(*arguments, spool=tmp_path / "spool")
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_validate_gives_line_numbers_and_exit_codes(tmp_path: Path) -> None:
    """FILE:LINE: CODE: MESSAGE, for editors and scripts."""
    batch_file = tmp_path / "jan.jsonl"
    batch_file.write_bytes(jsonl([addition(1, 1), request("x", method="GET")]))
    done = command("validate", batch_file)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{batch_file}:2: invalid_method: ")
    batch_file.write_bytes(jsonl([addition(1, 1)]))
    done = command("validate", batch_file)
    assert (done.returncode, done.stdout) == (0, "valid: 1 requests to /v1/chat/completions for tiny-adder\n")


def test_every_command_explains_itself() -> None:
    """`--help` works for each, and starts fast enough to be typed."""
    for name in (
        *("init", "run", "validate", "submit", "watch", "status"),
        *("cancel", "retry", "verify", "report", "doctor"),
    ):
        done = command(name, "--help")
        assert done.returncode == 0
        assert daemons.batchd()
        assert len(done.stdout) > 200


@pytest.mark.parametrize(
    ("drop", "name"),
    [("jan.jsonl", "jan"), ("jan.jsonl", "jan.jsonl"), ("team-a/jan.jsonl", "team-a~jan")],
)
def test_watch_waits_for_a_drop_that_nobody_has_claimed_yet(tmp_path: Path, drop: str, name: str) -> None:
    """`cp` and at once `watch`, as in README.md, once ended with "no batch named"."""
    home, instance = spools.make(tmp_path)
    (home.inbox / drop).parent.mkdir(exist_ok=True)
    (home.inbox / drop).write_bytes(b"{}\n")
    assert command("watch", "feb", spool=home.root).returncode == 2
    environment = {**os.environ, "BATCHD_SPOOL__ROOT": str(home.root)}
    watching = subprocess.Popen(
        [daemons.batchd(), "watch", name, "--timeout", "60"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with watching:
        assert watching.stdout
        plain = layout.outbox_name(Path(drop))
        assert watching.stdout.readline() == f"{plain} waits in the inbox\n"
        batch = claim.claim(home, instance, Path(drop), time.time(), spools.DEFAULTS)
        assert batch
        claim.finish(batch)
        assert watching.stdout.readline() == f"{plain}: validating 0/0, 0 failed\n"
        watching.terminate()
