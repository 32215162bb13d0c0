"""Notices custom_ids that repeat, exactly and in few bytes: about 12 to 17 for each request.

A set of 5 million hashes takes 400 MB, a set of the ids more. Here each id is one 8-byte slot of a hash table
(open addressing, linear probing): 24 bits of its hash and the byte offset of its line. Where those bits
agree, the earlier line is read again and its id compared, so a collision never refuses a line, and no second
pass is needed. The table is cut into 1,024 parts that grow one by one: the part's number counts as 10 more
bits (about 1,500 lines of 5 million are read again without need), and growing never holds two whole tables.
Python's own hash of strings is keyed anew in each process, so nobody can prepare collisions.
Considered: sorting all hashes at the end needs another pass and a second copy of the file under
`on_invalid: skip`; sqlite costs more per line than parsing it.
Limits: files up to 1 TiB. A source that cannot seek, a pipe, needs HeldIds, which grows with the ids.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

_PARTS = 1024
_PART_BITS = 10
_MARK_MASK = (1 << 24) - 1
_OFFSET_BITS = 40
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_FIRST_SLOTS = 6
# Ids of earlier lines that were read again; what one file repeats is mostly the same few.
_REMEMBERED = 1024


class HeldIds:
    """The custom_ids of a file that can be read only once."""

    def __init__(self) -> None:
        """Start with none."""
        self._seen: set[str] = set()

    def add(self, custom_id: str, offset: int) -> bool:
        """See CustomIds; the offset is not needed."""
        if custom_id in self._seen:
            return True
        self._seen.add(custom_id)
        return False


class CustomIds:
    """The custom_ids of a file so far."""

    def __init__(self, read_id: Callable[[int], str | None], hash_id: Callable[[str], int] = hash) -> None:
        """Start with none.

        Args:
            read_id: reads the custom_id of the line at an offset again.
            hash_id: for tests, which force collisions with it.
        """
        self._read_id = read_id
        self._hash_id = hash_id
        self._tables: list[array[int] | None] = [None] * _PARTS  # a small file needs few of them
        self._free = [_FIRST_SLOTS * 7 // 10] * _PARTS
        self._remembered: dict[int, str | None] = {}

    def add(self, custom_id: str, offset: int) -> bool:
        """Note an id; return whether an earlier line has it.

        Args:
            custom_id: of the next line.
            offset: where that line begins, for `read_id`.
        """
        hashed = self._hash_id(custom_id)
        part = hashed % _PARTS
        mark = hashed >> _PART_BITS & _MARK_MASK
        table = self._tables[part]
        if table is None:
            table = self._tables[part] = array("Q", bytes(8 * _FIRST_SLOTS))
        size = len(table)
        place = mark % size
        while slot := table[place]:
            if slot >> _OFFSET_BITS == mark and self._id_at((slot & _OFFSET_MASK) - 1) == custom_id:
                return True
            place = place + 1 if place + 1 < size else 0
        table[place] = mark << _OFFSET_BITS | offset + 1  # a slot that is used is never 0
        self._free[part] -= 1
        if not self._free[part]:
            self._grow(part, table)
        return False

    def _id_at(self, offset: int) -> str | None:
        if offset not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[offset] = self._read_id(offset)
        return self._remembered[offset]

    def _grow(self, part: int, old: array[int]) -> None:
        """Half as many slots again: between 47 and 70 of 100 are then in use."""
        size = len(old) * 3 // 2
        new = array("Q", bytes(8 * size))
        for slot in old:
            if slot:
                place = (slot >> _OFFSET_BITS) % size
                while new[place]:
                    place = place + 1 if place + 1 < size else 0
                new[place] = slot
        self._tables[part] = new
        self._free[part] = size * 7 // 10 - len(old) * 7 // 10
