"""A merge writes, byte for byte, what a simple one writes that has everything in memory, which it has not."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import behind, buckets, merge, merge_groups, merge_results, result_file
from spool import lines, parts, plan
from spool.parts import Result, Usage

GIVEN_UP = ("batch_cancelled", "it was cancelled — by a user")


class Case(NamedTuple):
    """A batch: its requests, those refused, the order, the sizes of its shards, and a seed for its parts."""

    requests: int
    refused: set[int]
    order: list[int] | None
    sizes: list[int]
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    count = draw(st.integers(1, 60))
    edges = st.sampled_from([0, count - 1])  # blank lines at the edges, and some between
    refused = draw(st.sets(st.one_of(edges, st.integers(0, count - 1)), max_size=4))
    order = draw(st.none() | st.permutations(range(count)))
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(draw(st.integers(1, min(12, count - sum(sizes)))))
    return Case(count, refused, order, sizes, draw(st.integers(0, 2**32)))


def make(batch: Path, case: Case) -> None:
    """The plan, and parts of up to three attempts at each shard, of which later ones repeat earlier ones."""
    for folder in (plan.FOLDER, parts.FOLDER):
        (batch / folder).mkdir(parents=True)
    written = [
        b"\n" if line in case.refused else json.dumps({"custom_id": f"ü{line}"}).encode() + b"\n"
        for line in range(case.requests)
    ]
    (batch / plan.INPUT_FILE).write_bytes(b"".join(written))
    offsets = list(itertools.accumulate(map(len, written), initial=0))
    order = case.order or list(range(case.requests))
    if case.order:
        entries = (plan.ENTRY.pack(offsets[line], line, len(written[line])) for line in order)
        (batch / plan.FOLDER / plan.ORDER_FILE).write_bytes(b"".join(entries))
    rows, firsts = [], itertools.accumulate(case.sizes, initial=0)
    generator = random.Random(case.seed)
    for index, (first, size) in enumerate(zip(firsts, case.sizes, strict=False)):
        held = order[first : first + size]
        content = sum(len(written[line]) for line in held)
        offset = first * plan.ENTRY.size if case.order else offsets[first]
        rows.append(plan.Shard(index, first, size, offset, content, index // 2 if case.order else None))
        if gone := [line for line in held if line in case.refused]:
            parts.write(batch, index, 0, [refusal(line) for line in gone])
        kept = [line for line in held if line not in case.refused]
        for attempt in range(1, generator.randrange(4)):
            if some := generator.sample(kept, generator.randint(0, len(kept))):
                parts.write(batch, index, attempt, [result(line, attempt, generator) for line in some])
    generator.shuffle(rows)  # a plan says what runs first
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, rows)))


def refusal(line: int) -> Result:
    return Result(line, False, Usage(), lines.error_line(f"abc_{line}", None, "invalid_json_line", "no"))


def result(line: int, attempt: int, generator: random.Random) -> Result:
    ok = generator.random() < 0.7
    usage = (
        Usage(*(generator.randrange(10 ** generator.randrange(1, 6)) for _ in range(4))) if ok else Usage()
    )
    body = json.dumps({"attempt": attempt, "text": "x\t" * generator.randrange(200)}).encode()
    text = lines.response_line(f"abc_{line}", f"ü{line}", 200 if ok else 400, body)
    return Result(line, ok, usage, text, generator.random() < 0.3, generator.randrange(20) if ok else None)


class Expected(NamedTuple):
    """What comes of a batch."""

    output: bytes
    errors: bytes
    usage: Usage
    shared: int


def reference(batch: Path, case: Case) -> Expected:
    """The first result of each request, in the file's order; with everything in memory."""
    first: dict[int, Result] = {}
    for name in parts.list_parts(batch):
        for row in parts.read(batch, name):
            first.setdefault(row.line, row)
    for line in range(case.requests):
        failed = lines.error_line(f"abc_{line}", f"ü{line}", *GIVEN_UP)
        first.setdefault(line, Result(line, False, Usage(), failed))
    rows = [first[line] for line in range(case.requests)]
    return Expected(
        b"".join(row.text + b"\n" for row in rows if row.ok),
        b"".join(row.text + b"\n" for row in rows if not row.ok),
        parts.total([Usage(), *(row.usage for row in rows if row.ok)]),
        sum(row.shared for row in rows),
    )


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([1, 900, 1 << 21]))
def test_a_merge_writes_what_a_simple_one_writes(
    tmp_path_factory: pytest.TempPathFactory, case: Case, group_bytes: int
) -> None:
    """Several attempts, failures, twins, refused lines, requests without a result, in any order."""
    batch = tmp_path_factory.mktemp("merged") / "batch_abc~1"
    make(batch, case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(merge_results, "GROUP_BYTES", group_bytes)
        patch.setattr(merge_groups, "SEARCH_BYTES", group_bytes // 2)
        patch.setattr(buckets, "HELD_BYTES", group_bytes)
        patch.setattr(buckets, "BUCKET_BYTES", group_bytes)
        patch.setattr(result_file, "SYNC_BYTES", group_bytes)
        patch.setattr(behind, "LEAST_BYTES", min(group_bytes, 3000))
        merged = merge.merge(batch, case.requests, GIVEN_UP, 0o644)
    expected = reference(batch, case)
    found = {path.name: path.read_bytes() for path in (batch / merge.FOLDER).iterdir()}
    wanted = {merge.OUTPUT_FILE: expected.output, merge.ERRORS_FILE: expected.errors}
    assert found == {name: content for name, content in wanted.items() if content}
    assert merged.usage.model_dump() == {
        name: getattr(expected.usage, name) for name in merged.usage.model_dump()
    }
    assert (merged.shared, merged.completed) == (expected.shared, expected.output.count(b"\n"))
    tallies = parts.tally(batch).values()
    if merged.timeline:  # what the validator refused is not in it
        in_it = sum(merged.timeline.completed) + sum(merged.timeline.failed)
        assert in_it == sum(tally.results for tally in tallies) - len(case.refused)


def make_large(batch: Path, count: int, is_ordered: bool) -> None:
    """Answers of 8,000 bytes."""
    for folder in (plan.FOLDER, parts.FOLDER):
        (batch / folder).mkdir(parents=True)
    order = list(range(count))
    if is_ordered:
        random.Random(1).shuffle(order)
        entries = b"".join(plan.ENTRY.pack(0, line, 1) for line in order)
        (batch / plan.FOLDER / plan.ORDER_FILE).write_bytes(entries)
    with open(batch / plan.FOLDER / plan.SHARDS_FILE, "wb") as file:
        for first in range(0, count, 128):
            held = order[first : first + 128]
            index = first // 128
            offset = first * plan.ENTRY.size if is_ordered else 0
            group = index if is_ordered else None
            file.write(plan.render(plan.Shard(index, first, len(held), offset, 1, group)))
            rows = [Result(line, True, Usage(1, 0, 1, 0), b'{"n":%8000d}' % line) for line in held]
            parts.write(batch, index, 1, rows)


_CHILD = """
import json, sys
from pathlib import Path
from pipeline import merge
peaks = []
for folder, count in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    merge.merge(Path(folder), count, None, 0o644)
    status = Path("/proc/self/status").read_text()
    peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
print(json.dumps(peaks))
"""


@pytest.mark.parametrize("is_ordered", [False, True])
def test_memory_does_not_grow_with_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ordered: bool
) -> None:
    """A batch of 160 MB takes no more than one of 50 MB, beyond what the allocators keep."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    batches = {tmp_path / f"batch_{count}~1": count for count in (6_000, 20_000)}
    for batch, count in batches.items():
        make_large(batch, count, is_ordered)
    arguments = itertools.chain.from_iterable((str(batch), str(count)) for batch, count in batches.items())
    done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], check=True, capture_output=True)
    small, large = json.loads(done.stdout)
    assert large - small < 32, f"{small:.0f} MiB, then {large:.0f} MiB"
    for batch, count in batches.items():
        numbers = [int(row[5:-1]) for row in (batch / "merged" / "output.jsonl").read_bytes().splitlines()]
        assert numbers == list(range(count))


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_sync_that_fails_ends_the_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, is_ordered: bool
) -> None:
    """In whatever thread; it is never asked a second time, and no result file stands."""
    batch = tmp_path / "batch_abc~1"
    make_large(batch, 400, is_ordered)
    monkeypatch.setattr(result_file, "SYNC_BYTES", 1)
    monkeypatch.setattr(merge_results, "GROUP_BYTES", 1)
    asked = []

    def fails(descriptor: int) -> None:
        asked.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(OSError, match="Input/output"):
        merge.merge(batch, 400, None, 0o644)
    assert len(asked) == 1
    assert not [path for path in (batch / "merged").iterdir() if path.suffix != ".bucket"]


def test_a_full_disk_in_another_thread_ends_the_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a bucket is written."""
    batch = tmp_path / "batch_abc~1"
    make_large(batch, 400, True)

    def fails(_descriptor: int, _pieces: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", fails)
    with pytest.raises(OSError, match="No space"):
        merge.merge(batch, 400, None, 0o644)


def test_a_bucket_that_is_written_in_bits_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nearly full disk takes a part of what it is given, and says nothing.

    Nobody looked at how much that was: rows were missing then, and the batch was held for a person.
    """
    batch = tmp_path / "batch_abc~1"
    make_large(batch, 400, True)

    def writev(descriptor: int, pieces: list[bytes]) -> int:
        return os.write(descriptor, b"".join(pieces)[:1000])

    monkeypatch.setattr(os, "writev", writev)
    merged = merge.merge(batch, 400, None, 0o644)
    assert merged.completed == 400
    rows = (batch / "merged" / "output.jsonl").read_bytes().splitlines()
    assert [int(row[5:-1]) for row in rows] == list(range(400))
