"""A batch from claim to archive, step by step, with a crash between any two."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai.types import Batch as OpenAIBatch

from spool import attempts, claim, control, files, layout, partial, parts, plan, publish, recover, status
from spool import batch as batches
from spool.batch import Batch
from spool.errors import BatchGone, ResultsLost
from spool.record import FileFacts, Final, Phase, Record, Status
from tests import spools

# Of a batch that has ended, in archive/.
_KEPT = ["drop.jsonl", "final.json", "published", "record.json"]


def _status(batch: Batch) -> OpenAIBatch:
    return OpenAIBatch.model_validate(orjson.loads((batch.outbox / "status.json").read_bytes()), strict=True)


def _commit(batch: Batch, outcome: Status = Status.COMPLETED) -> None:
    merged = batch.folder / publish.MERGED_FOLDER
    merged.mkdir()
    (merged / "output.jsonl").write_bytes(b'{"a":1}\n')
    facts = FileFacts(size_bytes=8, sha256="0", lines=1)
    publish.commit(
        batch,
        Final(
            batch_id=batch.id, outcome=outcome, reason="done", at=1010.0, total=1, completed=1, output=facts
        ),
    )


def test_a_claim_shows_the_batch_as_validating(tmp_path: Path) -> None:
    """The drop has left the inbox and status.json parses with OpenAI's own type."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    shown = _status(batch)
    assert os.listdir(home.inbox) == []
    assert batch.outbox == home.outbox / "jan"
    assert (shown.status, shown.id, shown.input_file_id) == ("validating", batch.id, "jan.jsonl")
    assert (shown.created_at, shown.expires_at) == (1000, 1000 + 86400)
    assert shown.request_counts
    assert shown.request_counts.total == 0


def test_a_second_drop_of_the_same_name_gets_a_numbered_folder(tmp_path: Path) -> None:
    """Nothing is overwritten."""
    home, instance = spools.make(tmp_path)
    names = [spools.claimed(home, instance).record.outbox_name for _ in range(3)]
    assert names == ["jan", "jan.2", "jan.3"]


def test_a_drop_that_is_gone_is_no_claim(tmp_path: Path) -> None:
    """Another daemon was faster; nothing is left of our try."""
    home, instance = spools.make(tmp_path)
    assert claim.claim(home, instance, Path("jan.jsonl"), 1.0, spools.DEFAULTS) is None
    assert os.listdir(instance) == []


def test_a_sidecar_is_read_and_unlinked(tmp_path: Path) -> None:
    """Its window moves the deadline."""
    home, instance = spools.make(tmp_path)
    (home.inbox / "jan.batch.yaml").write_text("completion_window: 1h\nmetadata: {team: a}\n")
    batch = spools.claimed(home, instance)
    assert os.listdir(home.inbox) == []
    shown = _status(batch)
    assert (shown.expires_at, shown.completion_window, shown.metadata) == (4600, "1h", {"team": "a"})


def _at_once(target: Path) -> None:
    """A new sidecar stands there before the old one is unlinked, after a crash say."""
    target.write_text("pool: dedicated")


def _by_rename(target: Path) -> None:
    (target.parent / "new").write_text("pool: dedicated")
    (target.parent / "new").replace(target)


