"""Durable files: write, fsync, rename, fsync the folders, in that order and nothing less.

No maintained library does all of it (measured: safer 0 fsyncs, boltons 1, only the archived
atomicwrites 2). A failed fsync is final: the temporary file is dropped and the error is raised, never
retried on the same descriptor. A target that vanished raises FileNotFoundError, which callers in this
package read as "the batch was adopted by another daemon". What others may have put somewhere is opened by
`open_regular` and `open_folder`, which follow no link and wait for nobody.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from spool import failpoints
from spool.failpoints import Step

TEMPORARY_SUFFIX = ".tmp"
# How a file is opened that others may have put there: not through a link, not waiting for a FIFO's writer,
# and no terminal becomes ours.
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# One write call per MiB keeps the number of system calls small without holding much in memory.
BUFFER_BYTES = 1 << 20
# Of a status.json, which has 1 MB at most: 100 errors, 200 events and a user's metadata.
MAX_READ_BYTES = 16 << 20


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NotRegular(OSError):
    """What stands there is no regular file, and was not opened.

    Attributes:
        kind: symlink, folder, fifo, socket or device.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"it is a {kind}, not a regular file")
        self.kind = kind


def kind_of(mode: int) -> str:
    """The name of what is no regular file, by the mode that stat gives."""
    for is_kind, name in (
        (stat.S_ISLNK, "symlink"),
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
    ):
        if is_kind(mode):
            return name
    return "device"


def open_regular(path: Path, folder: int | None = None) -> BinaryIO:
    """Open a file for reading that others may have put there.

    Args:
        path: what is opened.
        folder: a descriptor of the folder that a relative path starts from.

    Raises:
        NotRegular: it is something else.
        OSError: it cannot be opened.
    """
    _must_be_regular(os.lstat(path, dir_fd=folder))
    descriptor = os.open(path, READ_FLAGS, dir_fd=folder)
    try:
        _must_be_regular(os.fstat(descriptor))  # it may have been swapped since
        return open(descriptor, "rb", buffering=BUFFER_BYTES)
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path) -> bytes:
    """The content of a small file that others may have put there.

    Raises:
        NotRegular: it is something else, or larger than MAX_READ_BYTES.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(MAX_READ_BYTES + 1)
    if len(content) > MAX_READ_BYTES:
        raise NotRegular(f"file of more than {MAX_READ_BYTES} bytes")
    return content


def _must_be_regular(facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise NotRegular(kind_of(facts.st_mode))


def open_folder(top: Path, relative: Path) -> int:
    """Open a folder beneath another, part by part: a link in the way leads nowhere, whenever it came there.

    Args:
        top: where the walk starts; no link itself.
        relative: the way down from there.

    Returns:
        A descriptor, for the caller to close.

    Raises:
        FileNotFoundError: a part is gone.
        NotADirectoryError: a part is a link, or no folder.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(top, flags)
    for part in relative.parts:
        above = descriptor
        try:
            descriptor = os.open(part, flags, dir_fd=above)
        finally:
            os.close(above)
    return descriptor


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
        OSError: the target is as it was, or its new content may be lost by a power cut.
    """
    with _replacing(target, target.parent, mode, step) as file:
        yield file
    fsync_folder(target.parent)
    failpoints.reach(step, "after")


@contextmanager
def _replacing(target: Path, folder: Path, mode: int, step: Step | None) -> Iterator[BinaryIO]:
    """Write a file under a temporary name in a folder, its content durably, and rename it to the target."""
    name = f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
    temporary = folder / name
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


def write_durable(target: Path, content: bytes, mode: int = 0o600, step: Step | None = None) -> None:
    """Write bytes as `durable` does."""
    with durable(target, mode, step) as file:
        file.write(content)


def write_out(
    folder: Path,
    target: Path,
    content: bytes,
    mode: int,
    step: Step | None = None,
    *,
    mark: Path | None = None,
) -> None:
    """Write a file in a private folder and rename it out of there, durably: it is whole at every instant.

    The private folder is not made durable: what a power loss brings back there is a temporary file.

    Args:
        folder: where it is written; of an adopted batch it is gone, which is the fence.
        target: final path, in another folder; what stands there is replaced.
        content: its bytes.
        mode: permission bits.
        step: its name among the crash points.
        mark: an empty file to be made as soon as the target stands, and not durably.

    Raises:
        FileNotFoundError: one of the folders is gone.
        OSError: the target is as it was, or its new content may be lost by a power cut.
    """
    with _replacing(target, folder, mode, step) as file:
        file.write(content)
    if mark:
        # Before the wait for the disk: whoever reads the target may act on it meanwhile.
        touch(mark)
    fsync_folder(target.parent)
    failpoints.reach(step, "after")


def touch(mark: Path) -> None:
    """Make an empty file, where that is possible: a mark is a precaution, and stops nothing."""
    with suppress(OSError):
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def rename_durable(
    source: Path, target: Path, step: Step | None = None, *, source_folder: int | None = None
) -> None:
    """Rename and make both folders durable: the target's first, so that a crash never loses the file.

    Args:
        source: what is renamed.
        target: always by its full path, which is what fences off an owner whose batch was adopted.
        step: its name among the crash points.
        source_folder: a descriptor of the source's folder, where others could swap a link into its path.

    Raises:
        FileNotFoundError: the source, or the target's folder, is gone.
    """
    failpoints.reach(step, "before")
    os.rename(source if source_folder is None else source.name, target, src_dir_fd=source_folder)
    fsync_folder(target.parent)
    if source_folder is not None:
        os.fsync(source_folder)
    elif source.parent != target.parent:
        # The old parent may have been renamed meanwhile by whoever adopts it; the name is gone from it
        # anyhow.
        with suppress(FileNotFoundError):
            fsync_folder(source.parent)
    failpoints.reach(step, "after")


def make_folder(folder: Path, mode: int = 0o700, *, is_durable: bool = True) -> None:
    """Make one folder (never its parents) with these permissions.

    Args:
        folder: its path.
        mode: permission bits.
        is_durable: whether it is there after a power loss; if not, the caller makes its parent durable before
            anything depends on it.

    Raises:
        FileExistsError: it is there already.
        FileNotFoundError: its parent is gone.
    """
    os.mkdir(folder, mode)
    os.chmod(folder, mode)  # mkdir obeys the umask, chmod does not
    if is_durable:
        fsync_folder(folder.parent)


def folder_mode(mode: int) -> int:
    """Permission bits of a published folder: whoever may read the files in it, may list it.

    Args:
        mode: of these files.
    """
    return 0o700 | mode | (mode & 0o444) >> 2


@lru_cache(maxsize=1024)
def ensure_folder(folder: Path) -> None:
    """Have a private folder, durably, whoever makes it: one that stands may be of a maker that was killed.

    What succeeded is remembered, so that this costs a process one fsync for each folder.

    Raises:
        FileNotFoundError: its parent is gone.
    """
    with suppress(FileExistsError):
        os.mkdir(folder)
    os.chmod(folder, 0o700)
    fsync_folder(folder.parent)


def remove_temporaries(folders: Iterable[Path]) -> None:
    """Unlink what a killed writer left under a temporary name in these folders."""
    for folder in folders:
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(TEMPORARY_SUFFIX) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)
