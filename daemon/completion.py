"""`batchd --print-completion bash`: what a shell completes, made from the argument parser itself by shtab.

What an argument takes is told by its metavar: FILE, DIR, or the NAME of a batch in the outbox. shtab is
imported where the option is given, so that no other command waits for it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")

# Names in the outbox, without what a shell would expand: completing must run nothing that a name says.
_NAMES = r'ls "${BATCHD_SPOOL__ROOT-spool}/outbox" 2>/dev/null | tr -cd A-Za-z0-9._~%\\n-'
# For zsh, which would else list them once, when the script is read; it stands between double quotes.
_NAMES_ZSH = re.sub(r'(["$\\])', r"\\\1", f"{{compadd -- $({_NAMES})}}")


class Print(argparse.Action):
    """Prints the script for a shell, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        import shtab

        names = {**shtab.cmd(_NAMES), "zsh": _NAMES_ZSH, "tcsh": ""}  # csh knows no ${NAME-DEFAULT}
        for action in _actions(parser):
            is_batch = action.metavar == "NAME" and not action.option_strings
            kind = names if is_batch else {"FILE": shtab.FILE, "DIR": shtab.DIR}.get(str(action.metavar))
            if kind:
                action.complete = kind  # type: ignore[attr-defined]  # shtab's own name for it
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
