"""Validates a drop before anything of it runs, streaming: all or nothing, as OpenAI does.

`check` is the dry run; `check_and_copy` gives the very same verdict, writes the batch's private copy on the
way and its plan at the end. Of each line the first problem is reported; lines are physical, from 1, and blank
ones count without being requests. Errors of the whole file come first, then those of lines in their order.
Under `fail` the first line with a usable endpoint or model decides it for the others; under `skip`
the first line that is otherwise valid does. A refused line's custom_id counts as used.
Memory: a chunk, one line and its parsed form, one shard, and 12 to 17 bytes for each custom_id (of a source
that cannot seek, such as a pipe, the ids themselves); when it is freed, 20 to 30 bytes for each request
while the order is decided.
A line that would take far more memory than its bytes once it is parsed (16 MiB of `[],` took 500 MiB) is
refused before: see validate_size.py.
A bad file never raises: only stopping, a batch's folder that is gone and failing disks do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from config.settings import LimitSettings
from pipeline import validate_copy
from pipeline.engine import SUPPORTED_URLS
from pipeline.order_notes import Wishes
from pipeline.request_guards import Problem, shown
from pipeline.requests import Checker
from pipeline.validate_copy import Copy
from pipeline.validate_ids import CustomIds, HeldIds
from pipeline.validate_lines import LineReader
from pipeline.validate_size import COUNTED_BYTES, find_excess
from spool.codes import Refusal
from spool.record import LineError


class ValidationStopped(Exception):
    """The caller asked to stop; nothing was decided, and a later attempt starts from scratch."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a file is held to.

    Attributes:
        models: names of the configured models.
        endpoint: what the sidecar asks for.
        allowed_media_domains: hosts that media URLs may name beside `data:`.
        wishes: how what is valid is put in order.
    """

    models: frozenset[str]
    limits: LimitSettings
    endpoint: str | None = None
    on_invalid: Literal["fail", "skip"] = "fail"
    allowed_media_domains: tuple[str, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation found.

    Attributes:
        errors: why the file fails, at most limits.max_reported_errors; under `skip` only the whole file's.
        total_errors: how many there are, listed or not.
        codes: how often each code was found, refused lines included.
        requests: requests in the file, refused ones included.
        rejected: requests refused under `skip`.
        endpoint: "" if no line named a supported one; likewise model.
        shards: shards of the plan; 0 from `check` and for an invalid file.
        input_bytes: size of the drop as it was read; reading ends soon after limits.max_bytes.
        sha256: of these bytes, hexadecimal.
    """

    errors: tuple[LineError, ...]
    total_errors: int
    codes: dict[str, int]
    requests: int
    rejected: int
    endpoint: str
    model: str
    shards: int
    input_bytes: int
    sha256: str

    @property
    def is_valid(self) -> bool:
        """Whether the batch may run."""
        return not self.errors


def never() -> bool:
    """Do not stop."""
    return False


def check(
    source: BinaryIO,
    rules: Rules,
    stopped: Callable[[], bool] = never,
    *,
    hash_id: Callable[[str], int] = hash,
) -> Verdict:
    """Validate a file and write nothing.

    Args:
        source: the drop, binary, standing at its start.
        rules: what the file is held to.
        stopped: polled at each chunk that is read, 256 KiB.
        hash_id: for tests, which force collisions of custom_ids with it.

    Raises:
        ValidationStopped: `stopped` said so.
    """
    return _Validation(source, rules, stopped, hash_id, None).run()


def check_and_copy(
    source: BinaryIO,
    batch: Path,
    batch_id: str,
    rules: Rules,
    stopped: Callable[[], bool] = never,
    *,
    hash_id: Callable[[str], int] = hash,
) -> Verdict:
    """Validate a file and, if it is valid, leave its private copy and plan in the batch's folder, durable.

    Args:
        source: the drop, binary, standing at its start.
        batch: the batch's folder; what an earlier attempt left there is replaced.
        batch_id: becomes part of the refused requests' keys.
        rules: what the file is held to.
        stopped: polled at each chunk that is read, 256 KiB.
        hash_id: for tests, which force collisions of custom_ids with it.

    Raises:
        ValidationStopped: `stopped` said so.
        FileNotFoundError: the batch was adopted by another daemon.
        OSError: the copy could not be written.
    """
    verdict: Verdict | None = None
    try:
        with validate_copy.open_copy(batch, batch_id, rules.wishes) as copy:
            verdict = _Validation(source, rules, stopped, hash_id, copy).run()
            if not verdict.is_valid:
                raise validate_copy.Abandoned
    except validate_copy.Abandoned:
        assert verdict is not None
        return verdict
    return replace(verdict, shards=copy.shards)


