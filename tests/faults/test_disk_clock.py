"""A wall clock that jumps by an hour: nothing expires, no time that a user reads goes backwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import disk_clock, disk_rounds


@pytest.fixture(scope="module")
def nursery() -> Iterator[disk_rounds.Nursery]:
    with disk_rounds.open_nursery() as nursery:
        yield nursery


@pytest.mark.parametrize("fault", disk_clock.FAULTS)
def test_a_clock_that_jumps_expires_nothing_and_rewrites_no_history(
    nursery: disk_rounds.Nursery, tmp_path: Path, fault: disk_clock.Fault
) -> None:
    """In mid-batch and between two starts, either way.

    A start with an earlier clock once gave its first pass the earlier time: history went back by an hour.
    """
    outcome = disk_clock.run_round(nursery, tmp_path / "round", fault)
    assert outcome.verdict.is_right, f"{outcome.verdict}\n{outcome.log[-3000:]}"
