"""The order of a file's requests, decided from the notes that were taken while it was validated.

Requests form a forest. Twins hang on the first of them; requests whose prompts share a rung of the ladder
hang on the first of those, the longest rung first; so a group of a short rung holds groups of longer ones,
down to single requests. Whoever may have the longest answer stands first in its group, and so do groups among
each other: a group stays together, and long work comes early. What is equal keeps the file's order. A prefix
that all requests share groups nothing. Where nothing would be gained there is no order, and the file's own is
kept.

Imported only inside functions, because it imports numpy at the top. Memory: 20 to 30 bytes a request while it
decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline import prefixes
from pipeline.order_notes import Column, Notes

# Reordering costs scattered reads, and a second pass in the merge; so much of all bytes must be saved by it.
LEAST_GAIN = 0.01
# What twins share, in `Order.shared`: more than any rung.
TWIN = 255

# Numbers that are looked at in one piece, so that what numpy makes of them on the way stays small.
_CHUNK = 1 << 17
_LOW = np.uint64((1 << 32) - 1)
_SHIFT = np.uint64(32)

_Lines = npt.NDArray[np.uint32]
_Keys = npt.NDArray[np.uint64]


class Order(NamedTuple):
    """In which order requests run.

    Attributes:
        lines: (n,) uint32, each request's index in the file, in the new order; refused ones come last.
        shared: (n,) uint8, what each request shares with the one before it: the number of a rung of the
            ladder, from 1; TWIN; or 0 for nothing.
    """

    lines: _Lines
    shared: npt.NDArray[np.uint8]


def decide(notes: Notes) -> Order | None:
    """The order that the notes speak for; None where the file's own is as good.

    Raises:
        OSError: the notes cannot be read.
    """
    if notes.lines - notes.refused < 2:
        return None
    forest = _Forest(notes.lines)
    has_twins = notes.determined > 1 and _group_twins(forest, notes)
    lengths = load(notes.lengths)
    has_lengths = _differ(lengths)
    rungs = _useful_rungs(notes, has_lengths)
    if not (has_twins or has_lengths or rungs):
        return None
    ranks = None
    if has_lengths or notes.refused:
        ranks = _rank(lengths)
        forest.rename(ranks)
    del lengths
    for number in reversed(rungs):
        forest.grow(_load_rung(notes.rungs[number], ranks), number + 1)
    return forest.order(ranks)


class _Forest:
    """Requests, and which hangs on which. Their names are ranks, in whose order they would stand alone.

    A branch hangs on the first of its members, its head. Only heads are looked at further.
    """

    def __init__(self, count: int) -> None:
        self._sizes = np.ones(count, np.uint32)  # members of the branch of each head; 0 for what hangs
        self._shared = np.zeros(count, np.uint8)  # what a member has in common with its head
        self._hung: list[tuple[_Lines, _Lines, _Lines]] = []  # who, on whom, and how far behind

    def rename(self, ranks: _Lines) -> None:
        """Name requests by their ranks, which were named by their lines."""
        for values in (self._sizes, self._shared):
            renamed = np.empty_like(values)
            renamed[ranks] = values
            values[:] = renamed
        self._hung = [(ranks[who], ranks[whom], behind) for who, whom, behind in self._hung]

    def grow(self, keys: _Keys, shared: int, bits: int = 32, wholes: _Keys | None = None) -> bool:
        """Hang those with equal hashes on the first of them.

        Args:
            keys: `hash << bits | rank`; changed on the way.
            shared: what they have in common then.
            bits: of a rank.
            wholes: by rank, the hashes of which the keys have room for a part only.

        Returns:
            Whether there were any.
        """
        low = np.uint64((1 << bits) - 1)
        keys = self._heads_of(keys, low)
        keys.sort()
        before = len(self._hung)
        head, size = 0, 0  # of the branch that a piece ends in, which may go on in the next
        last: tuple[int, int] | None = None
        for start in range(0, len(keys), _CHUNK):
            piece = keys[start : start + _CHUNK]
            ranks = (piece & low).astype(np.uint32)
            marks = piece >> np.uint64(bits)
            exact = marks if wholes is None else wholes[ranks]
            begins = np.empty(len(piece), np.bool_)
            begins[0] = last != (marks[0], exact[0])
            begins[1:] = (marks[1:] != marks[:-1]) | (exact[1:] != exact[:-1])
            last = (int(marks[-1]), int(exact[-1]))
            if begins.all():
                head, size = int(ranks[-1]), int(self._sizes[ranks[-1]])
            else:
                head, size = self._hang(ranks, begins, shared, (head, size))
        return len(self._hung) > before

    def _heads_of(self, keys: _Keys, low: np.uint64) -> _Keys:
        count = 0
        for start in range(0, len(keys), _CHUNK):
            piece = keys[start : start + _CHUNK]
            piece = piece[self._sizes[piece & low] > 0]
            keys[count : count + len(piece)] = piece
            count += len(piece)
        return keys[:count]

    def _hang(
        self, ranks: _Lines, begins: npt.NDArray[np.bool_], shared: int, open_branch: tuple[int, int]
    ) -> tuple[int, int]:
        """Make branches of runs of ranks; the first run may go on with a branch. Returns the last branch."""
        sizes = self._sizes[ranks].astype(np.int64)
        ends = np.cumsum(sizes)
        starts = np.flatnonzero(begins)
        # Branch 0 is the open one: what belongs to it lies behind what it has already.
        heads = np.concatenate((np.array([open_branch[0]], np.uint32), ranks[starts]))
        bases = np.concatenate(([-open_branch[1]], ends[starts] - sizes[starts]))
        branch = np.cumsum(begins)[~begins]
        who = ranks[~begins]
        behind = (ends[~begins] - sizes[~begins] - bases[branch]).astype(np.uint32)
        self._hung.append((who, heads[branch], behind))
        self._shared[who] = shared
        totals = np.append(bases[1:], ends[-1]) - bases
        first = 1 if begins[0] else 0
        self._sizes[heads[first:]] = totals[first:]
        self._sizes[who] = 0
        return int(heads[-1]), int(totals[-1])

    def order(self, ranks: _Lines | None) -> Order:
        """Lay the branches out, from the heads that hang on nothing; ends the forest.

        Args:
            ranks: of each line; None where they are the lines themselves.
        """
        places = np.cumsum(self._sizes, dtype=np.uint32)
        places -= self._sizes
        del self._sizes
        while self._hung:  # a head's place is known when it is asked for: it was hung later, or on nothing
            who, whom, behind = self._hung.pop()
            places[who] = places[whom] + behind
        lines = np.empty(len(places), np.uint32)
        lines[places if ranks is None else places[ranks]] = np.arange(len(places), dtype=np.uint32)
        shared = np.empty(len(places), np.uint8)
        shared[places] = self._shared
        return Order(lines, shared)


def _group_twins(forest: _Forest, notes: Notes) -> bool:
    """Whether there are any; a mark and a line do not fit into one key, so the rest is looked up."""
    hashes: _Keys = load(notes.marks)
    bits = max(1, (len(hashes) - 1).bit_length())
    keys = np.empty(notes.determined, np.uint64)
    count = 0
    for start, piece in _pieces(hashes):
        has_one = np.flatnonzero(piece)
        part = piece[has_one] >> np.uint64(bits) << np.uint64(bits)
        keys[count : count + len(part)] = part | (has_one + start).astype(np.uint64)
        count += len(part)
    return forest.grow(keys, TWIN, bits, hashes)


def _differ(lengths: _Lines) -> bool:
    """Whether answers may differ in length; 0 marks what was refused."""
    most = int(lengths.max())
    return any(bool(((piece != most) & (piece != 0)).any()) for _, piece in _pieces(lengths))


def _useful_rungs(notes: Notes, is_sorted_by_length: bool) -> list[int]:
    """The rungs that group some requests and not all, if grouping them is worth it.

    What is saved is what requests share with others of their group beyond those that follow each other in the
    file as it is. Where lengths decide, these would be torn apart, so then each group counts.
    """
    useful: list[int] = []
    counts: list[tuple[int, int]] = []
    gain = moved_before = 0
    for number, column in enumerate(notes.rungs):
        if len(column) < 2:
            break
        runs, groups = _count_groups(column)
        if groups == len(column):
            break  # nothing shared here, so nothing further on
        if useful and counts[-1] == (len(column), groups):
            useful.pop()  # the very same groups, of a longer prefix
            counts.pop()
        if groups > 1 or len(column) < notes.lines - notes.refused:
            useful.append(number)
            counts.append((len(column), groups))
        moved = runs - groups
        # One rung alone may be a byte more than what all share; two are not.
        gain += min(moved, moved_before) * (prefixes.RUNGS[number] - prefixes.RUNGS[number - 1])
        moved_before = moved
    return useful if is_sorted_by_length or gain >= LEAST_GAIN * notes.size_bytes else []


def _count_groups(column: Column) -> tuple[int, int]:
    """Of the requests that reach a rung: runs with one prefix in the file's order, and different prefixes."""
    marks: _Keys = load(column)
    marks >>= _SHIFT
    runs = 1 + int(np.count_nonzero(marks[1:] != marks[:-1]))
    marks.sort()
    return runs, 1 + int(np.count_nonzero(marks[1:] != marks[:-1]))