def _by_copy(target: Path) -> None:
    """As `cp -p` of one template does it: the same inode, size and modification time."""
    facts = target.stat()
    target.write_text("pool: auto")
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("replace", [_at_once, _by_rename, _by_copy])
def test_a_sidecar_that_was_replaced_is_the_next_drops(
    tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    """Known by its inode alone, one that was written over was unlinked, and so its wishes were lost."""
    home, instance = spools.make(tmp_path)
    target = home.inbox / "jan.batch.yaml"
    target.write_text("pool: spot")
    (home.inbox / "jan.jsonl").touch()
    batch = claim.claim(home, instance, Path("jan.jsonl"), 1000.0, spools.DEFAULTS)
    assert batch
    replace(target)
    claim.finish(batch)
    assert batch.record.sidecar.pool == "spot"
    assert os.listdir(home.inbox) == ["jan.batch.yaml"]


def test_a_sidecar_that_cannot_be_removed_is_told_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder was closed after the claim, say: once the batch waited for that for ever."""
    home, instance = spools.make(tmp_path)
    (home.inbox / "jan.batch.yaml").write_text("pool: spot")

    def refuse(path: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "unlink", refuse)
    batch = spools.claimed(home, instance)
    claim.finish(batch)
    monkeypatch.undo()
    [warning] = batch.record.warnings
    assert "sidecar cannot be removed" in warning
    assert _status(batch).status == "validating"
    assert os.listdir(home.inbox) == ["jan.batch.yaml"]


@pytest.mark.parametrize("kind", ["fifo", "symlink"])
def test_what_a_reader_puts_in_the_place_of_status_json_is_replaced(tmp_path: Path, kind: str) -> None:
    """With a spool.mode that lets a group write: nothing waits for a FIFO's writer, no link is followed."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    (batch.outbox / "status.json").unlink()
    if kind == "fifo":
        os.mkfifo(batch.outbox / "status.json")
    else:
        os.symlink(tmp_path / "elsewhere", batch.outbox / "status.json")
    batch.show()
    assert _status(batch).status == "validating"
    assert not (tmp_path / "elsewhere").exists()


def test_a_bad_sidecar_is_kept_in_the_record(tmp_path: Path) -> None:
    """The batch is claimed all the same, and will fail with the reason."""
    home, instance = spools.make(tmp_path)
    (home.inbox / "jan.batch.yaml").write_text("pool: cheap\n")
    assert "sidecar pool" in str(spools.claimed(home, instance).record.sidecar_error)


def test_a_user_who_removes_the_outbox_folder_gets_it_back(tmp_path: Path) -> None:
    """The next status makes it anew."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    shutil.rmtree(batch.outbox)
    batch.show()
    assert _status(batch).status == "validating"


def test_an_owner_that_was_adopted_publishes_nothing(tmp_path: Path) -> None:
    """Every step that would be seen raises BatchGone once the folder was renamed away."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    before = (batch.outbox / "status.json").read_bytes()
    batch.folder.rename(home.work / "elsewhere")
    with pytest.raises(BatchGone):
        batch.show()
    with pytest.raises(BatchGone):
        batch.save(pool="spot")
    with pytest.raises(BatchGone):
        publish.commit(batch, Final(batch_id=batch.id, outcome=Status.FAILED, reason="", at=1.0))
    assert (batch.outbox / "status.json").read_bytes() == before


def test_an_outcome_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It has neither a timeline nor latencies; both are unknown then."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    path = batch.folder / layout.FINAL_FILE
    tree = orjson.loads(path.read_bytes())
    assert tree.pop("timeline") is None and tree.pop("latency") is None
    path.write_bytes(orjson.dumps(tree))
    assert batches.read_final(batch.folder) == batch.final


def test_a_committed_batch_is_published_and_archived(tmp_path: Path) -> None:
    """The terminal status comes with the files it names, and only drop, record and outcome are kept."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    publish.publish(batch)
    publish.archive(batch)
    shown = _status(batch)
    assert (shown.status, shown.completed_at, shown.output_file_id) == ("completed", 1010, "jan/output.jsonl")
    assert shown.usage
    assert (home.outbox / "jan/output.jsonl").read_bytes() == b'{"a":1}\n'
    assert sorted(os.listdir(home.outbox / "jan")) == ["output.jsonl", "status.json"]
    assert sorted(os.listdir(home.archive / batch.id)) == _KEPT
    assert os.listdir(instance) == []


def test_a_late_cancel_is_refused_with_a_reason(tmp_path: Path) -> None:
    """`cancel` becomes `cancel.refused`; the outcome stays."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    control.request_cancel(batch.outbox)
    publish.publish(batch)
    publish.archive(batch)
    assert "already ended as completed" in (batch.outbox / "cancel.refused").read_text()
    assert not control.cancel_requested(batch.outbox)


def _reports() -> tuple[list[tuple[str, str]], Callable[[str, str], None]]:
    reports: list[tuple[str, str]] = []
    return reports, lambda event, detail: reports.append((event, detail))


def _adopt(home: layout.Layout, dead: Path) -> tuple[list[Batch], list[tuple[str, str]]]:
    own = home.work / layout.new_instance()
    own.mkdir()
    reports, report = _reports()
    adopted = recover.adopt(home, own, dead, mode=0o644, report=report)
    for batch in adopted:
        if not batch.final:
            claim.finish(batch)
    return adopted, reports


def test_an_adopted_batch_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    """Record, outbox folder and parts are kept; the crash is counted."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    (adopted,), _ = _adopt(home, instance)
    assert adopted.folder.name == f"{batch.id}~2"
    assert adopted.record.plan == batch.record.plan
    assert adopted.outbox == batch.outbox


@pytest.mark.parametrize(("phase", "crashes"), [(Phase.RUNNING, 1), (Phase.QUEUED, 0), (Phase.VALIDATING, 1)])
def test_only_a_batch_that_was_worked_on_is_a_suspect(tmp_path: Path, phase: Phase, crashes: int) -> None:
    """A crash counts against what was under way, not against what waited."""
    home, instance = spools.make(tmp_path)
    spools.planned(spools.claimed(home, instance)).save(phase=phase)
    (adopted,), _ = _adopt(home, instance)
    assert adopted.record.crashes == crashes


def test_an_orderly_stop_is_no_crash(tmp_path: Path) -> None:
    """The `clean` marker of the instance says so."""
    home, instance = spools.make(tmp_path)
    spools.planned(spools.claimed(home, instance)).save(phase=Phase.RUNNING)
    (instance / "clean").touch()
    (adopted,), _ = _adopt(home, instance)
    assert adopted.record.crashes == 0


def test_crashes_start_anew_when_a_part_was_added(tmp_path: Path) -> None:
    """Only crashes that brought nothing new count towards giving up."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    batch.save(crashes=4, phase=Phase.RUNNING)
    parts.write(batch.folder, 0, 1, [parts.Result(0, True, parts.Usage(), b"{}")])
    (adopted,), _ = _adopt(home, instance)
    assert (adopted.record.crashes, adopted.record.parts) == (1, 1)


def test_narrowing_down_a_poison_is_progress_though_it_brings_no_part(tmp_path: Path) -> None:
    """A daemon that was killed again and again in the course of it once gave all open lines up."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    batch.save(phase=Phase.RUNNING)
    for suspect in [(40, 0), (5, 0), (1, 0), (1, 1), (1, 2), (1, 3)]:
        attempts.write(batch.folder, 0, {1: attempts.Suspect(*suspect)})
        (batch,), _ = _adopt(home, batch.folder.parent)
        assert batch.record.crashes == 1
    for crashes in range(2, recover.MAX_CRASHES + 1):
        (batch,), _ = _adopt(home, batch.folder.parent)
        assert batch.record.crashes == crashes
    attempts.write(batch.folder, 7, {900: attempts.Suspect(40, 0)})
    (batch,), _ = _adopt(home, batch.folder.parent)
    assert batch.record.crashes == 1


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """Temporary files, also in the folders that parts/ has in a large batch; the parts stay."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    shards = (0, parts.FOLDER_SHARDS)
    names = [
        parts.write(batch.folder, shard, 1, [parts.Result(shard, True, parts.Usage(), b"{}")])
        for shard in shards
    ]
    for name in names:
        path = parts.path_of(batch.folder, name)
        path.with_name(f"{name}.1-ab.tmp").touch()
    (adopted,), _ = _adopt(home, instance)
    assert parts.list_parts(adopted.folder) == names
    assert [path for path in adopted.folder.rglob("*") if path.name.endswith(".tmp")] == []


def test_a_claim_cut_off_before_its_rename_leaves_the_drop_in_the_inbox(tmp_path: Path) -> None:
    """A record without a drop is removed."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    batch.drop.rename(home.inbox / "jan.jsonl")
    adopted, _ = _adopt(home, instance)
    assert adopted == []
    assert os.listdir(instance) == []
    assert os.listdir(home.inbox) == ["jan.jsonl"]


def test_a_claim_cut_off_before_it_was_shown_is_shown(tmp_path: Path) -> None:
    """Recovery runs the claim's last steps; an outbox folder of another batch is not touched."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    batch.outbox.rename(batch.folder / "out")
    (home.outbox / "jan").mkdir()
    (home.outbox / "jan" / "mine").touch()
    (adopted,), _ = _adopt(home, instance)
    assert adopted.record.outbox_name == "jan.2"
    assert _status(adopted).output_file_id is None
    assert os.listdir(home.outbox / "jan") == ["mine"]


def test_a_record_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """It is reported, and stays where it is."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    (batch.folder / "record.json").write_bytes(b'{"format": 2}')
    adopted, reports = _adopt(home, instance)
    assert adopted == []
    assert reports[0][0] == "batch_left_alone"
    assert batch.folder.is_dir()


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_commit_that_was_cut_off_rolls_forward(tmp_path: Path, done: int) -> None:
    """After the commit point a crash anywhere gives the same outcome: done steps are not repeated."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    if done >= 1:
        (batch.folder / "merged/output.jsonl").rename(batch.outbox / "output.jsonl")
    if done >= 2:
        batch.show()
        shutil.rmtree(batch.folder / "parts")
    (adopted,), _ = _adopt(home, instance)
    assert adopted.final == batch.final
    publish.publish(adopted)
    publish.archive(adopted)
    assert _status(adopted).status == "completed"
    assert (adopted.outbox / "output.jsonl").read_bytes() == b'{"a":1}\n'
    assert sorted(os.listdir(home.archive / batch.id)) == _KEPT


@pytest.mark.parametrize("outcome", [Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED])
def test_each_terminal_status_has_its_own_time(tmp_path: Path, outcome: Status) -> None:
    """And no time of another; a failed validation has counts of 0 and no plan's times."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    batch.advance(1002.0, Status.IN_PROGRESS, Phase.RUNNING, "started", in_progress_at=1002.0)
    batch.save(cancel_requested_at=1003.0)
    final = Final(batch_id=batch.id, outcome=outcome, reason="r", at=1010.0)
    shown = OpenAIBatch.model_validate(orjson.loads(status.render(batch.record, "i", None, final)))
    times = {
        name: value
        for name, value in shown.model_dump().items()
        if name.endswith("_at") and value is not None and name not in ("created_at", "expires_at")
    }
    expected = {f"{outcome}_at": 1010}
    if outcome is not Status.FAILED:
        expected["in_progress_at"] = 1002
    if outcome is Status.CANCELLED:
        expected["cancelling_at"] = 1003
    assert times == expected


def test_the_history_is_bounded(tmp_path: Path) -> None:
    """A job that is pre-empted for ever keeps its first and its latest changes."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    for second in range(300):
        batch.advance(2000.0 + second, Status.IN_PROGRESS, Phase.PREEMPTED, "again")
    history = batches.read_record(batch.folder).history
    assert len(history) == 200
    assert (history[0].at, history[-1].at) == (1000.0, 2299.0)


def test_a_name_that_another_batch_took_is_left_to_it(tmp_path: Path) -> None:
    """The user removed our folder, and the next drop of that name got it: we get a new one."""
    home, instance = spools.make(tmp_path)
    first = spools.planned(spools.claimed(home, instance))
    shutil.rmtree(first.outbox)
    second = spools.planned(spools.claimed(home, instance))
    first.show()
    assert (first.record.outbox_name, second.record.outbox_name) == ("jan.2", "jan")
    _commit(first)
    publish.publish(first)
    publish.archive(first)
    assert _status(second).status == "validating"
    assert sorted(os.listdir(home.outbox / "jan.2")) == ["output.jsonl", "status.json"]


def _take_down(batch: Batch) -> None:
    """As an archiving that was cut off leaves the batch."""
    for folder in (publish.MERGED_FOLDER, parts.FOLDER, plan.FOLDER):
        shutil.rmtree(batch.folder / folder)


@pytest.mark.parametrize("is_cut_off", [False, True], ids=["whole", "archiving was cut off"])
@pytest.mark.parametrize("leaves_folder", [False, True])
def test_a_published_batch_that_its_user_took_away_is_only_archived(
    tmp_path: Path, is_cut_off: bool, leaves_folder: bool
) -> None:
    """After a crash before the archive it was published again, or, its parts gone, held for a person."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    publish.publish(batch)
    batch.outbox.rename(tmp_path / "mine")
    if leaves_folder:
        batch.outbox.mkdir()
    if is_cut_off:
        _take_down(batch)
    (adopted,), _ = _adopt(home, instance)
    publish.publish(adopted)
    publish.archive(adopted)
    assert [list(folder.iterdir()) for folder in home.outbox.iterdir()] == [[]] * leaves_folder
    assert sorted(os.listdir(home.archive / batch.id)) == _KEPT


def test_a_folder_that_is_taken_away_the_moment_its_end_can_be_read_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is still waited for: no crash is needed for a second publishing then."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    plain = files.fsync_folder

    def fsync_folder(folder: Path) -> None:
        if folder == batch.outbox and _status(batch).status == "completed":
            folder.rename(tmp_path / "mine")
        plain(folder)

    monkeypatch.setattr(files, "fsync_folder", fsync_folder)
    with pytest.raises(FileNotFoundError):
        publish.publish(batch)  # tried again by the loop, since the batch's own folder stands
    publish.publish(batch)
    publish.archive(batch)
    assert os.listdir(home.outbox) == []
    assert sorted(os.listdir(tmp_path / "mine")) == ["output.jsonl", "status.json"]


def test_a_mark_of_an_end_that_a_power_cut_took_back_hides_nothing(tmp_path: Path) -> None:
    """Our own folder in the outbox decides, where it stands."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    (batch.folder / layout.PUBLISHED_FILE).touch()
    publish.publish(batch)
    assert _status(batch).status == "completed"
    assert (batch.outbox / "output.jsonl").exists()


def test_an_end_that_is_found_shown_is_marked_as_well(tmp_path: Path) -> None:
    """The daemon was killed between the two: its user may take the folder before the next one archives."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    publish.publish(batch)
    (batch.folder / layout.PUBLISHED_FILE).unlink()
    publish.publish(batch)
    batch.outbox.rename(tmp_path / "mine")
    _take_down(batch)
    publish.publish(batch)
    assert os.listdir(home.outbox) == []


def test_what_is_in_the_way_in_partial_keeps_no_batch_from_its_end(tmp_path: Path) -> None:
    """Someone who may write there put a link to elsewhere; it is told, and nothing elsewhere is touched."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine").touch()
    os.symlink(tmp_path / "elsewhere", batch.outbox / partial.FOLDER)
    _commit(batch)
    assert isinstance(publish.publish(batch), NotADirectoryError)
    assert _status(batch).status == "completed"
    assert os.listdir(tmp_path / "elsewhere") == ["mine"]


