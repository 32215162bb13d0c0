"""Hostile files and sidecars, against the real loop: a clear error within seconds and bounded memory."""

from __future__ import annotations

import os
import time

import orjson
import pytest

from pipeline import validate_lines
from tests.hostile import (
    CONTENTS,
    GOOD_LINE,
    KINDS,
    SIDECARS,
    bounded,
    fails_with,
    others_go_on,
    put,
    request,
)
from tests.loops import Daemon

# ------------------------------------------------------------------ contents


@pytest.mark.parametrize(
    ("content", "code", "said"), [row[1:] for row in CONTENTS], ids=[row[0] for row in CONTENTS]
)
def test_a_hostile_file_fails_with_a_reason(daemon: Daemon, content: bytes, code: str, said: str) -> None:
    """Within seconds and bounded memory, the message short and printable."""
    path = daemon.home.inbox / "bad.jsonl"
    path.write_bytes(content)
    started = time.monotonic()
    with bounded():
        errors = fails_with(daemon)
    assert time.monotonic() - started < 15
    assert errors[0][0] == code
    assert said in errors[0][1]
    assert len(errors) <= 100
    assert all(message.isprintable() and len(message) < 400 for _, message in errors)
    others_go_on(daemon)


def test_a_line_of_a_gibibyte_costs_no_memory(daemon: Daemon) -> None:
    """Skipped without being held; what stands after it is judged."""
    with open(daemon.home.inbox / ".big.tmp", "wb") as file:
        file.write(GOOD_LINE + b'{"custom_id":"')
        file.seek((1 << 30) - 1, os.SEEK_CUR)
        file.write(b'"}\nnot json\n')
    os.rename(file.name, daemon.home.inbox / "bad.jsonl")
    started = time.monotonic()
    with bounded(64):
        errors = fails_with(daemon)
    print(f"a line of a gibibyte: {time.monotonic() - started:.1f} s")
    assert [code for code, _ in errors] == ["line_too_long", "invalid_json_line"]
    assert time.monotonic() - started < 60
    others_go_on(daemon)


def test_a_sparse_file_of_terabytes_ends(daemon: Daemon) -> None:
    """Nobody waits for exabytes of holes to be read."""
    with open(daemon.home.inbox / ".big.tmp", "wb") as file:
        file.truncate(15 << 40)
    os.rename(file.name, daemon.home.inbox / "bad.jsonl")
    with bounded(64):
        errors = fails_with(daemon)
    assert errors[0][0] == "line_too_long"
    others_go_on(daemon)


def test_duplicate_keys_mean_the_last(daemon: Daemon) -> None:
    """Everywhere alike: in what is validated, in what the engine gets, in what is reported."""
    line = GOOD_LINE.replace(b'{"custom_id":"a0"', b'{"custom_id":"first","custom_id":"last"')
    (daemon.home.inbox / "bad.jsonl").write_bytes(line)
    daemon.until(daemon.is_at("completed", name="bad"))
    assert [row["custom_id"] for row in daemon.lines("output.jsonl", "bad")] == ["last"]


def test_bad_lines_may_be_skipped(daemon: Daemon) -> None:
    """With on_invalid: skip each hostile line is one error line, and the good ones are answered."""
    hostile = [content.split(b"\n")[0] for _, content, _, _ in CONTENTS[:9]]
    good = [orjson.dumps(request(f"a{number}")) for number in range(len(hostile))]
    rows = [row for pair in zip(good, hostile, strict=True) for row in pair]
    (daemon.home.inbox / "bad.batch.yaml").write_text("on_invalid: skip")
    (daemon.home.inbox / "bad.jsonl").write_bytes(b"\n".join(rows))
    with bounded():
        daemon.until(daemon.is_at("completed", name="bad"))
    assert len(daemon.lines("output.jsonl", "bad")) == len(good)
    assert len(daemon.lines("errors.jsonl", "bad")) == len(hostile)


def test_a_file_that_goes_on_growing_after_the_claim(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that keeps its descriptor and is as fast as we read: it ends, and says why."""
    path = daemon.home.inbox / "bad.jsonl"
    writer = open(path, "wb", buffering=0)  # noqa: SIM115 (it stays open for the whole test)
    writer.write(GOOD_LINE)
    monkeypatch.setattr("spool.drops.has_writer", lambda drop: False)  # a writer on another machine

    class Growing(validate_lines.LineReader):
        def _read(self) -> bytes:
            if self.size_bytes < 1 << 30:
                writer.write(b"\n" * (2 << 20))
            return super()._read()

    monkeypatch.setattr("pipeline.validate.LineReader", Growing)
    with bounded():
        errors = fails_with(daemon)
    writer.close()
    assert errors[0][0] == "input_modified"
    assert "drop it again when it is complete" in errors[0][1]
    monkeypatch.undo()
    others_go_on(daemon)


def test_a_file_that_is_still_open_waits(daemon: Daemon) -> None:
    """While the filesystem can tell that someone writes, nothing is claimed."""
    with open(daemon.home.inbox / "bad.jsonl", "wb") as writer:
        writer.write(GOOD_LINE)
        writer.flush()
        others_go_on(daemon)
        assert (daemon.home.inbox / "bad.jsonl").exists()
    daemon.until(daemon.is_at("completed", name="bad"), later_s=1.0)


# ------------------------------------------------------------------ sidecars


@pytest.mark.parametrize(
    "content",
    [content for _, content in SIDECARS],
    ids=[name for name, _ in SIDECARS],
)
def test_a_hostile_sidecar_fails_its_own_file(daemon: Daemon, content: bytes) -> None:
    """It is read in the loop's own thread: bounded, quickly, and whatever it holds the daemon stays up."""
    (daemon.home.inbox / "bad.batch.yaml").write_bytes(content)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    started = time.monotonic()
    with bounded(64):
        [(code, message)] = fails_with(daemon)
    assert time.monotonic() - started < 5
    assert code == "invalid_request"
    assert "sidecar" in message
    assert len(message) < 400
    others_go_on(daemon)
    assert not (daemon.home.inbox / "bad.batch.yaml").exists()


@pytest.mark.parametrize(
    "content",
    [
        b'"\\e[2J\\n": 1',
        b'completion_window: "\\e[2J"',
        b'pool: "\\e[2J"',
        b'metadata: {"\\e[2J": 1}',
        '"\u202egpj.exe": 1'.encode(),
        "\u202e: [".encode(),
        b'"\\ud800": 1',
    ],
)
def test_what_a_sidecar_holds_cannot_drive_a_terminal(daemon: Daemon, content: bytes) -> None:
    """`batchd status` and `submit --wait` print the message as it is."""
    (daemon.home.inbox / "bad.batch.yaml").write_bytes(content)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    [(_, message)] = fails_with(daemon)
    assert message.isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sidecar_that_is_no_file_fails_its_file(daemon: Daemon, kind: str) -> None:
    """It is not followed, not opened for long, and left where it is."""
    put(kind, daemon.home.inbox / "bad.batch.yaml")
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    [(code, message)] = fails_with(daemon)
    assert (code, "sidecar" in message) == ("invalid_request", True)
    assert os.path.lexists(daemon.home.inbox / "bad.batch.yaml")
    others_go_on(daemon)
