"""`batchd doctor`: fine on this machine's filesystems, and each fault of one that behaves worse is named."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon import main, watch
from daemon.commands import doctor
from spool import create, files, probe, probe_race
from spool.probe import Finding

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534


def find(folder: Path, name: str) -> Finding:
    """What one check finds."""
    here = folder / "here"
    here.mkdir()
    return probe.CHECKS[name](here)


def test_this_machine_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each check, exit code 0, and nothing is left behind."""
    assert main.main(["doctor", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == []
    checks = [line for line in lines if line.startswith(("ok ", "WARN"))]
    assert len(checks) == len(probe.CHECKS) + 1
    assert lines[-1].startswith("a spool can live there")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_folder_is_wrong_use_or_fails(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says so."""
    (tmp_path / "file").touch()
    assert main.main(["doctor", str(tmp_path / name)]) in (1, 2)
    told = capsys.readouterr()
    assert "No such file" in told.err or "nothing can be made here" in told.out


def test_a_fault_makes_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else is fine, and what is told of it is one line that cannot drive a terminal."""
    fault = Finding("FAIL", "fsync", "x\n\x1b[2Jok", "do")
    monkeypatch.setattr(probe, "CHECKS", {"fsync": lambda here: fault})
    assert main.main(["doctor", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "FAIL  fsync" in told and "\x1b" not in told
    assert told.splitlines()[-1] == "1 of 2 checks failed: do not put a spool there"


def test_an_error_nobody_foresaw_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other checks go on."""

    def broken(here: Path) -> Finding:
        raise OSError(errno.EIO, "Input/output error")

    fine = Finding("ok", "b", "fine")
    monkeypatch.setattr(probe, "CHECKS", {"a": broken, "b": lambda here: fine})
    assert [(f.level, f.found) for f in probe.probe(tmp_path)] == [
        ("FAIL", "Input/output error (5)"),
        ("ok", "fine"),
    ]
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ filesystems that behave worse


def raising(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def copying(source: Path, target: Path) -> None:
    """A rename that is none: as some object stores do it."""
    if Path(source).is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        shutil.rmtree(source)
    else:
        Path(target).write_bytes(Path(source).read_bytes())
        os.unlink(source)


def lists_stale(folder: Any = ".") -> list[str]:
    return ["file"] if str(folder).endswith("source") else []


def overwriting(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def no_links(path: Path, *_: object, **__: object) -> Any:
    facts = os.stat(path)
    return SimpleNamespace(st_mode=facts.st_mode)


def at_whole_seconds(path: Path) -> Any:
    facts = os.stat(path)
    return SimpleNamespace(st_mtime_ns=facts.st_mtime_ns // 10**9 * 10**9, st_size=facts.st_size)


def ahead(path: Path) -> Any:
    return SimpleNamespace(st_mtime=os.stat(path).st_mtime + 3600)


def behind(path: Path) -> Any:
    return SimpleNamespace(st_mtime=os.stat(path).st_mtime - 60)


def sizes_late(path: Path) -> Any:
    return SimpleNamespace(st_mtime_ns=1, st_size=0)


def open_to_all(path: Path) -> Any:
    facts = os.stat(path)
    return SimpleNamespace(st_mode=facts.st_mode | 0o077, st_uid=facts.st_uid)


def one_mode(path: Path) -> Any:
    facts = os.stat(path)
    return SimpleNamespace(st_mode=stat.S_IFMT(facts.st_mode) | 0o700, st_uid=facts.st_uid)


def squashed(path: Path) -> Any:
    facts = os.stat(path)
    return SimpleNamespace(st_mode=facts.st_mode, st_uid=facts.st_uid + 1)


def full(_: Path) -> Any:
    return SimpleNamespace(f_bavail=10, f_frsize=4096, f_files=9, f_favail=9)


def few_inodes(_: Path) -> Any:
    return SimpleNamespace(f_bavail=10**9, f_frsize=4096, f_files=9, f_favail=9)


def folding(path: str | Path) -> bool:
    return Path(path).name.casefold() in [name.casefold() for name in os.listdir(Path(path).parent)]


BOTH_WON = [("won", "won")] * probe.RACES
NEITHER = [("lost", "lost")] * probe.RACES

# (check, what of os is replaced and by what, level, what is said or advised)
WORSE: list[tuple[str, str, Any, str, str]] = [
    ("rename", "rename", copying, "FAIL", "inode number"),
    ("rename", "rename", lambda source, target: None, "FAIL", "old place"),
    ("rename race", "race", BOTH_WON, "FAIL", "200 were won twice and 200 lost"),
    ("folder rename", "rename", lambda source, target: None, "FAIL", "replaced one that held"),
    ("rename of open files", "rename", raising(errno.EBUSY), "WARN", "keeps it from being claimed"),
    ("rename of open files", "rename", raising(errno.EACCES), "WARN", "refused"),
    ("listing", "listdir", lists_stale, "FAIL", "actimeo"),
    ("exclusive create", "race", BOTH_WON, "FAIL", "200 were made by both"),
    ("exclusive create", "race", NEITHER, "FAIL", "of 200 files"),
    ("link", "link", raising(errno.EPERM), "WARN", "`batchd submit` does not work here"),
    ("link", "link", raising(errno.EOPNOTSUPP), "WARN", "not supported"),
    ("link", "link", overwriting, "FAIL", "replaced a file"),
    ("link", "race", BOTH_WON, "FAIL", "linked the same name"),
    ("links", "symlink", raising(errno.EPERM), "ok", "there are none"),
    ("links", "lstat", no_links, "WARN", "look like files"),
    ("links", "open", lambda path, flags: os.open(path, flags & ~os.O_NOFOLLOW), "FAIL", "follows a link"),
    ("open writers", "_lease_error", lambda path: errno.EINVAL, "WARN", "settle_s: 10 (60 on a network"),
    ("open writers", "_lease_error", lambda path: None, "WARN", "although someone writes"),
    ("open writers", "_lease_error", lambda path: errno.EAGAIN, "WARN", "cannot be seen"),
    ("modification times", "stat", at_whole_seconds, "WARN", "whole seconds"),
    ("modification times", "stat", sizes_late, "WARN", "settle_s: 60"),
    ("clock", "stat", ahead, "WARN", "ahead of our clock"),
    ("clock", "stat", behind, "WARN", "behind our clock"),
    ("batchd's names", "listdir", lambda path: [], "FAIL", "changed by the filesystem"),
    ("users' names", "listdir", lambda path: [], "WARN", "255 bytes come back changed"),
    ("similar names", "lexists", folding, "WARN", "differ in case are one"),
    ("modes", "stat", open_to_all, "FAIL", "dir_mode=0700"),
    ("modes", "stat", one_mode, "WARN", "spool.mode has no effect"),
    ("modes", "stat", squashed, "WARN", "uid"),
    ("room", "statvfs", full, "WARN", "min_free_bytes"),
    ("room", "statvfs", few_inodes, "WARN", "9 inodes free"),
]


@pytest.mark.parametrize(
    ("name", "function", "instead", "level", "said"), WORSE, ids=[f"{row[0]}-{row[4]}" for row in WORSE]
)
def test_each_fault_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    function: str,
    instead: Any,
    level: str,
    said: str,
) -> None:
    """A filesystem that behaves worse in one thing: what it is, and what to do."""
    monkeypatch.setattr(probe, "LISTING_LIMIT_S", 0.1)
    monkeypatch.setattr(probe, "RACES", 200)
    if function == "race":
        monkeypatch.setattr(probe_race, "race", lambda *_: instead)
    elif function == "_lease_error":
        monkeypatch.setattr(probe, function, instead)
    else:
        monkeypatch.setattr(probe, "os", Os(function, instead))
    finding = find(tmp_path, name)
    assert finding.level == level
    assert said in f"{finding.found}: {finding.advice}"


class Os:
    """The module `os`, with one function that is another; its path functions too."""

    def __init__(self, name: str, instead: Any) -> None:
        self._name = name
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            return self._instead
        if name == "path" and self._name == "lexists":
            return SimpleNamespace(lexists=self._instead, join=os.path.join)
        return getattr(os, name)


def test_folders_that_cannot_be_made_durable_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL from fsync of a folder, as some FUSE filesystems answer."""
    monkeypatch.setattr(files, "fsync_folder", raising(errno.EINVAL))
    finding = find(tmp_path, "fsync")
    assert (finding.level, "each of its steps" in finding.advice) == ("FAIL", True)


@pytest.mark.parametrize("deed", ["rename", "create", "link"])
def test_two_processes_really_race(tmp_path: Path, deed: Any) -> None:
    """Each thing is won once; by whom is the machine's choice: on a busy one, always the same."""
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    if deed == "link":
        source.touch()
    else:
        source.mkdir()
        for number in range(300):
            (source / str(number)).touch()
    said = probe_race.race(deed, source, target, 300)
    assert len(said) == 300
    assert all(sorted(pair) == ["lost", "won"] for pair in said)


@pytest.mark.parametrize(
    ("mounted", "level", "said"),
    [
        ("nfs4", "WARN", "inbox.backend: polling"),
        ("cifs", "WARN", "inbox.settle_s: 60"),
        ("ceph", "WARN", "lease.expire_s: 180"),
        ("fuse.s3fs", "WARN", "polling"),
        ("ext4", "ok", "inotify"),
    ],
)
def test_network_filesystems_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: str, level: str, said: str
) -> None:
    """By what is mounted there."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / {tmp_path} rw - {mounted} x rw\n")
    monkeypatch.setattr(watch, "MOUNTINFO", mountinfo)
    finding = doctor._check_filesystem(tmp_path)
    assert finding.level == level
    assert said in f"{finding.found} {finding.advice}"


def test_an_unknown_filesystem_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc: nobody can tell."""
    monkeypatch.setattr(watch, "MOUNTINFO", tmp_path / "nowhere")
    assert doctor._check_filesystem(tmp_path).level == "WARN"


def test_a_spool_that_stands_there_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its modes, and who may write where."""
    home = create.create(tmp_path / "spool")
    assert main.main(["doctor", str(home.root)]) == 0
    assert "ok    spool" in capsys.readouterr().out
    home.root.chmod(0o777)
    assert main.main(["doctor", str(home.root)]) == 0
    assert "chmod o-w" in capsys.readouterr().out
    home.work.chmod(0o755)
    assert main.main(["doctor", str(home.root)]) == 1
    assert "chmod 700" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_it_needs_no_privileges(tmp_path: Path) -> None:
    """As any user, in a folder of his; and one that is not his fails."""
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o011)
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    code = (
        "import os, sys; from pathlib import Path; from spool import probe, probe_race;"
        f"probe_race.race = lambda *a: [('won', 'lost')] * 200;"  # this Python may not be readable for others
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY});"
        "print([f.level + ' ' + f.name for f in probe.probe(Path(sys.argv[1])) if f.level != 'ok'])"
    )
    ran = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, capture_output=True, text=True
        )
        for folder in (mine, other)
    ]
    assert ran[1].stdout.strip() == "['FAIL writing']", ran[1].stderr
    # The race is a stand-in, so what it would have moved is where it was.
    assert ran[0].stdout.strip() == "['FAIL rename race']", ran[0].stderr


@pytest.fixture
def casefold(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem without upper and lower case: ext4 with its casefold feature."""
    image, point = tmp_path / "image", tmp_path / "mounted"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    point.mkdir()
    made = shutil.which("mkfs.ext4") and subprocess.run(
        ["mkfs.ext4", "-q", "-O", "casefold", "-E", "encoding=utf8", str(image)], capture_output=True
    )
    if (
        not made
        or made.returncode
        or subprocess.run(["mount", "-o", "loop", image, point], capture_output=True).returncode
    ):
        pytest.skip("no ext4 with casefold can be mounted here")
    try:
        folder = point / "folded"
        folder.mkdir()
        if subprocess.run(["chattr", "+F", str(folder)], capture_output=True).returncode:
            pytest.skip("chattr knows no +F here")
        yield folder
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_a_real_filesystem_that_folds_case(casefold: Path) -> None:
    """Only that is found, and that it is small."""
    found = {finding.name: finding for finding in probe.probe(casefold) if finding.level != "ok"}
    assert "differ in case or Unicode form are one" in found["similar names"].found
    assert set(found) <= {"similar names", "users' names", "room"}
