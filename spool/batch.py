"""A batch that this instance holds: its private folder, its record, and how it is shown in the outbox.

The folder is the fence. Whatever becomes public is first written inside it and renamed out of it by full
path, so an owner that slept through its own adoption finds its paths gone (BatchGone) and stops. A state is
durable in record.json before status.json shows it.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from spool import files, layout, status
from spool.errors import BatchGone, RecordUnknown, ResultsLost
from spool.failpoints import Step
from spool.record import FORMAT, Event, Final, Phase, Record, Status

_Model = TypeVar("_Model", Record, Final)

# A job that is pre-empted again and again must not make its record grow for ever.
_MAX_HISTORY = 200
_KEPT_FROM_START = 50


class Batch:
    """A claimed batch. Not thread-safe: one thread at a time has it.

    Attributes:
        folder: work/<instance>/<batch_id>~<epoch>.
        record: what record.json says.
        final: what final.json says, once it is durable.
    """

    def __init__(
        self, home: layout.Layout, folder: Path, record: Record, *, mode: int, final: Final | None = None
    ) -> None:
        self.home = home
        self.folder = folder
        self.record = record
        self.final = final
        self._mode = mode

    @property
    def id(self) -> str:
        """The batch id."""
        return self.record.batch_id

    @property
    def instance(self) -> str:
        """The id of the daemon that holds the batch."""
        return self.folder.parent.name

    @property
    def mode(self) -> int:
        """Permission bits of what is published."""
        return self._mode

    @property
    def outbox(self) -> Path:
        """The batch's folder in outbox/; to be asked for only once a name was tried."""
        assert self.record.outbox_name is not None
        return self.home.outbox / self.record.outbox_name

    @property
    def drop(self) -> Path:
        """The claimed file."""
        return self.folder / layout.DROP_FILE

    @property
    def has_drop(self) -> bool:
        """Whether something was claimed: mostly a file, but a link or a folder could be swapped in."""
        return os.path.lexists(self.drop)

    @property
    def is_placed(self) -> bool:
        """Whether our folder stands in the outbox; it may be gone, and another batch may have its name."""
        if self.record.outbox_name is None or (self.folder / "out").exists():
            return False
        is_ours = self._is_ours(self.record.outbox_name)
        # Every other batch's folder has a status.json from its first instant.
        return self.outbox.is_dir() if is_ours is None else is_ours

    @property
    def is_published(self) -> bool:
        """Whether its end was shown, wherever the folder that shows it has gone since."""
        return self.final is not None and (self.folder / layout.PUBLISHED_FILE).exists()

    @property
    def shown_status(self) -> object:
        """The status that the outbox shows of this batch; None where nothing there is known to be its own."""
        shown = self._read_shown(self.record.outbox_name) if self.record.outbox_name else None
        return shown.get("status") if shown and shown.get("id") == self.id else None

    def _is_ours(self, name: str) -> bool | None:
        """Whether the folder of a name in the outbox is this batch's; None where no status.json says so."""
        shown = self._read_shown(name)
        return None if shown is None else shown.get("id") == self.id

    def _read_shown(self, name: str) -> dict[str, Any] | None:
        """The status.json in the folder of a name in the outbox; empty where it is none of a batch's."""
        try:
            shown = orjson.loads(files.read_regular(self.home.outbox / name / layout.STATUS_FILE))
        except (FileNotFoundError, files.NotRegular, orjson.JSONDecodeError):
            return None
        except NotADirectoryError:
            return {}
        return shown if isinstance(shown, dict) else {}

    def save(self, **changes: Any) -> None:
        """Make a changed record durable.

        Raises:
            BatchGone: the batch was adopted by another daemon.
        """
        record = Record.model_validate({**dict(self.record), **changes})
        write_record(self.folder, record)
        self.record = record

    def advance(self, at: float, status_to: Status, phase: Phase, reason: str, **changes: Any) -> None:
        """Make a change of state durable, with its time and reason in the history.

        Raises:
            BatchGone: the batch was adopted by another daemon.
        """
        event = Event(at=at, status=status_to, phase=phase, reason=reason)
        history = [*self.record.history, event]
        if len(history) > _MAX_HISTORY:
            del history[_KEPT_FROM_START : len(history) - _MAX_HISTORY + _KEPT_FROM_START]
        self.save(status=status_to, phase=phase, history=tuple(history), **changes)

    def show(self, progress: status.Progress | None = None, final: Final | None = None) -> None:
        """Write status.json and move it into the outbox; a user who removed the folder gets it back.

        Nothing follows an end that was shown: what is told of the batch afterwards is not in status.json.

        Args:
            progress: durable progress.
            final: the outcome, once the results stand in the outbox: status.json becomes terminal.

        Raises:
            BatchGone: the batch was adopted by another daemon.
            ResultsLost: the outbox folder went away after results had been moved there.
            OSError: it could not be written; what stood there still stands.
        """
        if final is None and self.is_published:
            return
        if not self.is_placed:
            if not self.folder.is_dir():
                raise BatchGone(f"{self.id} was adopted by another daemon")
            if final:
                raise ResultsLost(f"{self.id}: its outbox folder was removed before the batch ended")
            if self._place(progress):
                return
        content = status.render(self.record, self.instance, progress, final)
        step: Step = "publish.status" if final else "status"
        try:
            # The mark costs no fsync: a kill takes nothing back, and a journal keeps the order of changes, so
            # that a power cut leaves no later removal of a user's without it. On a filesystem that keeps no
            # order it may go alone; then a batch whose folder was taken is published once more.
            mark = self.folder / layout.PUBLISHED_FILE if final else None
            files.write_out(
                self.folder, self.outbox / layout.STATUS_FILE, content, self._mode, step, mark=mark
            )
        except FileNotFoundError as error:
            if not self.folder.is_dir():
                raise BatchGone(f"{self.id} was adopted by another daemon") from error
            raise  # the user removed the folder in this instant: the next try places it anew

    def _place(self, progress: status.Progress | None) -> bool:
        """Rename out/, with status.json in it, to the first free name.

        The source is unique, so after a crash the folder tells: while out/ stands here, the rename did not
        happen.

        Returns:
            False where our folder stands there after all: a network filesystem did not show it for a while.
        """
        out = self._make_out()
        before = self.record.outbox_name
        relative = layout.from_exact(self.record.drop_path)
        numbered = (layout.outbox_name(relative, attempt) for attempt in itertools.count(1))
        # The name on record first: our folder may stand there, though it cannot be seen now.
        for name in itertools.chain([before] if before else [], numbered):
            is_free = not os.path.lexists(self.home.outbox / name)
            if is_free and self._move_out(out, name, progress):
                return True
            if name == before and self._is_ours(name):
                shutil.rmtree(out)
                return False
        raise AssertionError

    def _make_out(self) -> Path:
        """The folder that is to become the one in the outbox.

        Raises:
            BatchGone: the batch was adopted by another daemon.
        """
        out = self.folder / "out"
        try:
            with suppress(FileExistsError):
                files.make_folder(out, is_durable=False)  # lost, it is made again
        except FileNotFoundError as error:
            raise BatchGone(f"{self.id} was adopted by another daemon") from error
        files.remove_temporaries([out])  # of a writer that was killed here: the folder becomes public
        return out

    def _move_out(self, out: Path, name: str, progress: status.Progress | None) -> bool:
        """Rename out/ to a name, which is recorded first; False where it was taken since we looked.

        Raises:
            BatchGone: the batch was adopted by another daemon.
        """
        if name != self.record.outbox_name:
            self.save(outbox_name=name)
        content = status.render(self.record, self.instance, progress)
        try:
            files.write_durable(out / layout.STATUS_FILE, content, self._mode)
        except FileNotFoundError as error:
            raise BatchGone(f"{self.id} was adopted by another daemon") from error
        os.chmod(out, files.folder_mode(self.mode))
        try:
            files.rename_durable(out, self.outbox, "place")
        except OSError as error:
            is_taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
            if is_taken and os.path.lexists(self.outbox):
                return False
            raise
        return True

    def discard(self) -> None:
        """Remove the folder of a claim that was lost; never one that holds a drop after all.

        A drop that cannot be seen for a while, as on a network filesystem, keeps its folder from being
        removed; such a folder keeps its record, and is adopted. The record steps aside meanwhile instead of
        being unlinked, so that a kill in between costs it nothing: `take_back_record` is the way back.
        """
        with suppress(OSError):
            files.remove_temporaries([self.folder])
            if set(os.listdir(self.folder)) <= {layout.RECORD_FILE}:
                with suppress(FileNotFoundError):
                    os.rename(self.folder / layout.RECORD_FILE, layout.record_aside(self.folder))
                try:
                    os.rmdir(self.folder)
                except OSError:
                    take_back_record(self.folder)
                    raise
                os.unlink(layout.record_aside(self.folder))


