"""What a merge promises: each request once, in input order, whatever the parts look like."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import buckets, errors, merge, spans
from spool import lines, parts, plan
from spool.parts import Result, Usage

EXPIRED = ("batch_expired", "too late")


def make_folders(root: Path) -> Path:
    batch = root / "batch_abc~1"
    (batch / plan.FOLDER).mkdir(parents=True)
    (batch / parts.FOLDER).mkdir()
    return batch


def make_ordered(root: Path, order: Sequence[int], sizes: Sequence[int]) -> Path:
    """A batch whose requests run in this order, in shards of these sizes."""
    batch = make_folders(root)
    texts = [json.dumps({"custom_id": f"c{line}"}).encode() + b"\n" for line in range(len(order))]
    (batch / plan.INPUT_FILE).write_bytes(b"".join(texts))
    offsets = list(itertools.accumulate(map(len, texts), initial=0))
    entries = b"".join(plan.ENTRY.pack(offsets[line], line, len(texts[line])) for line in order)
    (batch / plan.FOLDER / plan.ORDER_FILE).write_bytes(entries)
    firsts = itertools.accumulate(sizes, initial=0)
    shards = [
        plan.Shard(index, first, size, first * plan.ENTRY.size, 0, index)
        for index, (first, size) in enumerate(zip(firsts, sizes, strict=False))
    ]
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, shards)))
    return batch


def make_batch(root: Path, requests: int, shard_lines: int = 4, shuffled: bool = False) -> Path:
    batch = make_folders(root)
    shards: list[plan.Shard] = []
    offset = 0
    with open(batch / plan.INPUT_FILE, "wb") as file:
        for first in range(0, requests, shard_lines):
            held = range(first, min(first + shard_lines, requests))
            content = b"".join(json.dumps({"custom_id": f"c{line}"}).encode() + b"\n" for line in held)
            file.write(content)
            shards.append(plan.Shard(len(shards), first, len(held), offset, len(content)))
            offset += len(content)
    if shuffled:
        shards.reverse()
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, shards)))
    return batch


def result(line: int, ok: bool = True, text: str = "") -> Result:
    usage = Usage(3, 1, 2, 1) if ok else Usage()
    body = json.dumps({"text": text, "line": line}).encode()
    return Result(line, ok, usage, lines.response_line(f"abc_{line}", f"c{line}", 200 if ok else 400, body))


def write(batch: Path, shard: int, attempt: int, held: Sequence[int], text: str = "") -> None:
    parts.write(batch, shard, attempt, [result(line, text=text) for line in held])


def custom_ids(file: Path) -> list[str | None]:
    return [json.loads(line)["custom_id"] for line in file.read_bytes().splitlines()]


def test_answers_come_out_in_input_order(tmp_path: Path) -> None:
    """Neither the order of shards nor that of results within a part shows in the output."""
    batch = make_batch(tmp_path, 10, shuffled=True)
    write(batch, 2, 1, [9, 8])
    write(batch, 0, 1, [3, 1, 2, 0])
    write(batch, 1, 1, [4, 5, 6, 7])
    merged = merge.merge(batch, 10, EXPIRED, 0o644)
    assert (merged.total, merged.completed, merged.failed) == (10, 10, 0)
    assert custom_ids(batch / "merged" / "output.jsonl") == [f"c{line}" for line in range(10)]
    assert merged.errors is None
    assert not (batch / "merged" / "errors.jsonl").exists()
    assert merged.usage.input_tokens == 30
    assert merged.usage.cached_tokens == 10
    assert merged.usage.output_tokens == 20
    assert merged.usage.reasoning_tokens == 10


def test_facts_are_those_of_the_files(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 3)
    parts.write(batch, 0, 1, [result(0), result(1, ok=False), result(2)])
    merged = merge.merge(batch, 3, EXPIRED, 0o640)
    for facts, name in ((merged.output, "output.jsonl"), (merged.errors, "errors.jsonl")):
        file = batch / "merged" / name
        content = file.read_bytes()
        assert facts is not None
        assert facts.size_bytes == len(content)
        assert facts.sha256 == hashlib.sha256(content).hexdigest()
        assert facts.lines == len(content.splitlines())
        assert file.stat().st_mode & 0o777 == 0o640
    assert (merged.completed, merged.failed) == (2, 1)


def test_the_first_attempt_of_a_line_wins(tmp_path: Path) -> None:
    """A shard whose worker died after it had written is worked on twice; the line still comes out once."""
    batch = make_batch(tmp_path, 4)
    write(batch, 0, 1, [0, 1], "first")
    write(batch, 0, 2, [1, 2, 3], "second")
    merged = merge.merge(batch, 4, EXPIRED, 0o644)
    assert merged.completed == 4
    bodies = [
        json.loads(line)["response"]["body"]["text"]
        for line in (batch / "merged" / "output.jsonl").read_bytes().splitlines()
    ]
    assert bodies == ["first", "first", "second", "second"]
    assert merged.usage.input_tokens == 12


def test_unanswered_requests_become_errors(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 6)
    write(batch, 0, 1, [1])
    merged = merge.merge(batch, 6, EXPIRED, 0o644)
    assert (merged.completed, merged.failed) == (1, 5)
    failed = [json.loads(line) for line in (batch / "merged" / "errors.jsonl").read_bytes().splitlines()]
    assert [line["custom_id"] for line in failed] == ["c0", "c2", "c3", "c4", "c5"]
    assert failed[0] == {
        "id": "batch_req_abc_0",
        "custom_id": "c0",
        "response": None,
        "error": {"code": "batch_expired", "message": "too late"},
    }


def test_a_batch_without_any_part_is_all_errors(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 5)
    merged = merge.merge(batch, 5, EXPIRED, 0o644)
    assert merged.output is None
    assert not (batch / "merged" / "output.jsonl").exists()
    assert merged.failed == 5


def test_a_refused_line_keeps_its_place(tmp_path: Path) -> None:
    """Attempt 0 holds what on_invalid: skip refused; its line in input.jsonl is empty."""
    batch = make_batch(tmp_path, 2)
    (batch / plan.INPUT_FILE).write_bytes(b"\n" + b'{"custom_id":"c1"}\n')
    shard = plan.Shard(0, 0, 2, 0, 20)
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(plan.render(shard))
    refused = Result(0, False, Usage(), lines.error_line("abc_0", None, "invalid_json_line", "no JSON"))
    parts.write(batch, 0, 0, [refused])
    merge.merge(batch, 2, EXPIRED, 0o644)
    assert custom_ids(batch / "merged" / "errors.jsonl") == [None, "c1"]


def test_a_merge_says_when_results_came_and_how_long_they_took(tmp_path: Path) -> None:
    """By its parts' times and names; a line that stands in two parts counts once."""
    batch = make_batch(tmp_path, 8)
    timed = [
        (0, 1, 1100.0, [result(0)._replace(latency=12), result(1)._replace(latency=12)]),
        (0, 2, 1200.0, [result(1), result(2)._replace(latency=14), result(3, ok=False)]),
        (1, 1, 1400.0, [result(line)._replace(latency=13) for line in (4, 5)]),
    ]
    for shard, attempt, at, rows in timed:
        os.utime(parts.path_of(batch, parts.write(batch, shard, attempt, rows)), (at, at))
    merged = merge.merge(batch, 8, EXPIRED, 0o644, 1000.0)
    assert merged.timeline is not None
    assert (merged.timeline.began, merged.timeline.interval_s) == (1000.0, 400 / 3)
    assert merged.timeline.completed == (2, 1, 2)
    assert merged.timeline.failed == (0, 1, 0)
    assert merged.timeline.tokens == (10, 5, 10)
    assert merged.latency is not None
    assert merged.latency.counts[12:16] == (2, 2, 1, 0)
    assert sum(merged.latency.counts) == 5


