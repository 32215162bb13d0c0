"""The private copy and the plan that validation leaves in a batch's folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import LimitSettings
from pipeline import validate
from pipeline.order_notes import Wishes
from spool import parts, plan

URL = "/v1/chat/completions"


def line(custom_id: Any = "a", content: str = "1+1", **fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": body} | fields)


def rules(**fields: Any) -> validate.Rules:
    limits = {name: fields.pop(name) for name in list(fields) if name in LimitSettings.model_fields}
    given: dict[str, Any] = {"models": frozenset({"m"}), "limits": LimitSettings(**limits)}
    return validate.Rules(**(given | fields))


def copy(content: bytes, batch: Path, **fields: Any) -> validate.Verdict:
    """Copy, and prove on the way that a dry run says the same."""
    verdict = validate.check_and_copy(io.BytesIO(content), batch, "batch_7", rules(**fields))
    dry = validate.check(io.BytesIO(content), rules(**fields))
    same = [name for name in validate.Verdict.__slots__ if name != "shards"]
    assert [getattr(dry, name) for name in same] == [getattr(verdict, name) for name in same]
    return verdict


def files_in(batch: Path) -> list[str]:
    return sorted(str(path.relative_to(batch)) for path in batch.rglob("*") if path.is_file())


def requests_of(batch: Path) -> list[bytes]:
    """All requests by the plan, proving that it covers input.jsonl exactly."""
    shards = plan.read(batch)
    offset = first = 0
    found: list[bytes] = []
    for index, shard in enumerate(shards):
        assert (shard.index, shard.offset, shard.first_line) == (index, offset, first)
        numbered = list(plan.read_requests(batch, shard))
        assert [number for number, _ in numbered] == list(range(first, first + shard.lines))
        found += [raw for _, raw in numbered]
        offset, first = offset + shard.size_bytes, first + shard.lines
    assert (batch / plan.INPUT_FILE).stat().st_size == offset
    return found


def test_a_valid_file_leaves_its_copy_and_its_plan(tmp_path: Path) -> None:
    """Requests stand as they are in the drop, without BOM, CR, blank lines and blanks around them."""
    lines = [line(str(number), " x\u2028 ") for number in range(300)]
    verdict = copy(b"\xef\xbb\xbf\r\n" + b" \r\n\n \t".join(lines), tmp_path)
    assert verdict.is_valid
    assert requests_of(tmp_path) == lines
    assert [shard.lines for shard in plan.read(tmp_path)] == [128, 128, 44]
    assert verdict.shards == 3
    assert files_in(tmp_path) == ["input.jsonl", "plan/shards.jsonl"]
    assert parts.list_parts(tmp_path) == []
    assert (tmp_path / "input.jsonl").stat().st_mode & 0o777 == 0o600


def test_shards_are_bounded_in_bytes(tmp_path: Path) -> None:
    """A shard holds about 4 MiB, unless it is one huge line."""
    sizes = [1 << 20] * 9 + [6 << 20, 10, 10]
    lines = [line(str(number), "x" * size) for number, size in enumerate(sizes)]
    assert copy(b"\n".join(lines), tmp_path).is_valid
    assert requests_of(tmp_path) == lines
    assert [shard.lines for shard in plan.read(tmp_path)] == [3, 3, 3, 1, 2]


@pytest.mark.parametrize("bad", [0, 150, 299])
def test_an_invalid_file_leaves_nothing(tmp_path: Path, bad: int) -> None:
    """No copy, no plan, no parts, no temporary file."""
    lines = [line(str(number)) for number in range(300)]
    lines[bad] = b"{"
    verdict = copy(b"\n".join(lines), tmp_path)
    assert [error.line for error in verdict.errors] == [bad + 1]
    assert verdict.shards == 0
    assert files_in(tmp_path) == []


def test_refused_lines_keep_their_place_and_become_failures(tmp_path: Path) -> None:
    """Under skip a refused line stands empty in the copy, and its failure is a part of attempt 0."""
    lines = [line(str(number)) for number in range(300)]
    lines[5] = b"{"
    lines[130] = line("x", method="GET")
    lines[131] = line("7")
    content = b"\n" + b"\n".join(lines)
    verdict = copy(content, tmp_path, on_invalid="skip")
    assert verdict.is_valid
    assert (verdict.requests, verdict.rejected) == (300, 3)
    refused = {5, 130, 131}
    expected = [b"" if number in refused else raw for number, raw in enumerate(lines)]
    assert requests_of(tmp_path) == expected
    assert [(name.shard, name.attempt, name.failed) for name in parts.list_parts(tmp_path)] == [
        (0, 0, 1),
        (1, 0, 2),
    ]
    rows = {row.line: row for name in parts.list_parts(tmp_path) for row in parts.read(tmp_path, name)}
    assert set(rows) == refused
    assert not any(row.ok for row in rows.values())
    failure = orjson.loads(rows[131].text)
    assert failure["id"] == "batch_req_7_131"
    assert failure["custom_id"] == "7"
    assert failure["error"] is None
    assert failure["response"]["status_code"] == 400
    error = failure["response"]["body"]["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "duplicate_custom_id",
        "custom_id",
    )
    assert error["message"].startswith("Line 133: ")
    assert orjson.loads(rows[5].text)["custom_id"] is None
    assert orjson.loads(rows[130].text)["custom_id"] == "x"


def line_of(content: bytes, **fields: Any) -> bytes:
    request = orjson.loads(content)
    return orjson.dumps(request | {"body": request["body"] | fields})


def test_a_file_may_run_in_another_order_than_its_own(tmp_path: Path) -> None:
    """The copy is in the file's order all the same; what is refused runs last, and is done."""
    lines = [b"{", *(line_of(line(str(n), f"{n % 150}"), temperature=0) for n in range(300)), b"{"]
    verdict = copy(b"\n".join(lines), tmp_path, on_invalid="skip")
    assert files_in(tmp_path) == [
        "input.jsonl",
        "parts/00000001.0.ok0.err2.tok0",
        "plan/order.bin",
        "plan/shards.jsonl",
    ]
    expected = [b"" if raw == b"{" else raw for raw in lines]
    assert (tmp_path / "input.jsonl").read_bytes() == b"\n".join(expected) + b"\n"
    shards = plan.read(tmp_path)
    assert [(shard.lines, shard.distinct) for shard in shards] == [(256, 128), (46, 24)]
    assert verdict.shards == 2
    numbered = [each for shard in shards for each in plan.read_requests(tmp_path, shard)]
    twins = [number for first in range(1, 151) for number in (first, first + 150)]
    assert numbered == [(number, expected[number]) for number in [*twins, 0, 301]]
    (name,) = parts.list_parts(tmp_path)
    assert [row.line for row in parts.read(tmp_path, name)] == [0, 301]


