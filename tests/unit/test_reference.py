"""docs/settings.md is what the settings' classes say, and explains each of them."""

from __future__ import annotations

from config import reference
from tests.daemons import REPOSITORY


def test_the_page_is_current() -> None:
    """Else: python -m config.reference > docs/settings.md"""
    assert (REPOSITORY / "docs/settings.md").read_text() == reference.render()


def test_every_setting_is_explained() -> None:
    """No key without a description, no section without a sentence."""
    page = reference.render()
    assert "None |" not in page
    assert "| `scheduler.pools.spot.preempt_every_s` | `0` | ≥ 0 | Mean seconds" in page
    assert "| `spool.min_free_bytes` | `1GiB` |" in page
