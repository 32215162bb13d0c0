"""custom_ids that repeat are found exactly, whatever their hashes, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import validate_ids


class Reread:
    """The ids by offset, and how often one was read again."""

    def __init__(self) -> None:
        self.ids: dict[int, str] = {}
        self.reads = 0

    def __call__(self, offset: int) -> str:
        self.reads += 1
        return self.ids[offset]


def find(ids: list[str], hash_id: Callable[[str], int]) -> tuple[list[bool], Reread]:
    reread = Reread()
    table = validate_ids.CustomIds(reread, hash_id)
    found = []
    for offset, custom_id in enumerate(ids):
        reread.ids[offset] = custom_id
        found.append(table.add(custom_id, offset))
    return found, reread


@given(
    st.lists(st.integers(0, 60).map(str), max_size=80),
    st.sampled_from(
        [hash, lambda _: 0, lambda _: -1, lambda text: int(text) % 3, lambda text: int(text) << 34]
    ),
)
def test_exactly_the_repetitions_are_found(ids: list[str], hash_id: Callable[[str], int]) -> None:
    """As a set would, also where hashes collide."""
    seen: set[str] = set()
    expected = []
    for custom_id in ids:
        expected.append(custom_id in seen)
        seen.add(custom_id)
    assert find(ids, hash_id)[0] == expected


def test_large_tables_grow_and_find_all() -> None:
    """100,000 ids twice: the second time all of them, each read again; the first time nearly none."""
    ids = [f"request-{number}" for number in range(100_000)]
    found, reread = find(ids, hash)
    assert not any(found)
    assert reread.reads < 20
    found, _ = find(ids + ids, hash)
    assert found == [False] * len(ids) + [True] * len(ids)


def test_memory_is_bounded_per_id() -> None:
    """At most 17.2 bytes for each of 200,000 ids, beside the fixed part."""
    table = validate_ids.CustomIds(lambda _: None)
    fixed = sum(map(sys.getsizeof, table._tables))
    for number in range(200_000):
        table.add(f"request-{number}", number)
    grown = sum(map(sys.getsizeof, table._tables)) - fixed
    assert grown / 200_000 < 17.2


def test_ids_that_repeat_often_are_read_again_once() -> None:
    """A large file that repeats one id does not read its first line for each."""
    _, reread = find(["same"] * 10_000, hash)
    assert reread.reads == 1


@pytest.mark.parametrize("offset", [0, (1 << 40) - 2])
def test_offsets_are_kept_whole(offset: int) -> None:
    """From the first byte to the last of a TiB."""
    asked = []
    table = validate_ids.CustomIds(lambda at: asked.append(at) or "a")  # type: ignore[func-returns-value]
    assert not table.add("a", offset)
    assert table.add("a", 5)
    assert asked == [offset]
