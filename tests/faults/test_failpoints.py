"""A crash at each named point, just before and just after it, loses nothing and doubles nothing.

The loop, the spool, validation and merging are the real ones, in a process of their own that really ends;
only the run is a stand-in (disk_stand_in.py), so that all points are swept in a minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from spool import attempts, create, failpoints
from tests import daemons
from tests.faults import disk_rounds, oracle
from tests.faults.disk_rounds import DONE, Nursery, Wishes, expected

POINTS = [f"{step}.{side}" for step in get_args(failpoints.Step) for side in ("before", "after")]
# These are reached again and again: a crash at the second and third time is another state.
TIMES = {"record": (1, 2, 3, 4), "status": (1, 2), "part": (1, 2), "attempts": (1, 2)}

Ending = Literal["completed", "failed", "expired", "cancelled"]
# From the merge of its results to the end; a batch that failed has no result files.
ENDS = (
    "merge.output",
    "merge.errors",
    "final",
    "publish.output",
    "publish.errors",
    "publish.status",
    "archive",
)
UNCOMMITTED = ("merge", "final.before")
# What errors.jsonl says of lines that were not answered.
CODES = {"expired": "batch_expired", "cancelled": "batch_cancelled"}
BAD = b'{"custom_id": "bad"}\n'


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with disk_rounds.open_nursery() as nursery:
        yield nursery


def _drops() -> dict[str, bytes]:
    rows = [daemons.request(f"a{n}", f"text {n}") for n in range(300)]
    for row in rows:
        row["body"]["model"] = "m"
    small = [row | {"body": row["body"] | {"max_tokens": n + 1}} for n, row in enumerate(rows[:3])]
    return {"big.jsonl": daemons.jsonl(rows), "small.jsonl": daemons.jsonl(small)}  # small: long work first


def _process(nursery: Nursery, folder: Path, **wishes: Any) -> None:
    """Have a process work; it ends at its failpoint, or when nothing is left to do."""
    child = nursery.fork(Wishes(str(folder), str(folder / "log"), **wishes))
    code = child.wait()
    if point := wishes.get("failpoint"):
        assert code == failpoints.EXIT_CODE, f"{point} was not reached: {code}\n{child.log()[-2000:]}"
    else:
        assert code == DONE, child.log()[-2000:]


def _cases() -> list[str]:
    return [f"{point}:{time}" for point in POINTS for time in TIMES.get(point.rpartition(".")[0], (1,))]


@pytest.mark.parametrize("failpoint", _cases())
def test_a_crash_at_each_point_loses_and_doubles_nothing(
    nursery: Nursery, tmp_path: Path, failpoint: str
) -> None:
    """The process dies there, the next one ends the work, and the oracle finds everything once."""
    home = create.create(tmp_path / "spool")
    drops = _drops()
    (home.inbox / "small.batch.yaml").write_text("on_invalid: skip\n")
    if failpoint.startswith(("merge.errors", "publish.errors")):
        drops["small.jsonl"] += BAD
    for name, content in drops.items():
        (home.inbox / name).write_bytes(content)
    reader = oracle.Reader(home.root)
    if failpoint.startswith("adopt"):  # needs something to adopt
        _process(nursery, tmp_path, failpoint="part.after:1")
    # status.json is written at most once a second.
    paced = {"shard_s": 1.0} if failpoint.startswith("status") else {}
    _process(nursery, tmp_path, failpoint=failpoint, **paced)
    _process(nursery, tmp_path)
    assert reader.stop() == []
    verdict = oracle.judge(home.root, drops, expected)
    assert verdict.is_right, verdict


@pytest.mark.parametrize(("side", "known"), [("before", {}), ("after", {0: attempts.Suspect(40, 0)})])
def test_what_is_known_of_a_dead_engine_is_on_record_after_its_step_and_not_before(
    nursery: Nursery, tmp_path: Path, side: str, known: dict[int, attempts.Suspect]
) -> None:
    """And nothing in between: no file of half a row."""
    home = create.create(tmp_path / "spool")
    (home.inbox / "big.jsonl").write_bytes(_drops()["big.jsonl"])
    _process(nursery, tmp_path, failpoint=f"attempts.{side}")
    [batch] = home.work.glob("*/batch_*")
    assert attempts.read(batch, 0) == known
    assert bool(attempts.digest(batch)) == bool(known)


@pytest.mark.parametrize("failpoint", ["publish.status.after", "archive.before"])
def test_results_that_their_user_took_away_are_not_published_again(
    nursery: Nursery, tmp_path: Path, failpoint: str
) -> None:
    """He may do so once he reads the end; the crash comes before the batch is archived."""
    home = create.create(tmp_path / "spool")
    drops = {"big.jsonl": _drops()["big.jsonl"]}
    (home.inbox / "big.jsonl").write_bytes(drops["big.jsonl"])
    _process(nursery, tmp_path, failpoint=failpoint)
    (home.outbox / "big").rename(tmp_path / "mine")
    _process(nursery, tmp_path)
    assert list(home.outbox.iterdir()) == []
    (tmp_path / "mine").rename(home.outbox / "big")
    verdict = oracle.judge(home.root, drops, expected)
    assert verdict.is_right, verdict


def _endings() -> list[tuple[Ending, str]]:
    return [
        (ending, f"{step}.{side}")
        for ending in get_args(Ending)
        for step in ENDS
        if ending != "failed" or step in ("final", "publish.status", "archive")
        for side in ("before", "after")
    ]


@pytest.mark.parametrize(("ending", "failpoint"), _endings())
def test_a_crash_never_turns_one_outcome_into_another(
    nursery: Nursery, tmp_path: Path, ending: Ending, failpoint: str
) -> None:
    """Though every batch is cancelled by its user and past its deadline when the next process comes.

    Before final.json is durable nothing is decided yet, so that a cancel may still win; after it never.
    """
    home = create.create(tmp_path / "spool")
    content = _drops()["big.jsonl"]
    if ending == "failed":
        content = content.replace(b"POST", b"GET")
    elif ending == "completed":
        content += BAD
        (home.inbox / "big.batch.yaml").write_text("on_invalid: skip\n")
    (home.inbox / "big.jsonl").write_bytes(content)
    reader = oracle.Reader(home.root)
    turn = ending if ending in CODES else ""
    _process(nursery, tmp_path, failpoint=failpoint, ending=turn, shard_s=0.1 if turn else 0.0)
    committed = [path.read_bytes() for path in home.root.glob("*/**/final.json")]
    assert len(committed) == (not failpoint.startswith(UNCOMMITTED))
    _process(nursery, tmp_path, is_late=True)
    assert reader.stop() == []
    verdict = oracle.judge(home.root, {"big.jsonl": content}, expected)
    assert verdict.is_right, verdict
    _judge(home.outbox / "big", ending, is_open=not committed)
    if committed:
        assert [path.read_bytes() for path in home.archive.glob("*/final.json")] == committed


def _judge(folder: Path, ending: Ending, *, is_open: bool) -> None:
    """The outcome, exact to the line, and the answer to the late cancel."""
    status = json.loads((folder / "status.json").read_bytes())["status"]
    assert status == ending or (is_open and status == "cancelled")
    refused = folder / "cancel.refused"
    if status != "cancelled" or refused.exists():  # a cancelled batch's user may have asked once more
        assert f"already ended as {status}" in refused.read_text()
    output, failed = (daemons.rows(folder / name) for name in ("output.jsonl", "errors.jsonl"))
    if ending == "failed":
        assert (output, failed) == ([], [])
    elif ending == "completed":
        assert (len(output), [row["custom_id"] for row in failed]) == (300, ["bad"])
    else:
        assert 128 <= len(output) < 300
        assert {row["error"]["code"] for row in failed} == {CODES[status]}
