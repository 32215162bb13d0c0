"""Names: what is a drop, and which folder in outbox/ it gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import layout


@pytest.mark.parametrize("name", ["jan.jsonl", "-rf.jsonl", "a b.jsonl", "x~y.jsonl", "Ä.jsonl"])
def test_a_name_that_ends_in_jsonl_is_a_drop(name: str) -> None:
    """Any other character may stand in it."""
    assert layout.is_drop_name(name)


@pytest.mark.parametrize(
    "name",
    [".jan.jsonl", "jan.jsonl.tmp", "jan.jsonl.part", "jan.jsonl~", "jan.json", "jan.batch.yaml", ".jsonl"],
)
def test_temporary_and_hidden_names_are_no_drops(name: str) -> None:
    """A writer's temporary names are left alone."""
    assert not layout.is_drop_name(name)


@pytest.mark.parametrize(
    ("drop", "attempt", "name"),
    [
        ("jan.jsonl", 1, "jan"),
        ("jan.jsonl", 2, "jan.2"),
        ("team-a/jan.jsonl", 1, "team-a~jan"),
        ("a b.jsonl", 1, "a%20b"),
        ("team~a/jan.jsonl", 1, "team%7Ea~jan"),
        ("..jsonl", 1, "%2E"),
        ("...jsonl", 1, "%2E."),
        ("a\nb.jsonl", 1, "a%0Ab"),
        ("Ä.jsonl", 1, "%C3%84"),
    ],
)
def test_outbox_names(drop: str, attempt: int, name: str) -> None:
    """One level; folders joined by a tilde; anything unusual percent-encoded."""
    assert layout.outbox_name(Path(drop), attempt) == name


def test_long_names_are_cut_and_differ_by_a_hash() -> None:
    """255-byte names fit, and two that share a prefix do not collide."""
    one = layout.outbox_name(Path("ä" * 120 + "1.jsonl"))
    two = layout.outbox_name(Path("ä" * 120 + "2.jsonl"))
    assert len(one) <= 200
    assert one != two


@given(st.binary(min_size=1, max_size=250).filter(lambda raw: b"/" not in raw and b"\0" not in raw))
def test_any_name_gives_one_safe_folder(raw: bytes) -> None:
    """No separator, no hidden name, nothing outside the allowed characters, whatever was dropped."""
    name = layout.outbox_name(Path(os.fsdecode(raw + b".jsonl")), 3)
    assert not name.startswith(".")
    assert len(name) <= 220
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-%~")


@given(st.binary(min_size=1, max_size=250).filter(lambda raw: b"/" not in raw and b"\0" not in raw))
def test_exact_paths_survive_a_round_trip(raw: bytes) -> None:
    """Invalid UTF-8 comes back byte for byte, and what is shown is printable."""
    path = Path(os.fsdecode(raw))
    text = layout.exact(path)
    assert text.isascii()
    assert os.fsencode(layout.from_exact(text)) == os.fsencode(path)
    assert layout.readable(path).isprintable()


def test_batch_ids_sort_by_time() -> None:
    """An id made later sorts later."""
    assert layout.new_batch_id(1000.0) < layout.new_batch_id(1000.002) < layout.new_batch_id(2e9)


def test_batch_folders_are_parsed_back() -> None:
    """work/<instance>/<batch>~<epoch> names its batch and epoch; other names name none."""
    folder = layout.batch_folder(Path("work/i1"), layout.new_batch_id(1.0), 7)
    assert layout.parse_batch_folder(folder.name) == (folder.name[:-2], 7)
    assert layout.parse_batch_folder("lease") is None
