"""What can go wrong in the pipeline, and how it is told in one line.

    PipelineError
    ├── EngineStartError    no engine as configured: needs a person, trying again changes nothing
    ├── EngineDeadError     the engine is gone: start another one, the unanswered requests may run again
    ├── EngineAwayError     the engine cannot answer now, and will by itself: ask again, nothing was tried
    ├── NoAnswerError       nobody has a usable answer to this one request, which fails
    └── RunError            this run of a batch cannot go on; finished parts stay

A bad request is none of these: it is an Answer with status 4xx. The messages are shown as they are.
"""

from __future__ import annotations

from contextlib import suppress

# What is longer is cut.
MAX_MESSAGE_CHARS = 2000


class PipelineError(Exception):
    """Any failure of the pipeline itself."""


class EngineStartError(PipelineError):
    """An engine could not be started; the message says in one line what to change."""


class EngineDeadError(PipelineError):
    """An engine died, was never started, or was stopped."""


class EngineAwayError(PipelineError):
    """What an engine needs cannot be reached now; a new process would change nothing."""


class NoAnswerError(PipelineError):
    """A request was tried often enough, and got nothing that could stand in its line."""


class RunError(PipelineError):
    """A run of a batch cannot go on."""


def describe(error: BaseException) -> str:
    """An error in one line; of a pydantic error just what it says."""
    problems = getattr(error, "errors", None)
    if callable(problems):
        with suppress(Exception):
            texts = [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in problems()]
            return one_line("; ".join(dict.fromkeys(texts)).replace("Value error, ", ""))
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """A message as it is shown, cut at MAX_MESSAGE_CHARS."""
    return " ".join(text.split())[:MAX_MESSAGE_CHARS]
