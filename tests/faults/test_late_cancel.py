"""A cancel that comes while a batch is being published is answered, not left lying."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spool import control, publish
from spool.batch import Batch
from spool.record import Final, Status
from tests import spools


def test_a_cancel_just_before_the_end_is_seen_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came after cancels were looked for and before status.json was terminal, and stayed for ever."""
    home, instance = spools.make(tmp_path)
    batch = spools.claimed(home, instance)
    publish.commit(batch, Final(batch_id=batch.id, outcome=Status.FAILED, reason="no good", at=1002.0))
    show = Batch.show

    def touched_meanwhile(self: Batch, *args: Any, **named: Any) -> None:
        control.request_cancel(self.outbox)
        show(self, *args, **named)

    monkeypatch.setattr(Batch, "show", touched_meanwhile)
    publish.publish(batch)
    publish.archive(batch)
    assert sorted(path.name for path in batch.outbox.iterdir()) == ["cancel.refused", "status.json"]
    assert "no good" in (batch.outbox / "cancel.refused").read_text()
