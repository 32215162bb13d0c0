"""`batchd submit FILE`: drop a file so that it enters complete and overwrites nothing; maybe wait."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from daemon import dropping
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from spool import files, layout


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "submit",
        help="drop a batch file into the spool",
        description="Drop a batch file into the spool; with --wait, follow it to its end. "
        "Exit code 0: every request was answered; 1: the batch failed or has errors; 4: --timeout ran out.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a batch file (OpenAI's JSONL)")
    parser.add_argument("--name", metavar="NAME", help="name in the inbox (default: the file's own)")
    parser.add_argument(
        "--metadata",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="goes into status.json; repeatable",
    )
    dropping.add(parser)
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Drop the file, and wait if that was asked for."""
    home = spool_option.home(arguments)
    wishes = dropping.wishes(arguments, _metadata(arguments.metadata))
    name = _name(arguments)
    try:
        with open(arguments.file, "rb") as reader:
            content = iter(partial(reader.read, files.BUFFER_BYTES), b"")
            return dropping.submit(arguments, home, content, Path(name), wishes)
    except OSError as error:
        raise CommandError(f"cannot read {arguments.file}: {error.strerror}", Exit.WRONG_USE) from error


def _name(arguments: argparse.Namespace) -> str:
    name: str = arguments.name or arguments.file.name
    if not name.endswith(layout.SUFFIX):
        name += layout.SUFFIX
    if "/" in name or not layout.is_drop_name(name):
        raise CommandError(
            f"{name!r} cannot be the name of a drop (a plain *.jsonl, no folder): choose one with --name",
            Exit.WRONG_USE,
        )
    return name


def _metadata(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (_, separator, _) in zip(texts, pairs, strict=True):
        if not separator:
            raise CommandError(f"--metadata {text!r}: must be KEY=VALUE", Exit.WRONG_USE)
    return {key: value for key, _, value in pairs}
