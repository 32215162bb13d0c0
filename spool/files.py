"""Durable files: write, fsync, rename, fsync the folders, in that order and nothing less.

No maintained library does all of it (measured: safer 0 fsyncs, boltons 1, only the archived
atomicwrites 2). A failed fsync is final: the temporary file is dropped and the error is raised, never
retried on the same descriptor. A target that vanished raises FileNotFoundError, which callers in this
package read as "the batch was adopted by another daemon".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from spool import failpoints
from spool.failpoints import Step

TEMPORARY_SUFFIX = ".tmp"
# One write call per MiB keeps the number of system calls small without holding much in memory.
BUFFER_BYTES = 1 << 20


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def durable(target: Path, mode: int = 0o600, step: Step | None = None) -> Iterator[BinaryIO]:
    """Write a file so that it is there wholly or not at all, also after a power loss.

    Args:
        target: final path; what stands there is replaced.
        mode: permission bits, set whatever the umask is.
        step: its name among the crash points.

    Yields:
        A buffered binary file under a temporary name beside the target.

    Raises:
        FileNotFoundError: the folder is gone.
        OSError: nothing was written to the target.
    """
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        with open(descriptor, "wb", buffering=BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        failpoints.reach(step, "before")
        os.rename(temporary, target)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            os.unlink(temporary)
        raise
    fsync_folder(target.parent)
    failpoints.reach(step, "after")


def write_durable(target: Path, content: bytes, mode: int = 0o600, step: Step | None = None) -> None:
    """Write bytes as `durable` does."""
    with durable(target, mode, step) as file:
        file.write(content)


def rename_durable(source: Path, target: Path, step: Step | None = None) -> None:
    """Rename and make both folders durable: the target's first, so that a crash never loses the file.

    Raises:
        FileNotFoundError: the source, or the target's folder, is gone.
    """
    failpoints.reach(step, "before")
    os.rename(source, target)
    fsync_folder(target.parent)
    if source.parent != target.parent:
        # The old parent may have been renamed meanwhile by whoever adopts it; the name is gone from it
        # anyhow.
        with suppress(FileNotFoundError):
            fsync_folder(source.parent)
    failpoints.reach(step, "after")


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make one folder (never its parents) with these permissions, durable.

    Raises:
        FileExistsError: it is there already.
        FileNotFoundError: its parent is gone.
    """
    os.mkdir(folder, mode)
    os.chmod(folder, mode)  # mkdir obeys the umask, chmod does not
    fsync_folder(folder.parent)


def remove_temporaries(folders: Iterable[Path]) -> None:
    """Unlink what a killed writer left under a temporary name in these folders."""
    for folder in folders:
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(TEMPORARY_SUFFIX) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)
