"""Partial results: the parts that a running batch has finished, linked into outbox/NAME/partial/.

They are hard links, so showing them costs no copy, whatever the size; where a filesystem has none, there is
no such folder. A line is `line TAB flags TAB … TAB json`, see parts.py: `cut -f7-` gives lines as they will
stand in output.jsonl (flag 1) or errors.jsonl. The folder is gone before the status is terminal.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from spool import files, parts

FOLDER = "partial"
# What does not pass by itself. A whole filesystem that is read-only for a while keeps status.json from being
# written as well, so that all is tried again.
_IN_THE_WAY = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.EBUSY,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.EEXIST,
    }
)


def show(batch: Path, outbox: Path, names: Iterable[parts.PartName], mode: int) -> None:
    """Link parts; those that are shown already stay.

    Args:
        batch: the batch's folder.
        outbox: its folder in outbox/.
        names: of its parts.
        mode: permission bits of what is published.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon, or its outbox folder was removed.
        OSError: they cannot be linked, as on a filesystem without hard links, or something is in the way.
    """
    folder = outbox / FOLDER
    if not os.path.lexists(folder):
        # Made in the batch's own folder, which is the fence: an owner that was adopted leaves nothing.
        own = batch / FOLDER
        with suppress(FileExistsError):
            os.mkdir(own)
        os.chmod(own, files.folder_mode(mode))
        os.rename(own, folder)
    inside = files.open_folder(outbox, Path(FOLDER))  # a link in its place would lead into another batch
    try:
        for name in names:
            part = parts.path_of(batch, name)
            os.chmod(part, mode & 0o444)  # its own folder stays private, and parts never change
            with suppress(FileExistsError):
                os.link(part, str(name), dst_dir_fd=inside)
    finally:
        os.close(inside)


def clear(outbox: Path) -> OSError | None:
    """Take them away: the batch is about to end.

    Returns:
        Why something is left that only a person can remove, such as a mount, an immutable file or a folder
        that another put there; None if all is gone.

    Raises:
        OSError: to be tried again.
    """
    try:
        inside = files.open_folder(outbox, Path(FOLDER))  # follows no link, and waits for no FIFO's writer
    except FileNotFoundError:
        if os.path.lexists(outbox / FOLDER):
            raise  # a network filesystem errs, in one of the two
        return None
    except OSError as error:
        return _left([error])
    problems = []
    try:
        for name in os.listdir(inside):
            try:
                os.unlink(name, dir_fd=inside)
            except OSError as error:
                problems.append(error)
    finally:
        os.close(inside)
    try:
        os.rmdir(outbox / FOLDER)
    except OSError as error:
        problems.append(error)
    return _left(problems)


def _left(problems: list[OSError]) -> OSError | None:
    for problem in problems:
        if problem.errno not in _IN_THE_WAY:
            raise problem
    return problems[0] if problems else None
