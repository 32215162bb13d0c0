"""`batchd verify NAME`: prove promise 1 for a finished batch, line by line, from its own files."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from daemon import finished
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from daemon.finished import Finished
from pipeline import pairing
from spool import layout


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "verify",
        help="prove that a finished batch has one result for each request",
        description="Prove that a finished batch has exactly one result for each request of its input: reads "
        "the input from archive/, output.jsonl and errors.jsonl side by side, and compares sizes and hashes "
        "with what was recorded. Exit code 0: it holds; 1: it does not, and where.",
    )
    spool_option.add_name(parser)
    finished.add_input(parser)
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prove it, a line for each thing proved."""
    home = spool_option.home(arguments)
    batch = Finished(home, spool_option.outbox(home, arguments.name), arguments.input)
    total, completed, failed = batch.shown.counts
    if total == 0:
        print(f"{batch.shown.name} ended as {batch.shown.status} before any of its lines was accepted")
        print("nothing to prove: there are no result files")
        return Exit.DONE
    try:
        for proved in _prove(batch, total, completed, failed):
            print(f"ok    {proved}", flush=True)
    except (pairing.Mismatch, _Wrong) as error:
        print(f"FAIL  {error}")
        return Exit.FAILED
    print(f"{batch.shown.name}: each of {total:,} requests has exactly one result")
    return Exit.DONE


class _Wrong(Exception):
    """Something does not hold; the message says what."""


def _prove(batch: Finished, total: int, completed: int, failed: int) -> Iterator[str]:
    answered = unanswered = 0
    for pair in batch.pairs():
        answered += pair.is_answered
        unanswered += not pair.is_answered
        response = pair.result["response"]
        if pair.is_answered != (bool(response) and response["status_code"] == 200):
            raise _Wrong(f"the result of line {pair.line} of the input stands in the wrong file")
    yield f"input         each of {answered + unanswered:,} requests has its result, in the input's order"
    if (answered + unanswered, answered, unanswered) != (total, completed, failed):
        raise _Wrong(
            f"status.json counts {completed} completed and {failed} failed of {total}, "
            f"the files hold {answered} and {unanswered}"
        )
    yield f"status.json   counts {completed:,} completed and {failed:,} failed, as the files do"
    yield from _compare(batch)


def _compare(batch: Finished) -> Iterator[str]:
    """Sizes and hashes against final.json and record.json, which the daemon's user alone may read."""
    try:
        record = orjson.loads((batch.archived / layout.RECORD_FILE).read_bytes())
        final = orjson.loads((batch.archived / layout.FINAL_FILE).read_bytes())
    except (FileNotFoundError, PermissionError):
        return
    except (OSError, orjson.JSONDecodeError) as error:
        raise CommandError(f"{batch.archived} cannot be read: {error}", Exit.FAILED) from error
    recorded = {
        layout.OUTPUT_FILE: final["output"],
        layout.ERRORS_FILE: final["errors_file"],
        "input": {"sha256": record["plan"]["sha256"], "size_bytes": record["plan"]["input_bytes"]},
    }
    for name, path in {**batch.files, "input": batch.drop}.items():
        facts = recorded[name]
        digest, size_bytes = _facts(path)
        if facts is None or (digest, size_bytes) != (facts["sha256"], facts["size_bytes"]):
            raise _Wrong(f"{path} was changed: it holds other bytes than were recorded")
        yield f"{name:<13} {size_bytes:,} bytes, sha256 {digest[:12]}…, as recorded"


def _facts(path: Path) -> tuple[str, int]:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