def test_a_merge_may_be_repeated(tmp_path: Path) -> None:
    """What a merge that was killed left behind is thrown away."""
    batch = make_batch(tmp_path, 4)
    (batch / "merged").mkdir()
    (batch / "merged" / "errors.jsonl").write_text("half a li")
    (batch / "merged" / "output.jsonl.1-ab.tmp").write_text("half")
    write(batch, 0, 1, range(4))
    first = merge.merge(batch, 4, EXPIRED, 0o644)
    assert merge.merge(batch, 4, EXPIRED, 0o644) == first
    assert [entry.name for entry in (batch / "merged").iterdir()] == ["output.jsonl"]


def test_an_answer_may_hold_tabs_and_unicode_line_ends(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 1)
    text = lines.response_line("abc_0", "c\t0", 200, '{"t":"a\\tb\u2028c"}'.encode())
    parts.write(batch, 0, 1, [Result(0, True, Usage(), text)])
    merge.merge(batch, 1, EXPIRED, 0o644)
    assert (batch / "merged" / "output.jsonl").read_bytes() == text + b"\n"


def test_a_plan_with_a_gap_is_refused(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 8)
    shards = plan.read(batch)[1:]
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, shards)))
    with pytest.raises(errors.PipelineError, match="begins at request 4, not 0"):
        merge.merge(batch, 8, EXPIRED, 0o644)


def test_another_number_of_requests_is_refused(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 8)
    with pytest.raises(errors.PipelineError, match="8 requests, the plan 9"):
        merge.merge(batch, 9, EXPIRED, 0o644)


def test_a_result_of_another_shard_is_refused(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 8)
    write(batch, 0, 1, [0, 1, 2, 7])
    with pytest.raises(errors.PipelineError, match="shard 0"):
        merge.merge(batch, 8, EXPIRED, 0o644)


def test_a_truncated_part_is_refused(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 4)
    write(batch, 0, 1, range(4))
    part = next((batch / parts.FOLDER).iterdir())
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged row"):
        merge.merge(batch, 4, EXPIRED, 0o644)
    assert not (batch / "merged" / "output.jsonl").exists()