def test_the_settings_decide_whether_there_is_an_order(tmp_path: Path) -> None:
    lines = [line_of(line(str(n), f"{n % 5}"), temperature=0, max_tokens=1 + n % 2) for n in range(20)]
    found = {}
    for by_prefix, is_deduping in ((False, False), (False, True), (True, False)):
        batch = tmp_path / f"{by_prefix}-{is_deduping}"
        batch.mkdir()
        copy(b"\n".join(lines), batch, wishes=Wishes(by_prefix, is_deduping))
        (shard,) = plan.read(batch)
        found[by_prefix, is_deduping] = [number for number, _ in plan.read_requests(batch, shard)]
    assert found[False, False] == list(range(20))
    assert found[False, True] == [first + step for first in range(10) for step in (0, 10)]
    assert found[True, False] == [*range(1, 20, 2), *range(0, 20, 2)]


def test_every_line_may_be_refused(tmp_path: Path) -> None:
    """A batch of failures has a plan as any other."""
    verdict = copy(b"{\n" * 130, tmp_path, on_invalid="skip")
    assert verdict.is_valid
    assert (verdict.requests, verdict.rejected, verdict.shards) == (130, 130, 2)
    assert requests_of(tmp_path) == [b""] * 130
    assert sum(name.failed for name in parts.list_parts(tmp_path)) == 130


def test_a_file_that_fails_under_skip_leaves_no_parts(tmp_path: Path) -> None:
    """What was refused before the file turned out too large goes too."""
    verdict = copy(b"{\n" * 300, tmp_path, on_invalid="skip", max_requests=200)
    assert [error.code for error in verdict.errors] == ["too_many_tasks"]
    assert files_in(tmp_path) == []


def test_what_a_killed_attempt_left_is_replaced(tmp_path: Path) -> None:
    """Old parts of attempt 0, temporaries, copy and plan go; parts of runs are not validation's to touch."""
    copy(b"{\n" * 300, tmp_path, on_invalid="skip")
    (tmp_path / "input.jsonl.1-ab.tmp").write_bytes(b"half")
    (tmp_path / "plan" / "order.bin").write_bytes(b"of another order")
    (tmp_path / "parts" / "00000000.0.ok0.err1.tok0.1-ab.tmp").write_bytes(b"half")
    kept = tmp_path / "parts" / "00000000.1.ok1.err0.tok5"
    kept.write_bytes(b"")
    copy(line("b"), tmp_path)
    assert files_in(tmp_path) == ["input.jsonl", f"parts/{kept.name}", "plan/shards.jsonl"]
    assert requests_of(tmp_path) == [line("b")]


def test_stopping_leaves_neither_copy_nor_plan(tmp_path: Path) -> None:
    """The next attempt starts from scratch."""
    stops = iter([False, False, True])
    content = b"\n".join(line(str(number)) for number in range(10_000))
    with pytest.raises(validate.ValidationStopped):
        validate.check_and_copy(io.BytesIO(content), tmp_path, "batch_7", rules(), lambda: next(stops))
    assert files_in(tmp_path) == []


def test_a_batch_that_was_adopted_raises(tmp_path: Path) -> None:
    """The folder is never made anew."""
    with pytest.raises(FileNotFoundError):
        validate.check_and_copy(io.BytesIO(line()), tmp_path / "gone", "batch_7", rules())
    assert not (tmp_path / "gone").exists()


_LINES = st.lists(
    st.sampled_from(
        [b"", b" ", b"{", b"\x00", line("a"), line("b"), line("c") + b"\r", line("d", method="GET")]
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(_LINES, st.sampled_from(["fail", "skip"]))
def test_copy_plan_and_parts_cover_each_request_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], on_invalid: str
) -> None:
    """Every request is either in the copy or refused in a part, and dry runs agree."""
    batch = tmp_path_factory.mktemp("batch")
    verdict = copy(b"\n".join(lines), batch, on_invalid=on_invalid)
    if not verdict.is_valid:
        assert files_in(batch) == []
        return
    found = requests_of(batch)
    assert len(found) == verdict.requests
    refused = {row.line for name in parts.list_parts(batch) for row in parts.read(batch, name)}
    assert {number for number, raw in enumerate(found) if not raw} == refused
    assert len(refused) == verdict.rejected