def take_back_record(folder: Path) -> None:
    """Put a record back that stepped aside while it was found out whether its folder could be removed.

    Raises:
        OSError: it is still there, aside.
    """
    with suppress(FileNotFoundError):  # there is none, or no folder any more
        os.rename(layout.record_aside(folder), folder / layout.RECORD_FILE)


def write_record(folder: Path, record: Record, step: Step = "record") -> None:
    """Make a record durable.

    Raises:
        BatchGone: the batch was adopted by another daemon.
    """
    try:
        files.write_durable(folder / layout.RECORD_FILE, record.model_dump_json().encode() + b"\n", step=step)
    except FileNotFoundError as error:
        raise BatchGone(f"{record.batch_id} was adopted by another daemon") from error


def read_record(folder: Path) -> Record:
    """The record of a batch.

    Raises:
        FileNotFoundError: there is none.
        RecordUnknown: it is of another version, or damaged.
    """
    return _read(folder / layout.RECORD_FILE, Record)


def read_final(folder: Path) -> Final | None:
    """What was committed for a batch; None before the commit.

    Raises:
        RecordUnknown: it is of another version, or damaged.
    """
    try:
        return _read(folder / layout.FINAL_FILE, Final)
    except FileNotFoundError:
        return None


def _read(path: Path, model: type[_Model]) -> _Model:
    content = path.read_bytes()
    try:
        tree = orjson.loads(content)
        if tree.get("format") != FORMAT:
            raise RecordUnknown(
                f"{path} has format {tree.get('format')!r}; this version knows {FORMAT} only: "
                "use the version that made it"
            )
        return model.model_validate(tree)
    except (ValidationError, orjson.JSONDecodeError, AttributeError) as error:
        raise RecordUnknown(
            f"{path} is damaged or of another version, and left alone: {str(error).splitlines()[0]}"
        ) from error
