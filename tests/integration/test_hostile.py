"""Hostile drops and names, other users, network shares, logs and metrics, against the real loop.

Each test drops something hostile beside a good file and drives the loop until both are through.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from config.settings import LogSettings
from daemon import logs, main
from spool import create, files
from spool.errors import SpoolUnavailable
from spool.failpoints import Step
from spool.layout import Layout
from tests.hostile import (
    BODY,
    GOOD_LINE,
    HIDDEN_NAMES,
    KINDS,
    NAMES,
    exposed,
    fails_with,
    others_go_on,
    put,
    request,
)
from tests.loops import Daemon

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534


# ------------------------------------------------------------------ what is no regular file


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_left_alone(daemon: Daemon, kind: str) -> None:
    """Never opened, never moved, reported once in the log and counted."""
    put(kind, daemon.home.inbox / "bad.jsonl")
    others_go_on(daemon)
    assert os.path.lexists(daemon.home.inbox / "bad.jsonl")
    assert not (daemon.home.outbox / "bad").exists()
    reason = "symlink" if kind == "dangling" else kind
    assert f'batchd_ignored_drops_total{{reason="{reason}"}} 1.0' in exposed()


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


def test_names_of_dots_are_left_alone(daemon: Daemon) -> None:
    """`..jsonl` and its like are hidden files, in the inbox as in its subfolders, and lead nowhere."""
    paths = []
    for name in HIDDEN_NAMES:
        for folder in (daemon.home.inbox, daemon.home.inbox / "team", daemon.home.inbox / ".. "):
            folder.mkdir(exist_ok=True)
            paths.append(folder / f"{os.fsdecode(name)}.jsonl")
            paths[-1].write_bytes(GOOD_LINE)
    others_go_on(daemon)
    assert all(path.exists() for path in paths)
    assert os.listdir(daemon.home.outbox) == ["good"]


def test_a_name_of_255_bytes_has_room_for_no_sidecar(daemon: Daemon) -> None:
    """NAME.batch.yaml would have 260: that is no error of the drop."""
    (daemon.home.inbox / f"{'y' * 249}.jsonl").write_bytes(GOOD_LINE)
    [name] = daemon.until(lambda: os.listdir(daemon.home.outbox))
    daemon.until(daemon.is_at("completed", name=name))


# ------------------------------------------------------------------ other users

AS_NOBODY = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
# Before, since this Python may not be readable for others; the merge is what a daemon imports late.
from pipeline import merge_results
from tests.loops import Daemon
os.setgroups([]); os.setgid({user}); os.setuid({user})
daemon = Daemon(Path({folder!r}))
{act}
daemon.stop()
"""
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def of_nobody() -> Iterator[Layout]:
    """A spool of another user's than the test's, its inbox open to all.

    Not within tmp_path: each start of pytest, another one's too, closes the folder above it to others.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        home = create.create(Path(folder) / "spool")
        for path in (home.root, *home.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        home.inbox.chmod(0o1777)
        yield home


def as_nobody(home: Layout, act: str) -> Any:
    """What a daemon of that user's prints as JSON, last."""
    code = AS_NOBODY.format(repository=str(REPOSITORY), user=NOBODY, folder=str(home.root.parent), act=act)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@only_root
def test_an_unreadable_file_says_what_to_do(of_nobody: Layout) -> None:
    """A file of another user's, mode 0600, in an inbox open to all: it may be moved, but not read."""
    secret = of_nobody.inbox / "secret.jsonl"
    secret.write_bytes(GOOD_LINE)
    secret.chmod(0o600)
    act = """
daemon.until(daemon.is_at("failed", name="secret"))
daemon.drop("good", 3)
daemon.until(daemon.is_at("completed", name="good"))
print(json.dumps([[e.code, e.message] for e in daemon.status("secret").errors.data]))
"""
    [[error, message]] = as_nobody(of_nobody, act)
    assert error == "invalid_request"
    assert "cannot be read by the daemon: make it readable" in message


@only_root
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_what_may_not_be_moved_costs_a_look_and_one_log_line(of_nobody: Layout, mode: int) -> None:
    """In an inbox open to all a user makes a folder of his own and fills it: it keeps its drops, and others
    are answered. No folder and no record is made for each try.
    """
    home = of_nobody
    (home.inbox / "alice").mkdir()
    (home.inbox / "alice").chmod(mode)
    for number in range(200):
        (home.inbox / f"alice/{number}.jsonl").write_bytes(GOOD_LINE)
    act = """
from daemon import intake
from spool import files
said, made = [], []
intake._log.warning = lambda event, **fields: said.append((event, fields["drop"], fields["error"]))
make_folder = files.make_folder
files.make_folder = lambda folder, *a, **more: (made.append(folder.name), make_folder(folder, *a, **more))
for later_s in range(0, 60, 3):
    daemon.step(later_s)
daemon.drop("good", 3)
daemon.until(daemon.is_at("completed", name="good"), later_s=60.0)
print(json.dumps([said, [name for name in made if name.startswith("batch_")]]))
"""
    said, made = as_nobody(home, act)
    assert len(made) == 1
    assert sorted(drop for _, drop, _ in said) == sorted(f"alice/{number}.jsonl" for number in range(200))
    assert {event for event, _, _ in said} == {"claim_failed"}
    assert all(f"(mode {mode:04o}, owner 0) keeps it" in error for _, _, error in said)
    assert len(os.listdir(home.inbox / "alice")) == 200


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


def test_a_status_cannot_drive_a_terminal(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a reason or a warning holds, `batchd status` prints each as one line without escapes."""
    daemon.drop("jan", 1)
    daemon.until(daemon.is_at("completed"))
    path = daemon.home.outbox / "jan/status.json"
    tree = orjson.loads(path.read_bytes())
    tree["batchd"]["warnings"] = [FORGED]
    tree["batchd"]["history"][0]["reason"] = FORGED
    tree["errors"] = {"object": "list", "data": [{"line": 1, "code": "x", "message": FORGED, "param": None}]}
    path.write_bytes(orjson.dumps(tree))
    assert main.main(["status", "jan", "--spool", str(daemon.home.root)]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert all(line.isprintable() for line in lines)
    assert sum("forged" in line for line in lines) == 3


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
