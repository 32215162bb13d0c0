"""Each decision of the loop, on real folders and real threads; see tests/loops.py."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from daemon import hooks, lifecycle
from daemon.closing import Closing
from daemon.held import Stage
from pipeline import errors, validate
from pipeline.run import Work
from pipeline.team import ModelState
from scheduler.assign import SMALL_REQUESTS
from scheduler.sla import Throughput
from spool import attempts, control, parts, publish
from spool.batch import Batch
from spool.errors import InstanceLost
from spool.parts import Usage
from tests.loops import Daemon, Fleet, Paced


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons on one spool, one after the other, and stops them."""
    made: list[Daemon] = []

    def build(**sections: Any) -> Daemon:
        made.append(Daemon(tmp_path, **sections))
        return made[-1]

    yield build
    for daemon in made:
        daemon.stop()


def _ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["custom_id"] for row in rows]


def test_a_drop_is_answered_in_input_order(make: Callable[..., Daemon]) -> None:
    """Output in order, no errors file, nothing left in work/, the drop in archive/."""
    daemon = make()
    daemon.drop(count=300)
    shown = daemon.until(daemon.is_at("completed"))
    assert _ids(daemon.lines("output.jsonl")) == [f"a{n}" for n in range(300)]
    assert not (daemon.home.outbox / "jan/errors.jsonl").exists()
    assert (shown.output_file_id, shown.error_file_id) == ("jan/output.jsonl", None)
    assert (shown.request_counts.total, shown.request_counts.completed) == (300, 300)
    assert shown.usage.total_tokens == 900
    assert shown.created_at <= shown.in_progress_at <= shown.finalizing_at <= shown.completed_at
    assert [event["phase"] for event in daemon.extra()["history"]] == [
        "validating",
        "queued",
        "running",
        "merging",
        "done",
    ]
    daemon.until(lambda: not daemon.lifecycle.held)
    assert (daemon.home.archive / shown.id / "drop.jsonl").exists()


class DownFleet(Fleet):
    """A fleet whose engine takes no requests."""

    def poll(self) -> list[ModelState]:
        return [ModelState("m", 1, 0, 0, None, 0, (), {}, Usage())]


def test_a_batch_that_waits_is_at_risk_as_well(make: Callable[..., Daemon]) -> None:
    """An alert that hears only of running batches is silent while an engine is down."""
    daemon = make(fleet=DownFleet())
    daemon.drop(sidecar="completion_window: 1h\n")
    daemon.until(daemon.phase("queued"))
    assert (daemon.extra()["sla"]["at_risk"], daemon.metrics._sla_at_risk._value.get()) == (False, 0)
    daemon.until(lambda: daemon.extra()["sla"]["at_risk"], later_s=3300)
    assert daemon.metrics._sla_at_risk._value.get() == 1