def _rank(lengths: _Lines) -> _Lines:
    """The place of each line if only lengths decided: the longest first, then as in the file."""
    keys = lengths.astype(np.uint64)
    keys ^= _LOW
    keys <<= _SHIFT
    for start, piece in _pieces(keys):
        piece |= np.arange(start, start + len(piece), dtype=np.uint64)
    keys.sort()
    ranks = np.empty(len(keys), np.uint32)
    for start, piece in _pieces(keys):
        ranks[piece & _LOW] = np.arange(start, start + len(piece), dtype=np.uint32)
    return ranks


def _load_rung(column: Column, ranks: _Lines | None) -> _Keys:
    """`hash << 32 | rank` of the requests that reach a rung."""
    keys: _Keys = load(column)
    if ranks is not None:
        for _, piece in _pieces(keys):
            piece[:] = piece & ~_LOW | ranks[piece & _LOW]
    return keys


def load(column: Column) -> npt.NDArray[Any]:
    """A column as an array of its own.

    Raises:
        OSError: it cannot be read.
    """
    values = np.empty(len(column), np.dtype(column.kind))
    if len(values):
        column.read_into(values.data)
    return values


def _pieces(values: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Views of an array with where each begins, small enough to compute with."""
    for start in range(0, len(values), _CHUNK):
        yield start, values[start : start + _CHUNK]
