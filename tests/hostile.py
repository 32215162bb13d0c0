"""Hostile material for tests: what is no file, names, contents and sidecars; and what a daemon must keep to.

The daemon stays up, other batches go on, memory is bounded, and the user is told what is wrong.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import prometheus_client
import pytest

from tests.loops import Daemon

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
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


def exposed() -> str:
    """What Prometheus would scrape."""
    return prometheus_client.generate_latest(REGISTRIES[-1]).decode()


@contextmanager
def bounded(most_mib: int = MOST_MIB) -> Iterator[None]:
    """Fail if the process takes more than this on top of what it has now, at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, proc(5)
    before = memory_kib("VmRSS")
    yield
    grown_mib = (memory_kib("VmHWM") - before) >> 10
    assert grown_mib < most_mib, f"{grown_mib} MiB"


def memory_kib(name: str, process: int | str = "self") -> int:
    """A value of /proc/PID/status, see proc(5): VmRSS now, VmHWM at its peak."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
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

NAMES = [
    b"new\nline",
    b"carriage\rreturn",
    b"a..",
    b"a...b",
    b"%2e%2e%2f%2e%2e",
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
# These begin with a dot: hidden, and never a drop.
HIDDEN_NAMES = [b".", b"..", b"...", b"..dots..", b".hidden"]

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
