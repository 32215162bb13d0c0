"""Real power losses on real filesystems, and the control that proves that they can lose something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import disk_rounds, power, tally

# Mounts filesystems of its own: minutes, and more than every machine allows. `make test-all` runs it.
pytestmark = pytest.mark.slow

SEED, ROUNDS = 20261123, 6
# The control has never needed more than one.
CONTROL_ROUNDS = 8


@pytest.fixture(scope="module")
def nursery() -> Iterator[disk_rounds.Nursery]:
    with disk_rounds.open_nursery() as nursery:
        yield nursery


@pytest.fixture(params=power.KINDS)
def kind(request: pytest.FixtureRequest) -> power.Kind:
    kind: power.Kind = request.param
    if problem := power.why_not(kind):
        pytest.skip(problem)
    return kind


def test_a_power_loss_loses_and_doubles_nothing(
    nursery: disk_rounds.Nursery, tmp_path: Path, kind: power.Kind
) -> None:
    """At random moments, with the journal flushed and not: the next start ends the work."""
    table = tally.Tally()
    power.run_rounds(nursery, tmp_path, kind, ROUNDS, SEED, table)
    assert not table.failures, table.failures


def test_without_fsync_a_power_loss_is_seen_to_lose(
    nursery: disk_rounds.Nursery, tmp_path: Path, kind: power.Kind
) -> None:
    """The negative control: a harness that cannot fail proves nothing."""
    table = tally.Tally()
    power.run_rounds(nursery, tmp_path, kind, CONTROL_ROUNDS, SEED, table, has_fsync=False, until_lost=True)
    assert table.failures, "nothing was lost without fsync"
