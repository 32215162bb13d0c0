"""Exit codes of the command line; a contract for scripts."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command says to the shell."""

    DONE = 0
    FAILED = 1  # the batch failed or has errors
    WRONG_USE = 2  # arguments or settings
    NOT_STARTED = 3  # the daemon could not start or lost its Ray, or the spool is unavailable
    TIMED_OUT = 4  # a wait ran out of time


class CommandError(Exception):
    """A command cannot do what was asked; the message is one line that says what to do."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code
