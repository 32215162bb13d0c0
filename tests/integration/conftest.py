"""The daemon that hostile things are dropped on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest

from tests import hostile
from tests.loops import Daemon


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setattr(prometheus_client, "CollectorRegistry", hostile.Registry)
    made = Daemon(tmp_path)
    yield made
    made.stop()
