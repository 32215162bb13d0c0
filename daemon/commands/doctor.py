"""`batchd doctor DIR`: whether a spool can live in a folder of a user's mount, and what to set for it."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon import watch
from daemon.exits import CommandError, Exit
from daemon.logs import one_line
from spool import create, layout, probe
from spool.errors import SpoolUnavailable
from spool.probe import Finding

_WIDTH = max(len(name) for name in (*probe.CHECKS, "filesystem", "spool"))


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="check whether a spool can live in a folder",
        description="Check by trial what batchd rests on, in a folder on the mount that is to hold a spool: "
        "renames, races of two processes, fsync, names, clock, modes, room. Only a hidden scratch folder is "
        "made, and it is removed. Exit code 0: a spool can live there (read the warnings); 1: it cannot.",
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder on that mount; need not be a spool")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each check: ok, WARN or FAIL, what was found, and what to do."""
    folder: Path = arguments.dir
    levels = []
    try:
        for finding in _examine(folder.resolve(strict=True)):
            levels.append(finding.level)
            advice = f": {finding.advice}" if finding.advice else ""
            print(
                f"{finding.level:<4}  {finding.name:<{_WIDTH}}  {one_line(finding.found + advice)}",
                flush=True,
            )
    except OSError as error:
        raise CommandError(f"{folder} cannot be examined: {error.strerror}", Exit.WRONG_USE) from error
    failed, warned = levels.count("FAIL"), levels.count("WARN")
    if failed:
        print(f"\n{failed} of {len(levels)} checks failed: do not put a spool there")
        return Exit.FAILED
    print(f"\na spool can live there{f'; {warned} warnings say what to set' if warned else ''}")
    return Exit.DONE


def _examine(folder: Path) -> Iterator[Finding]:
    yield _check_filesystem(folder)
    yield from probe.probe(folder)
    if (folder / "spool.json").exists():
        yield from _check_spool(layout.Layout(folder))


def _check_filesystem(folder: Path) -> Finding:
    """Whether changes that others make can be heard."""
    try:
        mountinfo = os.fsdecode(watch.MOUNTINFO.read_bytes())
    except OSError:
        mountinfo = ""
    kind = watch.filesystem_of(folder, mountinfo)
    if kind is None:
        return Finding(
            "WARN", "filesystem", "of unknown type", "if it is a network share, inbox.backend: polling"
        )
    if watch.is_network(kind):
        found = f"{kind}: others may change it unseen by this machine"
        advice = "inbox.backend: polling, inbox.settle_s: 60, lease.expire_s: 180; see docs/shared-volumes.md"
        return Finding("WARN", "filesystem", found, advice)
    return Finding("ok", "filesystem", f"{kind}: local, changes are heard (inotify)")


def _check_spool(home: layout.Layout) -> Iterator[Finding]:
    """What a spool that stands there already needs beside."""
    try:
        create.check(home)
        create.check_writable(home)
    except SpoolUnavailable as error:
        yield Finding("FAIL", "spool", str(error))
    else:
        yield Finding("ok", "spool", "its folders are there, private, and on one filesystem")
    inbox = os.stat(home.inbox)
    if inbox.st_mode & stat.S_ISVTX and inbox.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        found = "the inbox is sticky and belongs to another user: others' drops cannot be claimed"
        yield Finding("FAIL", "inbox", found, f"chown it to uid {os.geteuid()}, or chmod -t")
    for each in (home.root, home.outbox):
        if stat.S_IMODE(os.stat(each).st_mode) & 0o002:
            found = f"{each.name}/ is writable for all users, who can put links in batchd's way"
            yield Finding("WARN", "spool", found, f"chmod o-w {each}")