def test_an_adopted_batch_is_not_merged(tmp_path: Path) -> None:
    batch = make_batch(tmp_path, 4)
    batch.rename(tmp_path / "batch_abc~2")
    with pytest.raises(FileNotFoundError):
        merge.merge(batch, 4, EXPIRED, 0o644)


@st.composite
def _runs(draw: Any) -> tuple[list[int], list[int], list[list[list[int]]]]:
    """An order, sizes of shards, and for each shard the requests that each attempt answered."""
    count = draw(st.integers(1, 40))
    order = draw(st.permutations(range(count)))
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(draw(st.integers(1, min(9, count - sum(sizes)))))
    attempts = []
    for first, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):
        held = order[first : first + size]
        tries = draw(st.lists(st.lists(st.sampled_from(held), unique=True, min_size=1), max_size=3))
        attempts.append(tries)
    return order, sizes, attempts


@settings(max_examples=150, deadline=None)
@given(_runs(), st.sampled_from([1, 300, 1 << 20]))
def test_any_order_and_any_attempts_come_out_in_input_order(
    tmp_path_factory: pytest.TempPathFactory,
    run: tuple[list[int], list[int], list[list[list[int]]]],
    bucket_bytes: int,
) -> None:
    """The first attempt at a request wins, whatever has no result gets its error, and no bucket is left."""
    order, sizes, attempts = run
    batch = make_ordered(tmp_path_factory.mktemp("ordered"), order, sizes)
    expected: dict[int, str] = {}
    for shard, tries in enumerate(attempts):
        for attempt, held in enumerate(tries, 1):
            text = f"attempt {attempt}"
            rows = [result(line, ok=line % 5 != 4, text=text) for line in held]
            parts.write(batch, shard, attempt, rows)
            for line in held:
                expected.setdefault(line, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "BUCKET_BYTES", bucket_bytes)
        patch.setattr(buckets, "HELD_BYTES", 2 * bucket_bytes)
        merged = merge.merge(batch, len(order), EXPIRED, 0o644)
    assert merged.completed + merged.failed == len(order)
    assert {path.name for path in (batch / "merged").iterdir()} <= {"output.jsonl", "errors.jsonl"}
    found: dict[int, dict[str, Any]] = {}
    for facts, name in ((merged.output, "output.jsonl"), (merged.errors, "errors.jsonl")):
        if facts:
            texts = [json.loads(row) for row in (batch / "merged" / name).read_bytes().splitlines()]
            indices = [int(text["custom_id"][1:]) for text in texts]
            assert indices == sorted(indices)
            found |= dict(zip(indices, texts, strict=True))
    assert sorted(found) == list(range(len(order)))
    for line, row in found.items():
        if line in expected:
            assert row["response"]["body"] == {"text": expected[line], "line": line}
        else:
            assert row["error"]["code"] == "batch_expired"
    assert merged.usage.input_tokens == 3 * merged.completed


def test_a_bucket_that_is_much_larger_than_others_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long answers that stand together in the file must not be in memory together."""
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 1000)
    sorted_bytes = []
    plain = buckets._sort

    def sort(path: Path, held: range) -> spans.Texts:
        sorted_bytes.append(path.stat().st_size)
        return plain(path, held)

    monkeypatch.setattr(buckets, "_sort", sort)
    order = list(range(99, -1, -1))
    batch = make_ordered(tmp_path, order, [10] * 10)
    for shard in range(10):
        held = order[shard * 10 : shard * 10 + 10]
        parts.write(batch, shard, 1, [result(line, text="x" * (3000 if line < 12 else 1)) for line in held])
    merge.merge(batch, 100, None, 0o644)
    assert custom_ids(batch / "merged" / "output.jsonl") == [f"c{line}" for line in range(100)]
    assert max(sorted_bytes) <= 4000


def test_an_order_that_names_a_request_twice_is_refused(tmp_path: Path) -> None:
    batch = make_ordered(tmp_path, [0, 1, 2, 3], [2, 2])
    entry = plan.ENTRY.pack(0, 1, 20)
    (batch / plan.FOLDER / plan.ORDER_FILE).write_bytes(entry + plan.ENTRY.pack(0, 0, 20) + 2 * entry)
    write(batch, 0, 1, [0, 1])
    write(batch, 1, 1, [1])
    with pytest.raises(errors.PipelineError):
        merge.merge(batch, 4, EXPIRED, 0o644)


def test_a_merge_of_an_order_may_be_repeated(tmp_path: Path) -> None:
    """Buckets that a killed merge left are thrown away."""
    batch = make_ordered(tmp_path, [3, 1, 0, 2], [3, 1])
    write(batch, 0, 1, [3, 1, 0])
    (batch / "merged").mkdir()
    (batch / "merged" / "0-4.bucket").write_bytes(b"half a")
    first = merge.merge(batch, 4, EXPIRED, 0o644)
    assert merge.merge(batch, 4, EXPIRED, 0o644) == first
