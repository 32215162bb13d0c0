"""The codes of all that can be wrong with a file or a request; a contract, since scripts compare them.

Refusals are found before anything runs and stand in status.json `errors` (under `on_invalid: skip`, in
errors.jsonl); failures stand in errors.jsonl where a request got no answer at all. Whatever else an engine
says of a request comes with the HTTP status that its server would have sent. docs/troubleshooting.md says of
each what to do, and a test holds it to this file.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Why validation refuses a file or a line; OpenAI's own codes where it has one."""

    EMPTY_FILE = "empty_file"
    INVALID_JSON = "invalid_json_line"
    INVALID_REQUEST = "invalid_request"
    MISSING_PARAMETER = "missing_required_parameter"
    INVALID_METHOD = "invalid_method"
    INVALID_URL = "invalid_url"
    MODEL_NOT_FOUND = "model_not_found"
    MISMATCHED_MODEL = "mismatched_model"
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
    STREAMING = "streaming_unsupported"
    LINE_TOO_LONG = "line_too_long"
    TOO_MANY_TASKS = "too_many_tasks"
    FILE_TOO_LARGE = "file_too_large"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    INPUT_MODIFIED = "input_modified"


class Failure(StrEnum):
    """Why a request of a valid file got no answer that has an HTTP status."""

    EXPIRED = "batch_expired"
    CANCELLED = "batch_cancelled"
    TIMEOUT = "request_timeout"
    ENGINE = "engine_error"