class _Validation:
    """One pass over one file."""

    def __init__(
        self,
        source: BinaryIO,
        rules: Rules,
        stopped: Callable[[], bool],
        hash_id: Callable[[str], int],
        copy: Copy | None,
    ) -> None:
        limits = rules.limits
        self._rules = rules
        self._stopped = stopped
        self._copy = copy
        self._is_skipping = rules.on_invalid == "skip"
        self._has_bad_endpoint = bool(rules.endpoint) and rules.endpoint not in SUPPORTED_URLS
        endpoint = "" if self._has_bad_endpoint else rules.endpoint or ""
        self._checker = Checker(
            rules.models, limits, rules.allowed_media_domains, endpoint, is_skipping=self._is_skipping
        )
        self._reader = LineReader(source, limits.max_line_bytes, limits.max_bytes, self._poll)
        self._ids = CustomIds(self._read_id, hash_id) if source.seekable() else HeldIds()
        self._requests = 0
        self._rejected = 0
        self._codes: Counter[str] = Counter()
        self._line_errors: list[LineError] = []

    def run(self) -> Verdict:
        copy = self._copy
        for number, offset, line in self._reader.lines():
            if line == b"":
                continue
            self._requests += 1
            problem, custom_id, request = self._judge(line, offset)
            if problem is not None:
                self._note(number, custom_id, problem)
                copy = self._copy
            elif copy is not None:
                assert line is not None
                copy.add(line, request)
        return self._conclude()

    def _judge(self, line: bytes | None, offset: int) -> tuple[Problem | None, str | None, Any]:
        """What is wrong with a line, its custom_id if it has one, and what it says if nothing is wrong."""
        if line is None:
            most = self._rules.limits.max_line_bytes
            message = f"The line is longer than {most:d} bytes (limits.max_line_bytes): shorten it."
            return Problem(Refusal.LINE_TOO_LONG, message), None, None
        if len(line) > COUNTED_BYTES and (too_many := find_excess(line)):
            return Problem(Refusal.INVALID_REQUEST, too_many), None, None
        try:
            request: Any = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return _explain(line, error), None, None
        problem = self._checker.find_problem(request)
        custom_id: str | None
        custom_id = request["custom_id"] if problem is None else self._checker.read_custom_id(request)
        if custom_id is not None and self._ids.add(custom_id, offset) and problem is None:
            message = f"custom_id {shown(custom_id)} stands on an earlier line too; each may be used once."
            problem = Problem(Refusal.DUPLICATE_CUSTOM_ID, message, "custom_id")
        return problem, custom_id, request

    def _note(self, number: int, custom_id: str | None, problem: Problem) -> None:
        self._codes[problem.code] += 1
        if self._is_skipping:
            self._rejected += 1
            if self._copy is not None:
                self._copy.refuse(number, custom_id, problem)
            return
        self._copy = None  # nothing of this file will run
        if len(self._line_errors) < self._rules.limits.max_reported_errors:
            self._line_errors.append(
                LineError(code=problem.code, message=problem.message, param=problem.param, line=number)
            )

    def _conclude(self) -> Verdict:
        file_errors = self._find_file_errors()
        total = len(file_errors) + (0 if self._is_skipping else sum(self._codes.values()))
        self._codes.update(error.code for error in file_errors)
        errors = (file_errors + self._line_errors)[: self._rules.limits.max_reported_errors]
        if len(errors) < total:
            last = errors[-1]
            message = f"{last.message} ({total} errors in total; the first {len(errors)} are listed.)"
            errors[-1] = last.model_copy(update={"message": message})
        return Verdict(
            errors=tuple(errors),
            total_errors=total,
            codes=dict(self._codes),
            requests=self._requests,
            rejected=self._rejected,
            endpoint=self._checker.best_endpoint,
            model=self._checker.best_model,
            shards=0,  # until the plan is made
            input_bytes=self._reader.size_bytes,
            sha256=self._reader.sha256,
        )

    def _find_file_errors(self) -> list[LineError]:
        limits, reader = self._rules.limits, self._reader
        errors = []
        if self._has_bad_endpoint:
            supported = ", ".join(sorted(SUPPORTED_URLS))
            message = f"The sidecar's endpoint is {shown(self._rules.endpoint)}; supported are {supported}."
            errors.append(LineError(code=Refusal.INVALID_REQUEST, message=message, param="endpoint"))
        if reader.is_too_large:
            message = f"The file is larger than {limits.max_bytes:d} bytes (limits.max_bytes): split it."
            errors.append(LineError(code=Refusal.FILE_TOO_LARGE, message=message))
        if reader.has_grown:
            message = "The file grew while it was read: drop it again when it is complete."
            errors.append(LineError(code=Refusal.INPUT_MODIFIED, message=message))
        if reader.is_endless:
            message = (
                f"A line has more than {reader.endless_bytes} bytes; what follows was not read:"
                " is each request on a line of its own?"
            )
            errors.append(LineError(code=Refusal.LINE_TOO_LONG, message=message))
        if limits.max_requests and self._requests > limits.max_requests:
            message = (
                f"The file has {self._requests} requests; at most {limits.max_requests} are allowed here"
                " (limits.max_requests): split it."
            )
            errors.append(LineError(code=Refusal.TOO_MANY_TASKS, message=message))
        if reader.foreign:
            message = f"The file is not JSON Lines: it looks like {reader.foreign}."
            errors.append(LineError(code=Refusal.INVALID_JSON, message=message, line=1))
        elif not self._requests and not reader.is_too_large:
            errors.append(
                LineError(
                    code=Refusal.EMPTY_FILE,
                    message="The file has no request in it: each line must be one, as a JSON object.",
                )
            )
        return errors

    def _read_id(self, offset: int) -> str | None:
        try:
            return self._checker.read_custom_id(orjson.loads(self._reader.line_at(offset)))
        except orjson.JSONDecodeError:
            return None  # the file is changing under us, which the caller notices by itself

    def _poll(self) -> None:
        if self._stopped():
            raise ValidationStopped


def _explain(line: bytes, error: orjson.JSONDecodeError) -> Problem:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        message = f"The line is not UTF-8: byte {wrong.start + 1} is 0x{line[wrong.start]:02x}."
    else:
        message = f"The line is not JSON: {error.msg}, at character {error.pos + 1}."
    return Problem(Refusal.INVALID_JSON, message)
