"""What can go wrong in the pipeline.

    PipelineError
    ├── EngineStartError    no engine as configured: needs a person, trying again changes nothing
    ├── EngineDeadError     the engine is gone: start another one, the unanswered requests may run again
    └── RunError            this run of a batch cannot go on; finished parts stay

A bad request is none of these: it is an Answer with status 4xx. The messages are one line and are shown as
they are.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Any failure of the pipeline itself."""


class EngineStartError(PipelineError):
    """An engine could not be started; the message says in one line what to change."""


class EngineDeadError(PipelineError):
    """An engine died, was never started, or was stopped."""


class RunError(PipelineError):
    """A run of a batch cannot go on."""
