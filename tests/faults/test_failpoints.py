"""A crash at each named point, just before and just after it, loses nothing and doubles nothing.

The loop, the spool, validation and merging are the real ones, in a process of their own that really ends;
only the run is a stand-in (tests/loops.py), so that all points are swept in a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from spool import create, failpoints
from tests import daemons
from tests.faults import oracle

POINTS = [f"{step}.{side}" for step in get_args(failpoints.Step) for side in ("before", "after")]
# These are reached again and again: a crash at the second and third time is another state.
TIMES = {"record": (1, 2, 3, 4), "status": (1, 2), "part": (1, 2)}


def _expected(request: dict[str, Any]) -> str | None:
    content: str = request["body"]["messages"][0]["content"]
    return content


def _drops() -> dict[str, bytes]:
    rows = [daemons.request(f"a{n}", f"text {n}") for n in range(300)]
    for row in rows:
        row["body"]["model"] = "m"
    small = [row | {"body": row["body"] | {"max_tokens": n + 1}} for n, row in enumerate(rows[:3])]
    return {"big.jsonl": daemons.jsonl(rows), "small.jsonl": daemons.jsonl(small)}  # small: long work first


def _process(folder: Path, failpoint: str = "") -> int:
    environ = {**os.environ, failpoints.VARIABLE: failpoint, "PYTHONPATH": str(daemons.REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.stand_in", str(folder)],
        env=environ,
        cwd=daemons.REPOSITORY,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, failpoints.EXIT_CODE), done.stderr[-2000:]
    return done.returncode


def _cases() -> list[str]:
    return [f"{point}:{time}" for point in POINTS for time in TIMES.get(point.rpartition(".")[0], (1,))]


@pytest.mark.parametrize("failpoint", _cases())
def test_a_crash_at_each_point_loses_and_doubles_nothing(tmp_path: Path, failpoint: str) -> None:
    """The process dies there, the next one ends the work, and the oracle finds everything once."""
    home = create.create(tmp_path / "spool")
    drops = _drops()
    for name, content in drops.items():
        (home.inbox / name).write_bytes(content)
    (home.inbox / "small.batch.yaml").write_text("on_invalid: skip\n")
    if failpoint.startswith(("merge.errors", "publish.errors")):
        drops["small.jsonl"] += b'{"custom_id": "bad"}\n'
        (home.inbox / "small.jsonl").write_bytes(drops["small.jsonl"])
    reader = oracle.Reader(home.root)
    if failpoint.startswith("adopt"):  # needs something to adopt
        assert _process(tmp_path, "part.after:1") == failpoints.EXIT_CODE
    assert _process(tmp_path, failpoint) == failpoints.EXIT_CODE, f"{failpoint} was not reached"
    assert _process(tmp_path) == 0
    assert reader.stop() == []
    verdict = oracle.judge(home.root, drops, _expected)
    assert verdict.is_right, verdict
