"""The judge of the fault tests: reads the spool as a user would, and shares no code with the product.

`judge` looks at a spool in which everything has come to its end; `Reader` polls status.json all the time and
notices whatever goes backwards or does not parse.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai.types import Batch

TERMINAL = {"completed", "failed", "expired", "cancelled"}
# Which status may follow which, besides itself.
FOLLOWS = {
    "validating": {"in_progress", "failed", "expired", "cancelling", "cancelled", "completed", "finalizing"},
    "in_progress": {"finalizing", "cancelling", "completed", "expired", "cancelled"},
    "finalizing": {"completed", "expired", "cancelled"},
    "cancelling": {"cancelled"},
}

# What the right answer to a request is, from its input line; None where any answer will do.
Expected = Callable[[dict[str, Any]], str | None]


@dataclass
class Verdict:
    """What was wrong, by kind; all empty means right."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def __str__(self) -> str:
        shown = {name: problems[:5] for name, problems in vars(self).items() if problems}
        return f"lost {len(self.lost)}, doubled {len(self.doubled)}, wrong {len(self.wrong)}: {shown}"


def judge(spool: Path, drops: dict[str, bytes], expected: Expected) -> Verdict:
    """Check every promise about the files of drops that have come to their end.

    Args:
        spool: the root.
        drops: what was dropped, by name in the inbox.
        expected: the right answer of a request.
    """
    verdict = Verdict()
    shown = _shown(spool, verdict)
    for name, content in drops.items():
        folders = [folder for folder, status in shown.items() if status["input_file_id"] == name]
        if len(folders) != 1:
            (verdict.lost if not folders else verdict.doubled).append(f"{name}: {len(folders)} batches")
            continue
        _judge_batch(spool / "outbox" / folders[0], shown[folders[0]], content, expected, verdict)
        kept = spool / "archive" / shown[folders[0]]["id"] / "drop.jsonl"
        if not kept.exists() or kept.read_bytes() != content:
            verdict.wrong.append(f"{name}: the archive does not hold what was dropped")
    _judge_strays(spool, verdict)
    return verdict


def _shown(spool: Path, verdict: Verdict) -> dict[str, dict[str, Any]]:
    shown = {}
    for folder in (spool / "outbox").iterdir():
        try:
            status = json.loads((folder / "status.json").read_bytes())
            Batch.model_validate(status)
        except (OSError, ValueError) as error:
            verdict.wrong.append(f"{folder.name}: status.json: {error}")
            continue
        shown[folder.name] = status
    return shown


def _judge_batch(
    folder: Path, status: dict[str, Any], content: bytes, expected: Expected, verdict: Verdict
) -> None:
    name = folder.name
    if status["status"] not in TERMINAL:
        verdict.lost.append(f"{name}: still {status['status']}")
        return
    if status["status"] == "failed":
        return
    requests = [json.loads(line) for line in content.split(b"\n") if line.strip()]
    output, errors = _lines(folder / "output.jsonl"), _lines(folder / "errors.jsonl")
    _judge_lines(name, requests, output, errors, verdict)
    _judge_answers(name, requests, output, errors, expected, verdict)
    counts = status["request_counts"]
    if (counts["total"], counts["completed"], counts["failed"]) != (len(requests), len(output), len(errors)):
        verdict.wrong.append(f"{name}: counts {counts}, lines {len(requests)}, {len(output)}, {len(errors)}")
    for key, rows in (("output_file_id", output), ("error_file_id", errors)):
        if bool(status[key]) != bool(rows):
            verdict.wrong.append(f"{name}: {key} is {status[key]!r} with {len(rows)} lines")
    strays = {path.name for path in folder.iterdir()} - {"status.json", "output.jsonl", "errors.jsonl"}
    strays -= {"cancel.refused"}
    verdict.wrong += [f"{name}: stray {stray}" for stray in strays]


_Rows = list[dict[str, Any]]


def _judge_lines(name: str, requests: _Rows, output: _Rows, errors: _Rows, verdict: Verdict) -> None:
    """Each custom_id exactly once, in input order."""
    seen = Counter(row["custom_id"] for row in output + errors)
    wanted = [request["custom_id"] for request in requests]
    verdict.lost += [f"{name}: {custom_id}" for custom_id in wanted if seen[custom_id] == 0]
    verdict.doubled += [f"{name}: {custom_id}" for custom_id, count in seen.items() if count > 1]
    verdict.wrong += [f"{name}: stranger {custom_id}" for custom_id in seen.keys() - set(wanted)]
    position = {custom_id: n for n, custom_id in enumerate(wanted)}
    for rows, file in ((output, "output"), (errors, "errors")):
        order = [position.get(row["custom_id"], -1) for row in rows]
        if order != sorted(order):
            verdict.wrong.append(f"{name}: {file} is not in input order")