def test_our_folder_is_looked_for_under_its_own_name_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jan` is free again while our `jan.2` cannot be seen: the batch once got a second folder, as `jan`."""
    home, instance = spools.make(tmp_path)
    first, second = (spools.claimed(home, instance) for _ in range(2))
    shutil.rmtree(first.outbox)
    assert second.outbox.name == "jan.2"

    def hiding(plain: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def look(path: str | Path, **more: Any) -> os.stat_result:
            if second.outbox in (Path(path), *Path(path).parents):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            return plain(path, **more)

        return look

    with monkeypatch.context() as patch:
        for call in ("stat", "lstat"):
            patch.setattr(os, call, hiding(getattr(os, call)))
        with pytest.raises(OSError, match="not empty"):
            second.show()
    second.show()
    assert os.listdir(home.outbox) == ["jan.2"]
    assert not (second.folder / "out").exists()


class Killed(BaseException):
    """The end of a process, which no handler of errors sees."""


def test_a_lost_claim_whose_drop_is_hidden_keeps_its_record_through_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its folder is tried: a drop without a record was left alone for ever, loudly."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)

    def rmdir(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: [layout.RECORD_FILE])
        patch.setattr(os, "rmdir", rmdir)
        with pytest.raises(Killed):
            batch.discard()
    assert sorted(os.listdir(batch.folder)) == [layout.DROP_FILE]
    (adopted,), reports = _adopt(home, instance)
    assert (adopted.id, adopted.has_drop, reports) == (batch.id, True, [])
    assert os.listdir(instance) == []


def test_a_lost_claim_whose_drop_is_hidden_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder cannot be removed, and so is as it was."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: [layout.RECORD_FILE])
        batch.discard()
    assert sorted(os.listdir(batch.folder)) == [layout.DROP_FILE, layout.RECORD_FILE]
    assert os.listdir(instance) == [batch.folder.name]


def test_a_claim_that_was_lost_leaves_nothing(tmp_path: Path) -> None:
    """Neither a folder nor its record."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    batch.drop.unlink()
    batch.discard()
    assert os.listdir(instance) == []


def test_results_that_vanish_before_the_end_are_not_called_complete(tmp_path: Path) -> None:
    """The user removed the folder between the results and the terminal status: nothing is archived."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    _commit(batch)
    (batch.folder / "merged/output.jsonl").unlink()
    with pytest.raises(ResultsLost):
        publish.publish(batch)
    assert batch.folder.is_dir()


def test_one_unreadable_record_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error at one batch is reported; the others are adopted, and it is tried again."""
    home, instance = spools.make(tmp_path)
    bad = spools.claimed(home, instance, "bad.jsonl")
    good = spools.claimed(home, instance, "good.jsonl")
    plain = batches.read_record

    def read(folder: Path) -> Record:
        if folder.name.startswith(bad.id):
            raise OSError(5, "Input/output error")
        return plain(folder)

    monkeypatch.setattr(recover, "read_record", read)
    adopted, reports = _adopt(home, instance)
    assert [batch.id for batch in adopted] == [good.id]
    assert reports[0][0] == "batch_not_adopted"
    assert bad.folder.is_dir()


def test_a_full_disk_during_adoption_loses_no_batch_from_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash cannot be counted, but the batch is ours and is handed over."""
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    batch.save(phase=Phase.RUNNING)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    own = home.work / layout.new_instance()
    own.mkdir()
    reports, report = _reports()
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "save", full)
        (adopted,) = recover.adopt(home, own, instance, mode=0o644, report=report)
    assert adopted.id == batch.id
    assert reports[0][0] == "adoption_incomplete"
