"""The order: groups by prefix over the whole file, long work first, twins together, else as in the file."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import order, prefixes, twins
from pipeline.order_notes import Notes, Wishes

URL = "/v1/chat/completions"
SYSTEM = "You are a careful assistant. " * 20
DOCUMENTS = [f"{number} {random.Random(number).random()} " * 30 for number in range(20)]


def chat(text: str, system: str = "", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {"model": "m", "messages": [*messages, {"role": "user", "content": text}], **fields}


def decide(
    bodies: Iterable[dict[str, Any] | None], folder: Path, *wishes: bool, url: str = URL
) -> order.Order | None:
    """The order of a file of these bodies; None stands for a refused request."""
    held = list(bodies)
    with closing(Notes(Wishes(*wishes), folder)) as notes:
        notes.take(url, [orjson.dumps(body) + b" " * 80 if body else b"" for body in held], held)
        return order.decide(notes)


def lines_of(
    bodies: Iterable[dict[str, Any] | None], folder: Path, *wishes: bool, url: str = URL
) -> list[int]:
    found = decide(bodies, folder, *wishes, url=url)
    assert found is not None
    return [int(line) for line in found.lines]


def test_requests_with_one_document_stand_together(tmp_path: Path) -> None:
    """Their system prompt is the same in all, so the document tells them apart; who comes first leads."""
    bodies = [chat(DOCUMENTS[n % 5] + f"question {n}", SYSTEM) for n in range(20)]
    assert lines_of(bodies, tmp_path) == [n + 5 * k for n in range(5) for k in range(4)]


def test_groups_hold_groups_of_longer_prefixes(tmp_path: Path) -> None:
    """Not only an equal system prompt counts but the longest common prefix, over the whole file."""
    bodies = [chat(DOCUMENTS[n % 4] + f"question {n}", SYSTEM + str(n % 2) * 200) for n in range(16)]
    assert lines_of(bodies, tmp_path) == [0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15]


def test_what_neighbours_share_is_told(tmp_path: Path) -> None:
    """0 where a group begins; a higher rung for a longer prefix; TWIN for what is answered once."""
    bodies = [
        chat("a" * 300, temperature=0),
        chat("b" * 300, temperature=0),
        chat("a" * 500, temperature=0),
        chat("a" * 300, temperature=0),
        chat("b" * 290, temperature=0),
    ]
    found = decide(bodies, tmp_path)
    assert found is not None
    assert found.lines.tolist() == [0, 3, 2, 1, 4]
    shared = found.shared.tolist()
    assert shared[0] == shared[3] == 0
    assert shared[1] == order.TWIN
    assert 0 < shared[2] == shared[4] <= len(prefixes.RUNGS)


def test_a_prefix_that_all_share_changes_nothing(tmp_path: Path) -> None:
    """Be it of requests that are long enough to have one."""
    assert decide([chat(f"{n} question", SYSTEM if n % 2 else "") for n in range(50)], tmp_path) is None
    assert decide([chat(f"{n} question", SYSTEM) for n in range(50)], tmp_path) is None


def test_groups_that_stand_together_already_change_nothing(tmp_path: Path) -> None:
    assert decide([chat(DOCUMENTS[n // 10] + str(n)) for n in range(50)], tmp_path) is None


def test_a_gain_that_is_too_small_changes_nothing(tmp_path: Path) -> None:
    """Two siblings among 500 long requests."""
    bodies = [chat(f"{n} " * 400) for n in range(500)]
    bodies[100] = chat(DOCUMENTS[0][:150] + "a")
    bodies[400] = chat(DOCUMENTS[0][:150] + "b")
    assert decide(bodies, tmp_path) is None


def test_short_and_different_prompts_change_nothing(tmp_path: Path) -> None:
    assert decide([chat(f"{n}+{n}", max_tokens=8, temperature=0) for n in range(300)], tmp_path) is None


def test_long_work_comes_first_and_ties_keep_their_place(tmp_path: Path) -> None:
    lengths = [5, 100, 5, 70, 100, 70]
    assert lines_of([chat("x", max_tokens=each) for each in lengths], tmp_path) == [1, 4, 3, 5, 0, 2]


def test_what_has_no_bound_may_take_the_longest(tmp_path: Path) -> None:
    bodies = [chat("x", max_tokens=9), chat("x"), chat("x", max_completion_tokens=5000, max_tokens=3)]
    assert lines_of(bodies, tmp_path) == [1, 2, 0]


def test_a_group_comes_when_its_longest_request_does(tmp_path: Path) -> None:
    """Its longest leads it; the others follow however short they are."""
    bodies = [
        chat("short", max_tokens=50),
        chat(DOCUMENTS[0] + "a", max_tokens=10),
        chat("long", max_tokens=80),
        chat(DOCUMENTS[0] + "b", max_tokens=60),
        chat(DOCUMENTS[0] + "c", max_tokens=20),
    ]
    assert lines_of(bodies, tmp_path) == [2, 3, 4, 1, 0]


def test_groups_that_stand_together_are_not_torn_apart_by_length(tmp_path: Path) -> None:
    bodies = [chat(DOCUMENTS[n // 3] + str(n), max_tokens=10 + n % 3) for n in range(9)]
    assert lines_of(bodies, tmp_path) == [2, 1, 0, 5, 4, 3, 8, 7, 6]


def test_twins_follow_the_first_of_them(tmp_path: Path) -> None:
    bodies = [chat(text, temperature=0) for text in "abacab"]
    assert lines_of(bodies, tmp_path) == [0, 2, 4, 1, 5, 3]
    assert lines_of(bodies, tmp_path, False, True) == [0, 2, 4, 1, 5, 3]


def test_without_deduping_there_are_no_twins(tmp_path: Path) -> None:
    assert decide([chat("a", temperature=0)] * 9, tmp_path, True, False) is None


def test_the_order_of_the_file_pulls_only_twins_together(tmp_path: Path) -> None:
    bodies = [chat(DOCUMENTS[n % 3] + str(n), temperature=0, max_tokens=n) for n in range(9)]
    assert decide(bodies, tmp_path, False, True) is None
    assert lines_of([*bodies, bodies[3]], tmp_path, False, True) == [0, 1, 2, 3, 9, 4, 5, 6, 7, 8]


def test_refused_requests_come_last(tmp_path: Path) -> None:
    bodies = [None, chat("a", seed=3), None, chat("b"), chat("a", seed=3), None]
    assert lines_of(bodies, tmp_path) == [1, 4, 3, 0, 2, 5]
    assert decide([None, chat("a", temperature=0), None], tmp_path) is None
    assert decide([None] * 5, tmp_path) is None


def test_notes_that_went_to_the_disk_give_the_same_order(tmp_path: Path) -> None:
    """More of them than are held in memory, and than are looked at in one piece."""
    count = 140_000
    bodies = [chat(f"{n % 1000:04d}" * 80, temperature=0, max_tokens=1 + n % 3) for n in range(3000)]
    with closing(Notes(Wishes(), tmp_path)) as notes:
        for first in range(0, count, 1000):
            notes.take(URL, [b" " * 400] * 1000, [bodies[line % 3000] for line in range(first, first + 1000)])
        found = order.decide(notes)
    assert found is not None
    expected = [first + 3000 * k for first in _by_length(3000) for k in range(count // 3000 + 1)]
    assert found.lines.tolist() == [line for line in expected if line < count]


def _by_length(count: int) -> Iterator[int]:
    """Groups of three requests with one text, and 3, 2 and 1 tokens: by the place of the longest."""
    for longest in range(2, count, 3):
        by_length = {n % 3: n for n in range(count) if n % 1000 == longest % 1000}
        yield from (by_length[rest] for rest in (2, 1, 0))


def test_a_folder_that_is_gone_says_so(tmp_path: Path) -> None:
    """The batch was adopted: notes that have to go to the disk have nowhere to go."""
    notes = Notes(Wishes(), tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        notes.take(URL, [b""] * (1 << 15), [None] * (1 << 15))


_TEXTS = st.builds(
    lambda beginning, length, end: (beginning * 60)[:length] + end,
    st.sampled_from(["ab ", "cd ", "abcd "]),
    st.sampled_from([10, 100, 130, 200, 300, 500]),
    st.sampled_from(["", "x", "y"]),
)
_BODIES = st.builds(
    lambda text, length, sampling: chat(text, **({"max_tokens": length} if length else {}), **sampling),
    _TEXTS,
    st.sampled_from([0, 1, 9, 100]),
    st.sampled_from([{}, {"temperature": 0}, {"seed": 7, "temperature": 1}]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), _BODIES), max_size=40), st.booleans(), st.booleans())
def test_any_order_is_a_permutation_that_keeps_groups_together(
    tmp_path_factory: pytest.TempPathFactory,
    bodies: list[dict[str, Any] | None],
    by_prefix: bool,
    is_deduping: bool,
) -> None:
    """Each once, refused ones last, twins and groups in one piece, leaders first."""
    folder = tmp_path_factory.getbasetemp()
    found = decide(bodies, folder, by_prefix, is_deduping)
    if found is None:
        return
    lines = found.lines.tolist()
    assert sorted(lines) == list(range(len(bodies)))
    refused = [line for line, body in enumerate(bodies) if body is None]
    assert lines[len(lines) - len(refused) :] == refused
    asked = [(line, body) for line in lines if (body := bodies[line]) is not None]
    if is_deduping:
        _check_groups([(line, twins.identity(URL, body)) for line, body in asked])
    if by_prefix:
        lengths = {line: prefixes.answer_length(body, *prefixes.endpoint(URL)[1:]) for line, body in asked}
        if any(0 < each < order.TWIN for each in found.shared.tolist()):
            for rung in range(len(prefixes.RUNGS)):
                marks = [(line, _mark(body, rung)) for line, body in asked]
                _check_groups(marks, lengths)
    else:
        first = [line for line, shared in zip(lines, found.shared.tolist(), strict=True) if shared == 0]
        assert first[: len(first) - len(refused)] == sorted(first[: len(first) - len(refused)])


def _mark(body: dict[str, Any], rung: int) -> bytes | None:
    prompt = prefixes.prompt_of(body, prefixes.endpoint(URL).prompt)
    return prompt[: prefixes.RUNGS[rung]] if len(prompt) >= prefixes.RUNGS[rung] else None


def _check_groups(marked: list[tuple[int, bytes | None]], lengths: dict[int, int] | None = None) -> None:
    """Those with one mark stand together, unless all have it; the first of them has the longest answer."""
    if None not in (marks := {mark for _, mark in marked}) and len(marks) == 1:
        return
    seen: dict[bytes, int] = {}
    last = None
    for line, mark in marked:
        if mark is not None and mark != last:
            assert mark not in seen
            seen[mark] = line
        elif mark is not None and lengths:
            assert (-lengths[seen[mark]], seen[mark]) < (-lengths[line], line)
        last = mark
