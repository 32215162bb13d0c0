"""The command `batchd`: reads arguments, runs a command, maps each expected error to one line and a code."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from config.load import SettingsError
from daemon import completion
from daemon.commands import (
    cancel,
    doctor,
    init,
    pause,
    report,
    retry,
    run,
    status,
    submit,
    top,
    validate,
    verify,
    watch,
)
from daemon.exits import CommandError, Exit
from spool.errors import SpoolError

_ABOUT = """\
Answers OpenAI-format batch files that are dropped into a folder, with vLLM on Ray Data.

  batchd init ./spool                    make a spool
  batchd run                             serve it (Ctrl-C stops in order; the next start goes on)
  cp jan.jsonl spool/inbox/              drop a batch file; the answers come to spool/outbox/jan/
  batchd submit jan.jsonl --wait         the same with a check, and wait for the end
  batchd watch jan                       how far it is, live; batchd status jan: now
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        An exit code of daemon/exits.py.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except CommandError as error:
        return _complain(str(error), error.code)
    except SettingsError as error:
        return _complain(str(error), Exit.WRONG_USE)
    except SpoolError as error:
        return _complain(str(error), Exit.NOT_STARTED)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        return Exit.DONE  # the reader of our output has seen enough, as in `batchd status | head`


def _complain(message: str, code: int) -> int:
    print(f"batchd: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batchd",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 1 the batch failed or has errors, 2 wrong use or settings, "
        "3 not started, Ray was lost or the spool is unavailable, 4 a wait ran out of time.",
    )
    parser.add_argument("--version", action="version", version=f"batchd {_version()}")
    parser.add_argument(
        "--print-completion",
        choices=completion.SHELLS,
        action=completion.Print,
        help="print what completes commands, options, files and batches in this shell: "
        'eval "$(batchd --print-completion bash)"',
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        init,
        run,
        validate,
        submit,
        watch,
        status,
        top,
        cancel,
        retry,
        verify,
        report,
        pause,
        doctor,
    ):
        command.add(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("batchd")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
