"""Hostile drops, sidecars and names, against the real loop.

The daemon stays up, other batches go on, memory is bounded, and the user is told what is wrong.

Each test drops something hostile beside a good file and drives the loop until both are through.
"""

from __future__ import annotations

import errno
import functools
import gzip
import io
import itertools
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import prometheus_client
import pytest

from config.settings import LogSettings
from daemon import logs
from pipeline import validate_lines
from spool import create, files
from spool.errors import SpoolUnavailable
from spool.failpoints import Step
from tests.loops import Daemon

REPOSITORY = Path(__file__).resolve().parents[2]
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
NOBODY = 65534
# A worst line in its three copies (read, joined, private copy), the chunks around it, and Python's own slack.
MOST_MIB = 150


def request(custom_id: str, **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": BODY, **changes}


GOOD_LINE = orjson.dumps(request("a0")) + b"\n"


# Of the daemons that were made, for `exposed`.
REGISTRIES: list[prometheus_client.CollectorRegistry] = []


class Registry(prometheus_client.CollectorRegistry):
    def __init__(self) -> None:
        super().__init__()
        REGISTRIES.append(self)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setattr(prometheus_client, "CollectorRegistry", Registry)
    made = Daemon(tmp_path)
    yield made
    made.stop()


@contextmanager
def bounded(most_mib: int = MOST_MIB) -> Iterator[None]:
    """Fail if the process takes more than this on top of what it has now, at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, proc(5)
    before = _memory_kib("VmRSS")
    yield
    grown_mib = (_memory_kib("VmHWM") - before) >> 10
    assert grown_mib < most_mib, f"{grown_mib} MiB"


def _memory_kib(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])


def others_go_on(daemon: Daemon) -> None:
    """A file dropped after the hostile one is answered."""
    daemon.drop("good", 3)
    daemon.until(daemon.is_at("completed", name="good"))
    assert len(daemon.lines("output.jsonl", "good")) == 3


def fails_with(daemon: Daemon, name: str = "bad") -> list[tuple[str, str]]:
    """Drive until a drop has failed; its errors as (code, message)."""
    shown = daemon.until(daemon.is_at("failed", "completed", name=name))
    assert shown.status == "failed"
    return [(problem.code, problem.message) for problem in shown.errors.data]


# ------------------------------------------------------------------ what is no regular file


def put(kind: str, path: Path) -> None:
    """Make something of a kind at a path."""
    match kind:
        case "symlink":
            os.symlink("/etc/passwd", path)
        case "dangling":
            os.symlink("nowhere", path)
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "x").touch()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's path has 108 bytes at most
                try:
                    bound.bind(path.name)
                finally:
                    os.chdir(here)
        case "device":
            try:
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
            except PermissionError:
                pytest.skip("only root may make devices")


KINDS = ["symlink", "dangling", "fifo", "folder", "socket", "device"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_left_alone(daemon: Daemon, kind: str) -> None:
    """Never opened, never moved, reported once in the log and counted."""
    put(kind, daemon.home.inbox / "bad.jsonl")
    others_go_on(daemon)
    assert os.path.lexists(daemon.home.inbox / "bad.jsonl")
    assert not (daemon.home.outbox / "bad").exists()
    reason = "symlink" if kind == "dangling" else kind
    assert f'batchd_ignored_drops_total{{reason="{reason}"}} 1.0' in exposed()


def swap_before_the_claim(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at bad.jsonl and its rename it becomes something else."""
    rename = files.rename_durable

    def swap(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name == "bad.jsonl":
            source.unlink()
            put(kind, source)
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", swap)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_swapped_in_before_the_claim_fails(
    daemon: Daemon, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails, with a reason, and once; it is never opened, and kept like any other drop."""
    swap_before_the_claim(kind, monkeypatch)
    opened = []
    real = os.open

    def spy(path: Any, *rest: Any, **more: Any) -> int:
        opened.append(str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", spy)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    [(code, message)] = fails_with(daemon)
    assert code == "invalid_request"
    assert "not a regular file" in message and message.isprintable()
    assert not [path for path in opened if path.endswith("drop.jsonl")]
    others_go_on(daemon)
    daemon.until(lambda: not daemon.lifecycle.held)
    [kept] = [path for path in daemon.home.archive.iterdir() if drop_of(path) == "bad.jsonl"]
    assert os.path.lexists(kept / "drop.jsonl")
    assert not (kept / "drop.jsonl").is_file() or kind == "symlink"
    if kind == "folder":
        assert os.listdir(kept / "drop.jsonl") == ["x"]
    assert not (daemon.home.inbox / "bad.jsonl").exists()


def drop_of(batch: Path) -> Any:
    """Which drop a batch's folder is of."""
    return orjson.loads((batch / "record.json").read_bytes())["drop"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_swapped_in_before_a_crash_fails_after_it(
    daemon: Daemon, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon finds a claimed drop, whatever it is, and ends it in the same way."""
    swap_before_the_claim(kind, monkeypatch)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    list(daemon.loop.parts.intake.claim_some(time.time(), time.monotonic(), True, 10))
    assert not os.path.lexists(daemon.home.inbox / "bad.jsonl")
    assert not (daemon.home.outbox / "bad").exists()
    daemon.stop()
    monkeypatch.undo()
    after = Daemon(daemon.home.root.parent)
    try:
        [(code, message)] = fails_with(after)
        assert (code, "not a regular file" in message) == ("invalid_request", True)
        others_go_on(after)
        after.until(lambda: not after.lifecycle.held)
        assert all(not os.listdir(work) or work.is_file() for work in daemon.home.work.glob("*/batch_*"))
    finally:
        after.stop()


def test_another_file_that_is_swapped_in_before_the_claim_fails(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the one that stood still: what was looked at and what was taken must be the same file."""
    rename = files.rename_durable

    def swap(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name == "bad.jsonl":
            (daemon.home.inbox / ".other").write_bytes(GOOD_LINE)
            os.replace(daemon.home.inbox / ".other", source)
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", swap)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    [(code, _)] = fails_with(daemon)
    assert code == "input_modified"
    others_go_on(daemon)


def test_a_swapped_subfolder_moves_nothing_of_others(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subfolder that becomes a link between the look and the rename must not make us move a file that its
    owner could not: another batch's private input, say.
    """
    private = tmp_path / "private"
    private.mkdir(0o700)
    (private / "input.jsonl").write_bytes(GOOD_LINE)
    (daemon.home.inbox / "team").mkdir()
    (daemon.home.inbox / "team/input.jsonl").write_bytes(GOOD_LINE)
    rename = files.rename_durable

    def swap(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name == "input.jsonl" and "team" in source.parts:
            os.rename(daemon.home.inbox / "team", daemon.home.inbox / ".aside")
            os.symlink(private, daemon.home.inbox / "team")
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", swap)
    daemon.step()
    daemon.step()
    assert (private / "input.jsonl").exists()
    monkeypatch.undo()
    others_go_on(daemon)


def swap_for_link(folder: Path, target: Path) -> None:
    os.rename(folder, folder.with_name(f".{folder.name}"))
    os.symlink(target, folder)


@contextmanager
def before_call(number: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Act before this call, counted from 0, that this thread makes to the filesystem; gives the calls."""
    calls: list[str] = []
    here = threading.get_ident()

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if threading.get_ident() == here:
                calls.append(name)
                if len(calls) == number + 1:
                    act()
            return real(*given, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("scandir", "lstat", "stat", "open", "mkdir", "rename", "unlink"):
            patch.setattr(os, name, counting(name, getattr(os, name)))
        yield calls


def test_a_subfolder_that_is_swapped_at_any_instant_touches_nothing_of_others(
    daemon: Daemon, tmp_path: Path
) -> None:
    """For each call that a pass makes to the filesystem: the folder becomes a link just before it.

    What stands behind the link is neither moved, nor unlinked, nor read as a sidecar.
    """
    private = tmp_path / "private"
    private.mkdir(0o700)
    inodes = {}
    for name, content in (("x.jsonl", GOOD_LINE), ("x.batch.yaml", b"metadata: {secret: told}")):
        (private / name).write_bytes(content)
        inodes[name] = (private / name).stat().st_ino
    for at in itertools.count():
        team = daemon.home.inbox / f"team{at}"
        team.mkdir()
        (team / "x.jsonl").write_bytes(GOOD_LINE)
        (team / "x.batch.yaml").write_bytes(b"metadata: {mine: told}")
        with before_call(at, functools.partial(swap_for_link, team, private)) as calls:
            daemon.step()
        assert {entry.name: entry.stat().st_ino for entry in private.iterdir()} == inodes, at
        if len(calls) <= at:  # all calls of a pass were tried
            break
        daemon.until(lambda: not daemon.lifecycle.held)
    assert at > 20
    shown = [daemon.status(name) for name in os.listdir(daemon.home.outbox)]
    assert shown and all(each.metadata in (None, {"mine": "told"}) for each in shown)
    others_go_on(daemon)


def test_a_hard_link_is_a_file_and_stays_its_owners(daemon: Daemon, tmp_path: Path) -> None:
    """The file outside keeps its content and mode; a write through it after validation is told."""
    outside = tmp_path / "mine.jsonl"
    outside.write_bytes(GOOD_LINE)
    outside.chmod(0o640)
    daemon.run.may_go_on.clear()
    os.link(outside, daemon.home.inbox / "bad.jsonl")
    daemon.until(daemon.phase("running", "bad"))
    with open(outside, "ab") as file:
        file.write(GOOD_LINE * 2)
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed", name="bad"))
    assert len(daemon.lines("output.jsonl", "bad")) == 1
    assert "written to after it was validated" in daemon.extra("bad")["warnings"][0]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o640
    assert outside.read_bytes() == GOOD_LINE * 3


# ------------------------------------------------------------------ names

NAMES = [
    b"new\nline",
    b"carriage\rreturn",
    b"..dots..",
    b"a..",
    b"-rf",
    b"x" * 249,
    b"caf\xe9\xff\xfe",
    b"\x1b[2J\x1b]0;owned\x07",
    "\u202ejan".encode(),
    b"a b\tc",
    b"a~b%2Fc",
    b"'; rm -rf $HOME `id` |",
    b"{jan}%s",
    b"jan.jsonl",
    "Ja\u0301n".encode(),
    "J\u00e1n".encode(),
    b"JAN",
]
NAMES = [name for name in NAMES if not name.startswith(b".")]


def test_any_name_is_answered_under_a_harmless_one(daemon: Daemon) -> None:
    """Each drop ends in a folder of its own whose name is plain ASCII, and every status.json is valid."""
    for name in NAMES:
        path = os.fsencode(daemon.home.inbox) + b"/" + name + b".jsonl"
        with open(path, "wb") as file:
            file.write(GOOD_LINE)
        folder = os.fsencode(daemon.home.inbox) + b"/in " + name[:200] + b"_"
        os.mkdir(folder)
        with open(folder + b"/x.jsonl", "wb") as file:
            file.write(GOOD_LINE)
    expected = 2 * len(NAMES)

    def all_ended() -> bool:
        shown = [daemon.status(name) for name in os.listdir(daemon.home.outbox)]
        return len(shown) == expected and all(each and each.status == "completed" for each in shown)

    daemon.until(all_ended)
    inputs = set()
    for shown_as in os.listdir(daemon.home.outbox):
        assert all(char.isascii() and (char.isalnum() or char in "._-~%") for char in shown_as)
        assert not shown_as.startswith(".") and len(shown_as) <= 210
        shown = daemon.status(shown_as)
        assert shown.input_file_id.isprintable()
        inputs.add(shown.input_file_id)
    assert len(inputs) == expected
    assert os.listdir(daemon.home.root.parent) == ["spool"]
    others_go_on(daemon)


def test_a_name_of_255_bytes_has_room_for_no_sidecar(daemon: Daemon) -> None:
    """NAME.batch.yaml would have 260: that is no error of the drop."""
    (daemon.home.inbox / f"{'y' * 249}.jsonl").write_bytes(GOOD_LINE)
    [name] = daemon.until(lambda: os.listdir(daemon.home.outbox))
    daemon.until(daemon.is_at("completed", name=name))


# ------------------------------------------------------------------ contents

DEEP = b"[" * 100_000 + b"]" * 100_000
CONTENTS: list[tuple[str, bytes, str, str]] = [
    ("nested", b'{"custom_id":"a","body":' + DEEP + b"}\n", "invalid_json_line", "not JSON"),
    ("open", b"[" * 1_000_000 + b"\n", "invalid_json_line", "not JSON"),
    ("nan", GOOD_LINE.replace(b'"hi"', b"NaN"), "invalid_json_line", "not JSON"),
    ("infinity", GOOD_LINE.replace(b'"hi"', b"-Infinity"), "invalid_json_line", "not JSON"),
    ("huge float", GOOD_LINE.replace(b'"hi"', b"1e999"), "invalid_json_line", "not JSON"),
    ("surrogate", GOOD_LINE.replace(b"hi", b"\\ud800"), "invalid_json_line", "not JSON"),
    ("nul", GOOD_LINE.replace(b"hi", b"h\0i"), "invalid_json_line", "not JSON"),
    ("nuls", b"\0" * 5_000_000, "invalid_json_line", "not JSON"),
    ("latin-1", GOOD_LINE.replace(b"hi", b"caf\xe9"), "invalid_json_line", "not UTF-8: byte"),
    ("utf-16", GOOD_LINE.decode().encode("utf-16"), "invalid_json_line", "UTF-16; save it as UTF-8"),
    ("utf-16-le", GOOD_LINE.decode().encode("utf-16-le"), "invalid_json_line", "UTF-16"),
    ("utf-16-be", GOOD_LINE.decode().encode("utf-16-be"), "invalid_json_line", "UTF-16"),
    ("utf-32", GOOD_LINE.decode().encode("utf-32"), "invalid_json_line", "UTF-16"),
    ("gzip", gzip.compress(GOOD_LINE * 1000), "invalid_json_line", "gzip; uncompress it first"),
    ("bomb", gzip.compress(b"\0" * (64 << 20)), "invalid_json_line", "gzip; uncompress it first"),
    ("array", b"[" + GOOD_LINE.strip() + b"]\n", "invalid_request", "must be an object"),
    ("pretty", json.dumps(request("a"), indent=2).encode(), "invalid_json_line", "not JSON"),
    ("long id", orjson.dumps(request("x" * 10_000_000)) + b"\n", "invalid_request", "10000000 bytes"),
    ("long model", orjson.dumps(request("a", body={"model": "m" * 9_000_000})), "model_not_found", "mmm"),
    ("long method", orjson.dumps(request("a", method="\x1b[2J" * 1_000_000)), "invalid_method", "\\x1b[2J"),
    ("blow-up", GOOD_LINE.replace(b'"hi"', b"[" + b"[]," * 5_000_000 + b"0]"), "invalid_request", "arrays"),
    ("many bad", b'{"custom_id":"a"}\n' * 200_000, "missing_required_parameter", "method is missing"),
    ("twice", GOOD_LINE * 2, "duplicate_custom_id", "earlier line"),
    ("empty lines", b"\n" * 5_000_000, "empty_file", "no request"),
    ("crlf and bom", b"\xef\xbb\xbf" + b"\r\n \t\r\n" * 500_000, "empty_file", "no request"),
]  # fmt: skip


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

SIDECARS: list[tuple[str, bytes]] = [
    ("huge", b"metadata: {a: " + b"x" * (1 << 20) + b"}"),
    ("aliases", b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n"),
    ("recursive", b"&a [*a]"),
    ("nested lists", b"[" * 60_000),
    ("nested maps", b"{a: " * 15_000),
    ("nested dashes", b"- " * 30_000),
    ("many keys", b"".join(b"k%d: 1\n" % n for n in range(6_000))),
    ("merge keys", b"<<: [" + b"{a: 1}," * 8_000 + b"]"),
    ("quotes", b'"' + b"\\x41" * 15_000),
    ("invalid utf-8", b"metadata: {a: \xff\xfe\xfd}"),
    ("nul", b"pool: spot\0"),
    ("python", b"!!python/object/apply:os.system ['touch /tmp/owned']"),
    ("wrong tag", b'completion_window: !!int ""'),
    ("wrong bool", b"on_invalid: !!bool x"),
    ("wrong time", b"completion_window: !!timestamp x"),
    ("base 60", b"completion_window: 1" + b":1" * 20_000),
    ("long number", b"completion_window: 1" + b"0" * 400),
    ("infinite", b"completion_window: .inf"),
    ("negative", b"completion_window: -1"),
    ("a list", b"- pool: spot"),
    ("a string", b"pool spot"),
    ("numbers", b"metadata: {1: 2}"),
    ("unhashable", b"{[1]: 2}"),
    ("escapes", b'"\\e[2J\\n": 1'),
    ("surrogate", b'metadata: {a: "\\ud800"}'),
    ("two documents", b"--- {pool: spot}\n--- {pool: dedicated}\n"),
    ("endpoint", b"endpoint: /v1/chat/completions/../../x"),
]


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


# ------------------------------------------------------------------ many


def flood(daemon: Daemon, count: int) -> float:
    """Drop many files at once and drive until all are answered; seconds until the last was claimed."""
    for number in range(count):
        (daemon.home.inbox / f"{number}.jsonl").write_bytes(GOOD_LINE)
    started = time.monotonic()
    claimed_s = 0.0
    while time.monotonic() - started < 600:
        daemon.step()
        daemon.wake.wait(0.001)
        daemon.wake.clear()
        if not claimed_s and not any(name.endswith(".jsonl") for name in os.listdir(daemon.home.inbox)):
            claimed_s = time.monotonic() - started
        if claimed_s and not daemon.lifecycle.held:
            break
    print(f"{count} files: claimed in {claimed_s:.1f} s, all in {time.monotonic() - started:.1f} s")
    return claimed_s


def test_a_thousand_files_at_once(daemon: Daemon) -> None:
    """All are answered, none twice."""
    assert 0 < flood(daemon, 1_000) < 60
    assert len(os.listdir(daemon.home.outbox)) == 1_000
    assert all(len(daemon.lines("output.jsonl", name)) == 1 for name in os.listdir(daemon.home.outbox))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_thousand_files_at_once(daemon: Daemon) -> None:
    """More than a daemon holds at a time (scheduler.max_claimed): none is lost."""
    with bounded(600):
        assert 0 < flood(daemon, 20_000) < 600
    assert len(os.listdir(daemon.home.outbox)) == 20_000


# ------------------------------------------------------------------ other users

AS_NOBODY = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from tests.loops import Daemon  # before, since this Python may not be readable for others
os.setgroups([]); os.setgid({user}); os.setuid({user})
daemon = Daemon(Path({folder!r}))
daemon.until(daemon.is_at("failed", name="secret"))
daemon.drop("good", 3)
daemon.until(daemon.is_at("completed", name="good"))
print(json.dumps([[e.code, e.message] for e in daemon.status("secret").errors.data]))
daemon.stop()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_an_unreadable_file_says_what_to_do(tmp_path: Path) -> None:
    """A file of another user's, mode 0600, in an inbox open to all: it may be moved, but not read."""
    for folder in (tmp_path, *tmp_path.parents):
        if not stat.S_IMODE(folder.stat().st_mode) & 0o001:
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o011)
    home = create.create(tmp_path / "spool")
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    home.inbox.chmod(0o1777)
    secret = home.inbox / "secret.jsonl"
    secret.write_bytes(GOOD_LINE)
    secret.chmod(0o600)
    code = AS_NOBODY.format(repository=str(REPOSITORY), user=NOBODY, folder=str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert ran.returncode == 0, ran.stderr
    [[error, message]] = json.loads(ran.stdout.splitlines()[-1])
    assert error == "invalid_request"
    assert "cannot be read by the daemon: make it readable" in message


def test_an_inbox_open_to_all_keeps_the_rest_private(daemon: Daemon) -> None:
    """Mode 1777: what the daemon has of a batch is its own while it works, and after."""
    daemon.home.inbox.chmod(0o1777)
    old = os.umask(0)
    try:
        daemon.run.may_go_on.clear()
        daemon.drop("jan", 3)
        daemon.until(daemon.phase("running"))
        assert_private(daemon.home.work)
        daemon.run.may_go_on.set()
        daemon.until(daemon.is_at("completed"))
        daemon.until(lambda: not daemon.lifecycle.held)
        assert_private(daemon.home.work)
        assert_private(daemon.home.archive)
    finally:
        os.umask(old)
    for path in (daemon.home.outbox / "jan").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE((daemon.home.outbox / "jan").stat().st_mode) == 0o755


def assert_private(top: Path) -> None:
    """Nobody else gets in: the folder at the top is closed, and so is each within."""
    folders = [top, *(Path(root) / name for root, names, _ in os.walk(top) for name in names)]
    # out/ is on its way to the outbox, and gets its mode before that.
    open_ones = [f for f in folders if stat.S_IMODE(f.stat().st_mode) & 0o077 and f.name != "out"]
    assert open_ones == []


@pytest.mark.parametrize(
    ("folder", "mode"),
    [
        ("work", 0o710),
        ("archive", 0o755),
        ("outbox", 0o777),
        ("outbox", 0o1777),
        ("outbox", 0o703),
    ],
)
def test_a_spool_that_others_could_tamper_with_does_not_start(tmp_path: Path, folder: str, mode: int) -> None:
    """Who may write to the outbox can put a link in our way; work/ and archive/ are private."""
    home = create.create(tmp_path / "spool")
    (home.root / folder).chmod(mode)
    with pytest.raises(SpoolUnavailable, match="chmod"):
        create.check_writable(home)
    home.inbox.chmod(0o1777)
    (home.root / folder).chmod(0o700)
    create.check_writable(home)


# ------------------------------------------------------------------ what a network share does


def test_a_rename_that_is_reported_lost_and_happened(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated NFS call finds the work done and says ENOENT: our own target decides."""
    rename = os.rename

    def twice(source: Any, target: Any, **more: Any) -> None:
        rename(source, target, **more)
        if str(target).endswith("drop.jsonl"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))

    monkeypatch.setattr(os, "rename", twice)
    daemon.drop("jan", 3)
    daemon.until(daemon.is_at("completed"))
    assert len(daemon.lines("output.jsonl")) == 3


def test_a_drop_that_another_daemon_took_is_news_and_no_error(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone between the look and the rename: nothing of it is left with us."""
    rename = files.rename_durable

    def late(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name == "jan.jsonl":
            source.unlink()
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", late)
    daemon.drop("jan", 3)
    others_go_on(daemon)
    daemon.until(lambda: not daemon.lifecycle.held)
    assert os.listdir(daemon.home.outbox) == ["good"]
    assert [name for name in os.listdir(daemon.lease.folder) if name.startswith("batch_")] == []


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOENT, errno.ETIMEDOUT])
@pytest.mark.parametrize("function", ["scandir", "lstat"])
def test_an_inbox_that_cannot_be_read_for_a_while_is_not_empty(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    """A stale handle makes a scan incomplete, and nothing more: what waited is claimed when it is back."""
    real = getattr(os, function)
    is_away = True

    def stale(path: Any = ".", *rest: Any, **more: Any) -> Any:
        if is_away and str(path).startswith(str(daemon.home.inbox)):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, function, stale)
    daemon.drop("jan", 3)
    for _ in range(5):
        daemon.step()
    assert (daemon.home.inbox / "jan.jsonl").exists() or function == "lstat"
    is_away = False
    daemon.until(daemon.is_at("completed"), later_s=10.0)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_drop_that_cannot_be_opened_at_once(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """ESTALE on a path that was there is tried again; EACCES is told to the user."""
    real = os.open
    failures = [number]

    def stale(path: Any, *rest: Any, **more: Any) -> int:
        if failures and str(path).endswith("drop.jsonl"):
            failures.pop()
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", stale)
    daemon.drop("jan", 3)
    expected = "failed" if number == errno.EACCES else "completed"
    daemon.until(daemon.is_at(expected), later_s=10.0)


@pytest.mark.parametrize("hours", [-1_000_000, -1, 1, 1_000_000])
def test_the_age_of_a_file_means_nothing(daemon: Daemon, hours: int) -> None:
    """Clocks of other machines: a drop from the future, or from long ago, settles on our own clock."""
    daemon.drop("jan", 3)
    at = max(0, int(time.time()) + hours * 3600)
    os.utime(daemon.home.inbox / "jan.jsonl", (at, at))
    daemon.until(daemon.is_at("completed"))


def test_a_stat_from_a_cache_cannot_pass_half_a_file(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share shows an old size until the file is opened: it is refused, and no prefix of it is run."""
    daemon.drop("jan", 3)
    real = os.fstat

    def grown(descriptor: int) -> Any:
        facts = real(descriptor)
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith("drop.jsonl"):
            return facts
        known = {name: getattr(facts, name) for name in dir(facts) if name.startswith("st_")}
        return SimpleNamespace(**known | {"st_size": facts.st_size + 100})

    monkeypatch.setattr(os, "fstat", grown)
    assert fails_with(daemon, "jan")[0][0] == "input_modified"


def test_two_daemons_on_one_inbox(tmp_path: Path) -> None:
    """They share the drops: each is answered once."""
    both = [Daemon(tmp_path), Daemon(tmp_path)]
    try:
        for number in range(100):
            (both[0].home.inbox / f"{number}.jsonl").write_bytes(GOOD_LINE)
        ends_at = time.monotonic() + 60
        while len(both[0].lifecycle.held) + len(both[1].lifecycle.held) or os.listdir(both[0].home.inbox):
            for each in both:
                each.step()
            assert time.monotonic() < ends_at
        assert sorted(os.listdir(both[0].home.outbox)) == sorted(str(number) for number in range(100))
        instances = {both[0].extra(str(number))["instance"] for number in range(100)}
        assert len(instances) == 2
        assert all(len(both[0].lines("output.jsonl", str(number))) == 1 for number in range(100))
    finally:
        for each in both:
            each.stop()


# ------------------------------------------------------------------ logs and metrics


def exposed() -> str:
    """What Prometheus would scrape."""
    return prometheus_client.generate_latest(REGISTRIES[-1]).decode()


FORGED = '\n{"timestamp":"x","level":"error","event":"forged"}\n\x1b[2J batch_ended status=completed \u2028'


@pytest.fixture
def log_stream() -> Iterator[io.StringIO]:
    """Where log lines go; logging is afterwards as it was."""
    names = ["", *logs.OURS]
    before = [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names]
    yield io.StringIO()
    logging.captureWarnings(False)
    for name, (level, handlers) in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers[:] = handlers


@pytest.mark.parametrize("form", ["json", "console"])
def test_log_lines_cannot_be_forged(daemon: Daemon, log_stream: io.StringIO, form: Any) -> None:
    """Names, ids, models and sidecars full of line ends and escapes: each event is one line, and ours."""
    logs.configure(LogSettings(format=form), log_stream)
    name = "x" + FORGED.replace("/", "")
    (daemon.home.inbox / f"{name}.jsonl").write_bytes(orjson.dumps(request(FORGED, body=BODY)) + b"\n")
    (daemon.home.inbox / "model.jsonl").write_bytes(orjson.dumps(request("a", body={"model": FORGED})))
    (daemon.home.inbox / "wish.jsonl").write_bytes(GOOD_LINE)
    (daemon.home.inbox / "wish.batch.yaml").write_text(json.dumps({FORGED: 1, "pool": FORGED}))
    os.mkfifo(daemon.home.inbox / f"fifo{name}.jsonl")
    others_go_on(daemon)
    daemon.until(lambda: not daemon.lifecycle.held)
    written = log_stream.getvalue()
    assert "\x1b" not in written and "\u2028" not in written
    lines = written.split("\n")[:-1]
    assert len([line for line in lines if "batch_claimed" in line]) >= 4
    if form == "json":
        assert all("forged" not in orjson.loads(line)["event"] for line in lines)
    else:
        assert all(line[:2].isdigit() and line[2] == ":" for line in lines)


def test_metric_labels_cannot_be_forged(daemon: Daemon) -> None:
    """No label comes from what a user wrote: not a name, not a model, not a code."""
    hostile = 'evil"} 1\nbatchd_batches_total{status="completed'
    (daemon.home.inbox / f"{hostile}.jsonl").write_bytes(GOOD_LINE)
    for number in range(50):
        body = BODY | {"model": f"{hostile}{number}"}
        (daemon.home.inbox / f"model{number}.jsonl").write_bytes(orjson.dumps(request("a", body=body)))
    before = len(exposed().splitlines())
    others_go_on(daemon)
    daemon.until(lambda: not daemon.lifecycle.held)
    text = exposed()
    assert "evil" not in text
    assert len(text.splitlines()) <= before + 10  # ended batches of a status, not one series for each


def test_outbox_names_of_the_same_drop_do_not_collide(daemon: Daemon) -> None:
    """Dropped again and again, and beside a folder that a user made: never an overwrite."""
    for _ in range(3):
        (daemon.home.inbox / "jan.jsonl").write_bytes(GOOD_LINE)
        daemon.until(lambda: not (daemon.home.inbox / "jan.jsonl").exists())
    daemon.until(lambda: sorted(os.listdir(daemon.home.outbox)) == ["jan", "jan.2", "jan.3"])