def _judge_answers(
    name: str, requests: _Rows, output: _Rows, errors: _Rows, expected: Expected, verdict: Verdict
) -> None:
    """Each answer is the right one for its line, each error has a reason."""
    by_id = {request["custom_id"]: request for request in requests}
    for row in output:
        want = expected(by_id[row["custom_id"]])
        got = row["response"]["body"]["choices"][0]["message"]["content"]
        if want is not None and got != want:
            verdict.wrong.append(f"{name}: {row['custom_id']}: {got!r} instead of {want!r}")
    for row in errors:
        if row["response"] is None and not (row["error"]["code"] and row["error"]["message"]):
            verdict.wrong.append(f"{name}: {row['custom_id']}: an error without a reason")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = path.read_bytes()
    assert content.endswith(b"\n"), f"{path} is torn"
    return [json.loads(line) for line in content.splitlines()]


def _judge_strays(spool: Path, verdict: Verdict) -> None:
    for path in (spool / "work").glob("*/batch_*"):
        verdict.wrong.append(f"left in work/: {path.name}")
    for path in (spool / "inbox").rglob("*.jsonl"):
        verdict.lost.append(f"left in inbox/: {path.name}")
    for folder in (spool / "archive").iterdir():
        extra = {path.name for path in folder.iterdir()} - {
            "drop.jsonl",
            "record.json",
            "final.json",
            "published",
        }
        verdict.wrong += [f"left in archive/{folder.name}: {name}" for name in extra]


class Reader:
    """Polls every status.json until it is stopped; `problems` holds what a reader must never see."""

    def __init__(self, spool: Path) -> None:
        self.problems: list[str] = []
        self.looks = 0
        self._outbox = spool / "outbox"
        self._last: dict[str, dict[str, Any]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> list[str]:
        """End the polling; everything that was wrong."""
        self._stop.set()
        self._thread.join(10)
        return self.problems

    def _poll(self) -> None:
        while not self._stop.wait(0.01):
            try:
                folders = list(self._outbox.iterdir())
            except OSError:
                continue  # a fault of the test's own, such as a folder that is away
            for folder in folders:
                self._look(folder)

    def _look(self, folder: Path) -> None:
        try:
            content = (folder / "status.json").read_bytes()
        except OSError:
            return
        self.looks += 1
        try:
            status = json.loads(content)
            Batch.model_validate(status)
        except ValueError as error:
            self.problems.append(f"{folder.name}: does not parse: {error}")
            return
        last = self._last.get(status["id"])
        if last is not None:
            self.problems += [f"{folder.name}: {problem}" for problem in backwards(last, status)]
        if status["status"] in TERMINAL:
            for key in ("output_file_id", "error_file_id"):
                if status[key] and not (self._outbox / status[key]).exists():
                    self.problems.append(f"{folder.name}: terminal, but {status[key]} is not there")
        self._last[status["id"]] = status


def backwards(last: dict[str, Any], status: dict[str, Any]) -> list[str]:
    """What went backwards between two looks at one batch."""
    problems = []
    before, after = last["status"], status["status"]
    if before in TERMINAL and last != status:
        problems.append(f"changed after {before}")
    elif after != before and after not in FOLLOWS.get(before, set()):
        problems.append(f"went from {before} to {after}")
    if after != "failed":
        problems += [
            f"{name} fell from {last['request_counts']} to {status['request_counts']}"
            for name in ("completed", "failed", "total")
            if status["request_counts"][name] < last["request_counts"][name]
        ]
    kept = last["batchd"]["history"]
    if status["batchd"]["history"][: len(kept)] != kept and len(kept) < 50:
        problems.append("history was rewritten")
    problems += [
        f"{name} changed from {last[name]} to {status[name]}"
        for name in ("in_progress_at", "finalizing_at", "cancelling_at", "created_at", "expires_at")
        if last[name] is not None and status[name] != last[name] and after not in TERMINAL
    ]
    return problems
