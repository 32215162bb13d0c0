"""`batchd validate FILE`: the daemon's verdict on a file, without an engine and without a spool."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import load
from daemon import outlook
from daemon.commands import spool_option
from daemon.excerpt import excerpt
from daemon.exits import CommandError, Exit
from pipeline import validate
from spool.record import LineError


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "validate",
        help="check a batch file as the daemon would",
        description="Check a batch file as the daemon would. Nothing is run and nothing is written. With "
        "--model, also count its tokens, find what does not fit into the context and what need not be "
        "computed, and tell the time from past batches in the spool.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a batch file, or - for standard input")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings, for models and limits")
    parser.add_argument("--endpoint", metavar="URL", help="require this endpoint, as a sidecar can")
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="also say what the file would take, with the tokenizer of this model's folder and no engine",
    )
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict; errors as FILE:LINE: CODE: MESSAGE, on a terminal with an excerpt of the line."""
    settings = load.load(arguments.config)
    rules = validate.Rules(
        models=frozenset(model.name for model in settings.models),
        limits=settings.limits,
        endpoint=arguments.endpoint,
        allowed_media_domains=settings.engine.allowed_media_domains,
    )
    try:
        if str(arguments.file) == "-":
            verdict = validate.check(sys.stdin.buffer, rules)
        else:
            with open(arguments.file, "rb") as source:
                verdict = validate.check(source, rules)
    except OSError as error:
        raise CommandError(f"cannot read {arguments.file}: {error.strerror}", Exit.WRONG_USE) from error
    _print_errors(arguments.file, verdict.errors)
    if not verdict.is_valid:
        count = verdict.total_errors
        print(
            f"invalid: {count} error{'s' if count != 1 else ''}; nothing of this file would run",
            file=sys.stderr,
        )
        return Exit.FAILED
    print(f"valid: {verdict.requests} requests to {verdict.endpoint} for {verdict.model}")
    if arguments.model:
        for fact in outlook.facts(arguments.file, arguments.model, arguments.spool, settings, verdict.model):
            print(fact)
    return Exit.DONE


def _print_errors(file: Path, errors: Sequence[LineError]) -> None:
    lines = _read_lines(file, {problem.line for problem in errors if problem.line})
    for problem in errors:
        where = f"{file}:{problem.line}" if problem.line else str(file)
        print(f"{where}: {problem.code}: {problem.message}")
        for shown in excerpt(lines.get(problem.line, b""), problem):
            print(f"    {shown}")


def _read_lines(file: Path, wanted: set[int]) -> dict[int | None, bytes]:
    """Some lines by their numbers, for a person; none of standard input, which was read already."""
    if not wanted or str(file) == "-" or not sys.stdout.isatty():
        return {}
    with open(file, "rb") as source:
        return {number: line for number, line in enumerate(source, 1) if number in wanted}
