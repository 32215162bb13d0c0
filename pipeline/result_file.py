"""A result file of a merge: written, hashed and synced while the next lines are put together.

Each of the three goes on in a thread of its own. What the kernel has not written yet is synced every
SYNC_BYTES, so that the fsync at the end finds little left; one that fails is as final as that.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO

from pipeline.behind import Behind
from spool import failpoints, files
from spool.record import FileFacts

# A sync costs a commit of the filesystem's journal, some milliseconds.
SYNC_BYTES = 128 << 20
# Threads that a file keeps busy.
THREADS = 3


class ResultFile:
    """Begins to exist with its first line, durably with the stack's end; counts and hashes what it gets."""

    def __init__(
        self,
        target: Path,
        mode: int,
        stack: contextlib.ExitStack,
        step: failpoints.Step,
        executor: Executor,
    ) -> None:
        self.lines = 0
        self._target = target
        self._mode = mode
        self._stack = stack
        self._step: failpoints.Step = step
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._unsynced_bytes = 0
        self._writing, self._syncing = Behind(executor), Behind(executor)

    def write(self, content: memoryview, lines: int) -> None:
        """Write whole lines.

        Args:
            content: the lines with their line ends; it stays as it is from now on.
            lines: how many they are.

        Raises:
            OSError: these, or those before them, cannot be written.
        """
        if not lines:
            return
        file = self._file or self._open()
        self._writing.do(
            len(content),
            functools.partial(file.write, content),
            functools.partial(self._hash.update, content),
        )
        self._size_bytes += len(content)
        self.lines += lines
        self._unsynced_bytes += len(content)
        if self._unsynced_bytes >= SYNC_BYTES:
            self._syncing.do(self._unsynced_bytes, functools.partial(os.fdatasync, file.fileno()))
            self._unsynced_bytes = 0

    def facts(self) -> FileFacts | None:
        """Size, hash and lines, once the stack has ended; None where there is no file."""
        if self._file is None:
            return None
        return FileFacts(size_bytes=self._size_bytes, sha256=self._hash.hexdigest(), lines=self.lines)

    def _open(self) -> BinaryIO:
        self._file = self._stack.enter_context(files.durable(self._target, self._mode, self._step))
        # Also after an error, before the file is closed: a thread must not find its descriptor used anew.
        self._stack.callback(self._syncing.finish)
        self._stack.callback(self._writing.finish)
        return self._file