def test_shared_answers_are_told(make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs and at the end; the tokens are those of the lines, and the metric counts each once."""
    daemon = make()
    plain = parts.write

    def write(batch: Path, shard: int, attempt: int, results: list[parts.Result]) -> parts.PartName:
        shared = [row._replace(shared=row.line % 3 > 0) for row in results]
        return plain(batch, shard, attempt, shared)

    monkeypatch.setattr(parts, "write", write)
    daemon.run.answers_before_wait = 128
    daemon.run.fails_after = 100
    daemon.drop(count=300)
    daemon.until(lambda: daemon.is_at("in_progress")() and daemon.extra()["shared_requests"] == 66)
    daemon.run.fails_after = None
    shown = daemon.until(daemon.is_at("completed"), later_s=60)
    assert daemon.extra()["shared_requests"] == 200
    assert shown.usage.total_tokens == 900
    counted = daemon.metrics._requests_shared.labels("m")._value.get()
    assert counted == 200


def test_an_invalid_file_fails_with_all_its_errors(make: Callable[..., Daemon]) -> None:
    """Nothing runs; only failed_at is set; counts are 0."""
    daemon = make()
    daemon.drop(count=3, method="GET")
    shown = daemon.until(daemon.is_at("failed"))
    assert [(error.code, error.line) for error in shown.errors.data] == [
        ("invalid_method", 1),
        ("invalid_method", 2),
        ("invalid_method", 3),
    ]
    assert (shown.failed_at is not None, shown.in_progress_at, shown.output_file_id) == (True, None, None)
    assert shown.request_counts.total == 0
    assert daemon.run.calls == []


def test_skip_sends_bad_lines_to_the_errors_file(make: Callable[..., Daemon]) -> None:
    """`on_invalid: skip` runs the rest, and each line ends up once."""
    daemon = make()
    daemon.drop(count=2, sidecar="on_invalid: skip\n")
    with open(daemon.home.inbox / "jan.jsonl", "a") as file:
        file.write("not json\n")
    shown = daemon.until(daemon.is_at("completed"))
    assert _ids(daemon.lines("output.jsonl")) == ["a0", "a1"]
    (bad,) = daemon.lines("errors.jsonl")
    assert bad["response"]["body"]["error"]["code"] == "invalid_json_line"
    assert (shown.request_counts.completed, shown.request_counts.failed) == (2, 1)


def test_a_bad_sidecar_fails_the_batch(make: Callable[..., Daemon]) -> None:
    """With the key that is wrong."""
    daemon = make()
    daemon.drop(sidecar="pool: cheap\n")
    shown = daemon.until(daemon.is_at("failed"))
    assert shown.errors.data[0].code == "invalid_request"
    assert "sidecar pool" in shown.errors.data[0].message


def test_a_batch_that_asks_for_an_empty_pool_fails_at_once(make: Callable[..., Daemon]) -> None:
    """It would wait until its deadline otherwise."""
    daemon = make(scheduler={"pools": {"dedicated": {"capacity": 0}}})
    daemon.drop(sidecar="pool: dedicated\n")
    shown = daemon.until(daemon.is_at("failed"))
    assert "dedicated.capacity is 0" in shown.errors.data[0].message


def test_a_cancel_keeps_what_is_finished(make: Callable[..., Daemon]) -> None:
    """Finished lines stay in the output, the others get batch_cancelled; a second cancel changes nothing."""
    daemon = make()
    daemon.run.may_go_on.clear()
    daemon.run.answers_before_wait = 2
    daemon.drop(count=5)
    daemon.until(daemon.phase("running"))
    control.request_cancel(daemon.home.outbox / "jan")
    shown = daemon.until(daemon.is_at("cancelled"), later_s=2)
    assert _ids(daemon.lines("output.jsonl")) == ["a0", "a1"]
    failures = daemon.lines("errors.jsonl")
    assert _ids(failures) == ["a2", "a3", "a4"]
    assert {row["error"]["code"] for row in failures} == {"batch_cancelled"}
    assert shown.cancelling_at is not None
    assert shown.cancelled_at is not None
    assert (shown.request_counts.completed, shown.request_counts.failed) == (2, 3)
    assert not control.cancel_requested(daemon.home.outbox / "jan")


def test_a_cancel_after_the_end_is_refused(make: Callable[..., Daemon]) -> None:
    """Whoever touches `cancel` in a finished batch's folder finds the reason, and the outcome stays."""
    daemon = make()
    daemon.drop()
    daemon.until(daemon.is_at("completed"))
    daemon.until(lambda: not daemon.lifecycle.held)
    control.request_cancel(daemon.home.outbox / "jan")
    refused = daemon.home.outbox / "jan/cancel.refused"
    daemon.until(refused.exists, later_s=10)
    assert "already ended as completed" in refused.read_text()
    assert daemon.status().status == "completed"


def test_a_deadline_keeps_what_is_finished(make: Callable[..., Daemon]) -> None:
    """What is unfinished at deadline_at gets batch_expired."""
    daemon = make()
    daemon.run.may_go_on.clear()
    daemon.run.answers_before_wait = 1
    daemon.drop(count=3, sidecar="completion_window: 1h\n")
    daemon.until(daemon.phase("running"))
    shown = daemon.until(daemon.is_at("expired"), later_s=3601)
    assert _ids(daemon.lines("output.jsonl")) == ["a0"]
    assert {row["error"]["code"] for row in daemon.lines("errors.jsonl")} == {"batch_expired"}
    assert shown.expired_at is not None


def test_a_queued_batch_expires_too(make: Callable[..., Daemon]) -> None:
    """Straight from validating, with a line for each request."""
    daemon = make()
    daemon.run.may_go_on.clear()
    for n in range(4):
        daemon.drop(f"b{n}", count=2)  # the queue is in the order of the names
        daemon.until(daemon.phase("running" if n < 3 else "queued", f"b{n}"))
    daemon.until(daemon.is_at("expired", name="b3"), later_s=86401)
    assert [row["error"]["code"] for row in daemon.lines("errors.jsonl", "b3")] == ["batch_expired"] * 2


def test_runs_never_exceed_the_pools(make: Callable[..., Daemon]) -> None:
    """Two on spot, one on dedicated, the fourth waits and runs when a slot is free."""
    daemon = make()
    daemon.run.may_go_on.clear()
    for n in range(4):
        daemon.drop(f"b{n}")
        daemon.until(daemon.phase("running" if n < 3 else "queued", f"b{n}"))
    assert [daemon.extra(f"b{n}")["pool"] for n in range(4)] == ["spot", "spot", "dedicated", None]
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed", name="b3"))


def test_small_batches_share_a_run(make: Callable[..., Daemon]) -> None:
    """What waits together runs together."""
    daemon = make()
    (daemon.home.root / "pause").touch()
    for n in range(20):
        daemon.drop(f"b{n:02}")
    daemon.step()
    (daemon.home.root / "pause").unlink()
    daemon.until(lambda: all(daemon.is_at("completed", name=f"b{n:02}")() for n in range(20)), later_s=2)
    assert len(daemon.run.calls) < 20


def test_the_speed_of_a_model_is_told_with_the_number_of_its_runs(make: Callable[..., Daemon]) -> None:
    """Answers of two runs are not taken for those of one: a deadline is judged by the speed of a run."""
    seen: list[tuple[int, float]] = []

    class Told(Throughput):
        def observe(self, model: str, done: int, seconds: float, runs: float = 1) -> None:
            seen.append((done, runs))
            super().observe(model, done, seconds, runs)

    daemon = make(run=Paced(128))
    daemon.runs.throughput = Told()
    for name in ("jan", "feb"):
        daemon.drop(name, count=SMALL_REQUESTS)
    daemon.until(lambda: sum(done for done, _ in seen) == 2 * 128)
    assert max(runs for done, runs in seen if done) == 2


def test_a_pre_empted_batch_goes_on_where_it_was(make: Callable[..., Daemon]) -> None:
    """Its finished lines are kept and no line is answered twice."""
    daemon = make(scheduler={"pools": {"spot": {"capacity": 1, "preempt_every_s": 3600}}})
    daemon.run.may_go_on.clear()
    daemon.run.answers_before_wait = 2
    daemon.drop(count=5, sidecar="completion_window: 7d\npool: spot\n")
    daemon.until(daemon.phase("running"))
    daemon.until(lambda: len(daemon.run.calls) == 2, later_s=86400)
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed"), later_s=86400)
    assert _ids(daemon.lines("output.jsonl")) == [f"a{n}" for n in range(5)]
    assert "preempted" in [event["phase"] for event in daemon.extra()["history"]]
    assert daemon.extra()["attempt"] == 2


def test_a_paused_spool_claims_nothing(make: Callable[..., Daemon]) -> None:
    """The drop stays in the inbox while `pause` stands."""
    daemon = make()
    (daemon.home.root / "pause").touch()
    daemon.drop()
    for _ in range(5):
        daemon.step()
    assert (daemon.home.inbox / "jan.jsonl").exists()
    (daemon.home.root / "pause").unlink()
    daemon.until(daemon.is_at("completed"), later_s=2)


def test_a_nearly_full_disk_stops_claims_and_runs_and_is_told(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running batch waits with its finished lines, /readyz says so, and status.json does afterwards."""
    daemon = make(spool={"min_free_bytes": 1000})
    daemon.run.may_go_on.clear()
    daemon.run.answers_before_wait = 1
    daemon.drop(count=3)
    daemon.until(daemon.phase("running"))
    monkeypatch.setattr(control, "free_bytes", lambda home: 999)
    daemon.drop("feb")
    daemon.until(lambda: not daemon.runs.going, later_s=2)
    assert "disk nearly full" in daemon.health.not_ready()
    assert (daemon.home.inbox / "feb.jsonl").exists()
    monkeypatch.setattr(control, "free_bytes", lambda home: 1000)
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed"), later_s=4)
    daemon.until(daemon.is_at("completed", name="feb"), later_s=4)
    assert _ids(daemon.lines("output.jsonl")) == ["a0", "a1", "a2"]
    assert "disk space" in daemon.extra()["warnings"][0]


def test_a_run_that_fails_again_and_again_ends_with_engine_errors(make: Callable[..., Daemon]) -> None:
    """Nothing is lost and nothing hangs: each line says why it has no answer."""
    daemon = make()
    daemon.run.error = errors.RunError("the engine is broken")
    daemon.drop(count=2)
    later_s = 0.0
    while not daemon.is_at("completed")() and later_s < 1000:
        daemon.step(later_s)
        daemon.wake.wait(0.02)
        daemon.wake.clear()
        later_s += 2
    shown = daemon.status()
    assert shown is not None
    assert (shown.status, shown.request_counts.failed, shown.output_file_id) == ("completed", 2, None)
    assert {row["error"]["code"] for row in daemon.lines("errors.jsonl")} == {"engine_error"}
    assert "the engine is broken" in daemon.lines("errors.jsonl")[0]["error"]["message"]


def test_a_damaged_part_is_left_for_a_person(make: Callable[..., Daemon]) -> None:
    """Nothing is published from it, nothing is deleted, other batches go on."""
    daemon = make()
    daemon.run.may_go_on.clear()
    daemon.run.answers_before_wait = 1
    daemon.drop(count=2)
    daemon.until(daemon.phase("running"))
    (held,) = daemon.lifecycle.held.values()
    (held.batch.folder / parts.FOLDER / str(parts.PartName(0, 1, 2, 0, 0))).write_bytes(b"torn")
    daemon.until(lambda: held.stage == "damaged", later_s=2)
    daemon.run.may_go_on.set()
    daemon.drop("feb")
    daemon.until(daemon.is_at("completed", name="feb"), later_s=2)
    assert daemon.lines("output.jsonl") == []
    assert held.batch.folder.is_dir()


def test_a_stop_in_mid_batch_is_taken_up_by_the_next_start(make: Callable[..., Daemon]) -> None:
    """The finished lines are kept, the epoch rises, and it is no crash."""
    first = make()
    first.run.may_go_on.clear()
    first.run.answers_before_wait = 2
    first.drop(count=5)
    first.until(first.phase("running"))
    before = first.status()
    first.loop.shut_down()
    first.lease.release()
    second = make()
    second.until(second.is_at("completed"))
    assert before is not None
    assert second.status().id == before.id
    assert _ids(second.lines("output.jsonl")) == [f"a{n}" for n in range(5)]
    assert second.extra()["attempt"] == 2


def test_an_engine_that_cannot_start_ends_the_loop(make: Callable[..., Daemon]) -> None:
    """With its own one line; what was dropped stays."""
    daemon = make(fleet=Fleet(error="model 'm': no such folder"))
    with pytest.raises(errors.EngineStartError, match="no such folder"):
        daemon.until(lambda: False)


def test_a_batch_whose_engine_changed_is_held(make: Callable[..., Daemon]) -> None:
    """It says why, runs nothing, and can still be cancelled."""
    first = make()
    first.run.may_go_on.clear()
    first.run.answers_before_wait = 1
    first.drop(count=3)
    first.until(first.phase("running"))
    first.loop.shut_down()
    first.lease.release()
    second = make(model={"failure_rate": 0.5})
    second.until(lambda: second.extra()["warnings"])
    assert "set it back" in second.extra()["warnings"][0]
    assert second.run.calls == []
    control.request_cancel(second.home.outbox / "jan")
    second.until(second.is_at("cancelled"), later_s=2)
    assert _ids(second.lines("output.jsonl")) == ["a0"]


def test_a_file_that_changes_after_the_claim_fails(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that goes on through its old descriptor is noticed: input_modified."""
    daemon = make()
    plain = validate.check_and_copy

    def write_meanwhile(source: Any, folder: Path, *args: Any) -> Any:
        verdict = plain(source, folder, *args)
        with open(folder / "drop.jsonl", "a") as file:
            file.write("\n")
        return verdict

    monkeypatch.setattr(validate, "check_and_copy", write_meanwhile)
    daemon.drop()
    shown = daemon.until(daemon.is_at("failed"))
    assert shown.errors.data[0].code == "input_modified"


def test_runs_that_progress_may_fail_for_ever(make: Callable[..., Daemon]) -> None:
    """Only runs that bring nothing count towards giving up: each of these answers a few lines and fails."""
    daemon = make()
    daemon.run.fails_after = 2
    daemon.drop(count=20)
    later_s = 0.0
    while not daemon.is_at("completed")() and later_s < 1000:
        daemon.step(later_s)
        daemon.wake.wait(0.02)
        later_s += 2
    assert daemon.status().request_counts.completed == 20
    assert len(daemon.run.calls) >= 10


def test_runs_that_narrow_a_poison_down_may_fail_as_well(make: Callable[..., Daemon]) -> None:
    """A model that takes too long to come back ends each run, but each has noted who is suspected."""
    daemon = make()
    daemon.run.error = errors.RunError("its engine did not come back")
    daemon.drop(count=3)
    noted = iter(range(2 * lifecycle.MAX_FAILURES))

    def die(works: list[Work], *rest: Any) -> None:
        if (kills := next(noted, None)) is None:
            daemon.run.error = None
        else:
            attempts.write(works[0].folder, 0, {1: attempts.Suspect(1, kills)})
        daemon.run(works, *rest)

    daemon.runs._execute = die
    later_s = 0.0
    while not daemon.is_at("completed")() and later_s < 1000:
        daemon.step(later_s)
        daemon.wake.wait(0.02)
        later_s += 2
    assert daemon.status().request_counts.completed == 3


def test_io_errors_are_no_failed_runs(make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while a failed run is noted is tried again for as long as it takes, and then forgotten."""
    daemon = make()
    daemon.run.error = errors.RunError("once")
    daemon.drop(count=2)
    daemon.until(lambda: daemon.run.calls)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("spool.batch.Batch.advance", full)
        for later_s in range(0, 60, 2):
            daemon.step(later_s)
            daemon.wake.wait(0.01)
    daemon.run.error = None
    daemon.until(daemon.is_at("completed"), later_s=120)
    assert daemon.status().request_counts.completed == 2


def test_a_spool_that_goes_away_and_comes_back_loses_nothing(make: Callable[..., Daemon]) -> None:
    """While it is away nothing is made in its place and nobody forgets what he holds."""
    daemon = make()
    daemon.run.may_go_on.clear()
    daemon.run.answers_before_wait = 1
    daemon.drop(count=3)
    daemon.until(daemon.phase("running"))
    away = daemon.home.root.with_name("away")
    daemon.home.root.rename(away)
    daemon.run.may_go_on.set()
    for later_s in range(0, 20, 2):
        daemon.step(later_s)
        daemon.wake.wait(0.02)
    assert not daemon.home.root.exists()
    assert "spool unavailable" in daemon.health.not_ready()
    away.rename(daemon.home.root)
    daemon.until(daemon.is_at("completed"), later_s=60)
    assert _ids(daemon.lines("output.jsonl")) == ["a0", "a1", "a2"]


def test_a_cancel_does_not_wait_for_the_others_of_its_run(make: Callable[..., Daemon]) -> None:
    """Two batches share a run that hangs; the cancelled one ends."""
    daemon = make(scheduler={"pools": {"spot": {"capacity": 1}, "dedicated": {"capacity": 0}}})
    daemon.run.may_go_on.clear()
    for name in ("first", "a", "b"):
        daemon.drop(name)
        daemon.until(daemon.phase("running" if name == "first" else "queued", name))
    control.request_cancel(daemon.home.outbox / "first")
    daemon.until(daemon.phase("running", "b"), later_s=2)
    # Its worker begins when the loop has gone on.
    daemon.until(lambda: [len(call) for call in daemon.run.calls] == [1, 2], later_s=2)
    daemon.run.heeds_stop = False
    control.request_cancel(daemon.home.outbox / "b")
    daemon.until(daemon.is_at("cancelling", name="b"), later_s=4)
    daemon.until(daemon.is_at("cancelled", name="b"), later_s=20)
    assert daemon.status("a").status == "in_progress"


def test_a_daemon_that_was_taken_for_dead_ends(make: Callable[..., Daemon]) -> None:
    """Its folder was adopted and removed while it slept: it says so and stops, having published nothing."""
    daemon = make()
    daemon.step()
    shutil.rmtree(daemon.lease.folder)
    daemon.step(later_s=1.5)  # a network filesystem may fail to find it now and then
    daemon.step(later_s=3.0)
    with pytest.raises(InstanceLost, match="start again"):
        daemon.step(later_s=4.5)


def test_a_hook_is_told_once_of_each_end(make: Callable[..., Daemon], tmp_path: Path) -> None:
    """When its end can be read."""
    told = tmp_path / "told"
    command = (sys.executable, "-c", f"import sys; open({str(told)!r}, 'a').write(open(sys.argv[-1]).read())")
    daemon = make(hooks={"on_terminal": command})
    daemon.drop()
    daemon.until(lambda: daemon.status() and not daemon.lifecycle.held)
    assert orjson.loads(told.read_bytes())["status"] == "completed"
    assert daemon.metrics._hooks.labels("succeeded")._value.get() == 1


def test_a_hook_that_fails_keeps_nothing(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried three times; the batch has ended all the same."""
    monkeypatch.setattr(hooks, "BACKOFF_S", (0.01, 0.01))
    daemon = make(hooks={"on_terminal": ("false",)})
    daemon.drop()
    shown = daemon.until(daemon.is_at("completed"))
    daemon.until(lambda: not daemon.lifecycle.held)
    assert (daemon.home.archive / shown.id).is_dir()
    assert daemon.metrics._hooks.labels("failed")._value.get() == 1


def test_a_batch_that_cannot_be_put_away_is_told_of_once(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The archive is tried again, the hook is not."""
    told = tmp_path / "told"
    daemon = make(hooks={"on_terminal": (sys.executable, "-c", f"open({str(told)!r}, 'a').write('x')")})
    plain, failures = publish.archive, [1, 1]

    def archive(batch: Batch) -> None:
        if failures:
            failures.pop()
            raise OSError(5, "Input/output error")
        plain(batch)

    monkeypatch.setattr(publish, "archive", archive)
    daemon.drop()
    daemon.until(lambda: daemon.status() and not daemon.lifecycle.held, later_s=20)
    assert told.read_text() == "x"


def test_a_mistake_of_ours_costs_one_batch(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held for a person, whichever move made it; in the last one, it ended the daemon."""
    daemon = make()

    def archive(batch: Batch) -> None:
        raise KeyError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "archive", archive)
        daemon.drop()
        daemon.until(lambda: [held.stage for held in daemon.lifecycle.held.values()] == [Stage.DAMAGED])
    daemon.drop("feb")
    shown = daemon.until(daemon.is_at("completed", name="feb"))
    daemon.until((daemon.home.archive / shown.id).is_dir)
    daemon.step(later_s=5)
    assert len(daemon.lifecycle.held) == 1
    assert daemon.status().status == "completed"  # an end that was shown never changes


def test_a_hook_is_told_after_a_restart_though_the_results_were_taken_away(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At least once: where they stood; and nothing is published a second time."""
    told = tmp_path / "told"
    command = (sys.executable, "-c", f"import sys; open({str(told)!r}, 'a').write(sys.argv[-1])")
    daemon = make(hooks={"on_terminal": command})
    with monkeypatch.context() as patch:
        patch.setattr(Closing, "close", lambda self, held: None)  # it dies before that
        daemon.drop()
        shown = daemon.until(daemon.is_at("completed"))
        (daemon.home.outbox / "jan").rename(tmp_path / "mine")
        daemon.stop()
    daemon = make(hooks={"on_terminal": command})
    daemon.until((daemon.home.archive / shown.id).is_dir)
    daemon.until(lambda: not daemon.lifecycle.held)
    assert told.read_text() == str(daemon.home.outbox / "jan/status.json")
    assert os.listdir(daemon.home.outbox) == []
    assert sorted(os.listdir(tmp_path / "mine")) == ["output.jsonl", "status.json"]


def _partial(daemon: Daemon) -> list[dict[str, Any]]:
    """The lines that partial/ shows, as the page tells to read them."""
    folder = daemon.home.outbox / "jan/partial"
    rows = [row for part in sorted(folder.iterdir()) for row in part.read_bytes().splitlines()]
    return [orjson.loads(row.split(b"\t", 6)[6]) for row in rows]


def test_finished_parts_are_shown_while_a_batch_runs(make: Callable[..., Daemon], tmp_path: Path) -> None:
    """As they come, also after a restart; gone with the end, and what they held is what was published."""
    daemon = make(run=Paced(128, 256, 300))
    daemon.drop(count=300)
    daemon.until(lambda: (daemon.home.outbox / "jan/partial").exists())
    assert _ids(_partial(daemon)) == [f"a{n}" for n in range(128)]
    (part,) = (daemon.home.outbox / "jan/partial").iterdir()
    assert part.stat().st_mode & 0o777 == 0o444
    assert part.parent.stat().st_mode & 0o777 == 0o755
    first = _partial(daemon)
    daemon.loop.shut_down()  # while the run waits
    daemon.stop()
    daemon = make(run=Paced(128, 256, 300))
    daemon.until(lambda: len(list((daemon.home.outbox / "jan/partial").iterdir())) == 2)
    assert _ids(_partial(daemon)) == [f"a{n}" for n in range(256)]
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed"))
    assert daemon.lines("output.jsonl")[:128] == first
    assert sorted(os.listdir(daemon.home.outbox / "jan")) == ["output.jsonl", "status.json"]


def test_a_filesystem_without_links_shows_no_parts(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once; the batch goes on."""

    def link(source: object, target: object, *, dst_dir_fd: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    daemon = make(run=Paced(128))
    daemon.drop(count=300)
    daemon.until(daemon.phase("running"))
    (held,) = daemon.lifecycle.held.values()
    daemon.until(lambda: not held.shows_parts)
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed"))
    assert sorted(os.listdir(daemon.home.outbox / "jan")) == ["output.jsonl", "status.json"]
