"""Make a spool, and check that a folder is one before anything is done in it.

`spool.json` carries the format and a random id. A root without it is "unavailable", never an empty spool:
that is what an unmounted volume looks like. A trial rename proves that the four folders share a filesystem,
which equal device numbers do not.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import orjson

from spool import files
from spool.errors import SpoolUnavailable
from spool.layout import Layout
from spool.record import FORMAT

# inbox and outbox are for users; what is ours alone is private.
_PUBLIC_MODE = 0o755
_PRIVATE_MODE = 0o700


# What a folder may hold that becomes a spool: what a cut-off `init` made, and what a new filesystem has.
_ALLOWED = frozenset({"inbox", "work", "outbox", "archive", "lost+found"})


def create(root: Path) -> Layout:
    """Make a spool in a folder that is new or empty; of an existing one, make what lacks.

    Raises:
        SpoolUnavailable: the folder cannot be written, or holds something else or another format.
    """
    layout = Layout(root)
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        foreign = sorted(set(os.listdir(layout.root)) - _ALLOWED)
        if foreign and not layout.identity.exists():
            raise SpoolUnavailable(
                f"{layout.root} holds other things ({foreign[0]}, ...) and no spool: name an empty folder"
            )
        for folder in layout.folders:
            if not folder.is_dir():
                private = folder in (layout.work, layout.archive)
                files.make_folder(folder, _PRIVATE_MODE if private else _PUBLIC_MODE)
        if not layout.identity.exists():
            # Last, so that a half-made spool is no spool.
            identity = {"format": FORMAT, "id": secrets.token_hex(16)}
            files.write_durable(layout.identity, orjson.dumps(identity) + b"\n", 0o644)
    except OSError as error:
        raise SpoolUnavailable(
            f"cannot make a spool in {layout.root}: {error.strerror} ({error.filename})"
        ) from error
    check(layout)
    return layout


def open_or_create(root: Path) -> Layout:
    """The spool at a root; made only where the root does not exist at all.

    Raises:
        SpoolUnavailable: as `create` and `check`.
    """
    layout = Layout(root)
    if not os.path.lexists(layout.root):
        return create(root)
    check(layout)
    return layout


def check(layout: Layout) -> str:
    """Whether this is a spool that this version can use.

    Returns:
        The spool's random id.

    Raises:
        SpoolUnavailable: it is not; the message says what to do.
    """
    try:
        identity = orjson.loads(layout.identity.read_bytes())
    except FileNotFoundError as error:
        raise SpoolUnavailable(
            f"no spool at {layout.root} (spool.json is missing): is the volume mounted? "
            f"To make one: batchd init {layout.root}"
        ) from error
    except (OSError, ValueError) as error:
        raise SpoolUnavailable(
            f"{layout.identity} cannot be read: {error}: mend the volume, or restore it from a snapshot"
        ) from error
    if not isinstance(identity, dict) or identity.get("format") != FORMAT or "id" not in identity:
        found = identity.get("format") if isinstance(identity, dict) else None
        raise SpoolUnavailable(
            f"{layout.identity} has format {found!r}; this version of batchd knows {FORMAT} only: "
            "use the version that made it"
        )
    for folder in layout.folders:
        if not folder.is_dir() or folder.is_symlink():
            raise SpoolUnavailable(
                f"{folder} is missing or no folder: batchd init {layout.root} makes what lacks"
            )
    return str(identity["id"])


def check_writable(layout: Layout) -> None:
    """Prove by trial that this user can move files between the folders, and by modes that no other user may.

    Raises:
        SpoolUnavailable: a folder is not writable, on another filesystem, or too open to others.
    """
    for folder in (layout.work, layout.archive):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077:
            raise SpoolUnavailable(f"{folder} is open to other users (mode {mode:04o}): chmod 700 {folder}")
    mode = stat.S_IMODE(layout.outbox.stat().st_mode)
    if mode & stat.S_IWOTH:  # a group is a choice of the operator's; the sticky bit keeps nobody from adding
        raise SpoolUnavailable(
            f"{layout.outbox} may be written to by every user (mode {mode:04o}), who could put a link where "
            f"results belong: chmod o-w {layout.outbox}"
        )
    name = f".trial-{secrets.token_hex(8)}"
    here = layout.work / name
    try:
        files.write_durable(here, b"")
        for folder in (layout.inbox, layout.outbox, layout.archive, layout.work):
            there = folder / name
            os.rename(here, there)
            here = there
    except OSError as error:
        raise SpoolUnavailable(
            f"cannot move a file from {here.parent} to {folder}: {error.strerror}; "
            "inbox, work, outbox and archive must be writable and on one filesystem"
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(here)
