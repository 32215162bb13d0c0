"""`verify`, `retry`, `status` and `pause`, on what the real loop leaves in the spool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from daemon.main import main
from tests.loops import Daemon, Paced, cancelled, ended


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A loop, whose spool the commands find by the environment."""
    made = Daemon(tmp_path, run=Paced(128))
    made.run.may_go_on.set()
    monkeypatch.setenv("BATCHD_SPOOL__ROOT", str(made.home.root))
    yield made
    made.stop()


def test_a_right_batch_is_proved(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Answered and refused lines, counts, sizes and hashes."""
    cancelled(daemon, sidecar="metadata: {team: a}\n")
    assert main(["verify", "jan"]) == 0
    told = capsys.readouterr().out
    assert "each of 300 requests has exactly one result" in told
    assert "counts 128 completed and 172 failed" in told
    assert told.count("as recorded") == 3


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("output.jsonl", lambda lines: lines[:-1], "has no result: output.jsonl ends after line 127"),
        ("output.jsonl", lambda lines: [*lines, lines[-1]], "but line 129 of output.jsonl"),
        ("errors.jsonl", lambda lines: lines[1:], "line 129 of the input, custom_id 'a128', has no result"),
        (
            "output.jsonl",
            lambda lines: [*lines[:-1], lines[-1] + b" "],
            "holds other bytes than were recorded",
        ),
    ],
)
def test_what_is_wrong_is_found(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], file: str, change: object, message: str
) -> None:
    """A line lost or doubled, or a byte changed after the end."""
    assert callable(change)
    cancelled(daemon, sidecar="metadata: {team: a}\n")
    path = daemon.home.outbox / "jan" / file
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    assert main(["verify", "jan"]) == 1
    assert message in capsys.readouterr().out


def test_what_got_no_answer_is_dropped_again(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """As a batch that names the old one, and that can be verified and retried itself."""
    cancelled(daemon, sidecar="metadata: {team: a}\n")
    assert main(["retry", "jan"]) == 0
    ended(daemon, "jan.retry")
    assert [row["custom_id"] for row in daemon.lines("output.jsonl", "jan.retry")] == [
        f"a{number}" for number in range(128, 300)
    ]
    assert daemon.status("jan.retry").metadata == {"team": "a", "retry_of": daemon.status("jan").id}
    assert main(["verify", "jan.retry"]) == 0
    assert main(["retry", "jan.retry"]) == 1
    assert "nothing to retry" in capsys.readouterr().err


def test_a_failed_batch_says_how_to_go_on(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """None of its lines was accepted; the good ones can be run all the same."""
    daemon.drop(count=3)
    drop = daemon.home.inbox / "jan.jsonl"
    drop.write_bytes(drop.read_bytes() + b"{no json\n")
    ended(daemon)
    assert main(["verify", "jan"]) == 0
    assert "nothing to prove" in capsys.readouterr().out
    assert main(["retry", "jan"]) == 1
    assert "--on-invalid skip" in capsys.readouterr().err
    assert list(daemon.home.inbox.iterdir()) == []
    assert main(["retry", "jan", "--on-invalid", "skip"]) == 0
    ended(daemon, "jan.retry")
    assert len(daemon.lines("output.jsonl", "jan.retry")) == 3
    assert len(daemon.lines("errors.jsonl", "jan.retry")) == 1


def test_a_batch_that_goes_on_is_neither_verified_nor_retried(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what shows its end."""
    daemon.run.may_go_on.clear()
    daemon.drop(count=300)
    daemon.until(daemon.phase("running"))
    for command in ("verify", "retry"):
        assert main([command, "jan"]) == 1
        assert "batchd watch jan" in capsys.readouterr().err


def test_a_drop_that_retention_took_can_be_named(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --input; another file than the batch's is refused, and nothing is dropped."""
    daemon.drop(count=3, method="GET")
    daemon.drop("feb", sidecar="on_invalid: skip\n", count=3, method="GET")
    ended(daemon, "feb")
    archived = daemon.home.archive / str(daemon.status("feb").id) / "drop.jsonl"
    mine = tmp_path / "mine.jsonl"
    archived.rename(mine)
    assert main(["retry", "feb"]) == 1
    assert "--input" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_bytes(mine.read_bytes().splitlines(keepends=True)[0])
    assert main(["retry", "feb", "--input", str(other)]) == 1
    assert "is it the batch's input" in capsys.readouterr().err
    assert list(daemon.home.inbox.iterdir()) == []
    assert main(["retry", "feb", "--input", str(mine)]) == 0
    assert len((daemon.home.inbox / "feb.retry.jsonl").read_bytes().splitlines()) == 3
    assert (
        orjson.loads((daemon.home.inbox / "feb.retry.jsonl").read_bytes().splitlines()[0])["method"] == "GET"
    )


def test_batches_can_be_listed_by_status(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """One status, several, or all that go on; as a table or for a script."""
    cancelled(daemon, sidecar="metadata: {team: a}\n")
    daemon.run.may_go_on.clear()
    daemon.drop("feb", count=300)
    daemon.until(daemon.phase("running", name="feb"))

    def listed(*states: str) -> list[str]:
        arguments = [part for state in states for part in ("--state", state)]
        assert main(["status", "--json", *arguments]) == 0
        names = [orjson.loads(line)["input_file_id"] for line in capsys.readouterr().out.splitlines()]
        assert main(["status", *arguments]) == 0
        table = capsys.readouterr().out
        assert all(name.removesuffix(".jsonl") in table for name in names)
        return names

    assert listed() == ["feb.jsonl", "jan.jsonl"]
    assert listed("active") == ["feb.jsonl"]
    assert listed("cancelled") == ["jan.jsonl"]
    assert listed("cancelled", "in_progress") == ["feb.jsonl", "jan.jsonl"]
    assert main(["status", "--state", "expired"]) == 0
    assert capsys.readouterr().out == "no batches are expired\n"


def test_a_paused_spool_takes_nothing_in(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Until it is resumed."""
    assert main(["pause"]) == 0
    daemon.drop()
    for _ in range(5):
        daemon.step(later_s=2)
    assert not daemon.lifecycle.held
    assert main(["resume"]) == 0
    assert main(["resume"]) == 0
    assert "it was not paused" in capsys.readouterr().out
    daemon.until(daemon.is_at("completed"), later_s=4)
