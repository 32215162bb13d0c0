"""status.json: the projection of a record that users read, in the form of OpenAI's Batch object.

Pure: a record, what is known of progress, and, at the end, final.json go in; bytes come out. It parses at
every instant with `openai.types.Batch`; all that OpenAI has no field for sits under `batchd`. A terminal
status is made from final.json alone, so that a crash never turns one outcome into another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from spool import layout
from spool.record import Final, LineError, Record, Status, UsageTotals

_TERMINAL_TIME = {
    Status.FAILED: "failed_at",
    Status.COMPLETED: "completed_at",
    Status.EXPIRED: "expired_at",
    Status.CANCELLED: "cancelled_at",
}


class Progress(NamedTuple):
    """What is known of a running batch; counts cover durable parts only.

    Attributes:
        shared: how many of them took the answer of an identical request.
        at: when it was counted, Unix seconds.
        requests_per_s: measured lately; None while unknown. So tokens_per_s.
        eta_at: Unix seconds; None while unknown.
        at_risk: whether the deadline will probably be missed.
    """

    completed: int = 0
    failed: int = 0
    shared: int = 0
    at: float | None = None
    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    eta_at: float | None = None
    at_risk: bool = False


def render(
    record: Record, instance: str, progress: Progress | None = None, final: Final | None = None
) -> bytes:
    """The bytes of status.json.

    Args:
        record: the durable record.
        instance: id of the daemon that writes it.
        progress: durable progress of a batch that is not over.
        final: the outcome, once it is durable.
    """
    progress = progress or Progress()
    status = final.outcome if final else record.status
    is_failed = status is Status.FAILED
    counts = _counts(record, progress, final)
    plan = None if is_failed else record.plan
    times = _times(record, final)
    body = {
        "id": record.batch_id,
        "object": "batch",
        "endpoint": record.plan.endpoint if record.plan else (record.sidecar.endpoint or ""),
        "model": record.plan.model if record.plan else None,
        "input_file_id": record.drop,
        "completion_window": _window(record.deadline_at - record.submitted_at),
        "status": str(status),
        "created_at": int(record.submitted_at),
        "expires_at": int(record.deadline_at),
        **times,
        "output_file_id": _result_id(record, layout.OUTPUT_FILE, final and final.output),
        "error_file_id": _result_id(record, layout.ERRORS_FILE, final and final.errors_file),
        "errors": _errors(record.errors) if record.errors else None,
        "request_counts": counts,
        "metadata": record.sidecar.metadata,
        "usage": _usage(final.usage) if final and plan else None,
        "batchd": _extra(record, instance, progress, final, counts),
    }
    return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _counts(record: Record, progress: Progress, final: Final | None) -> dict[str, int]:
    if final:
        return {"total": final.total, "completed": final.completed, "failed": final.failed}
    total = record.plan.requests if record.plan else 0
    return {"total": total, "completed": progress.completed, "failed": progress.failed}


def _times(record: Record, final: Final | None) -> dict[str, int | None]:
    is_failed = final is not None and final.outcome is Status.FAILED
    times: dict[str, float | None] = {
        "in_progress_at": None if is_failed else record.in_progress_at,
        "finalizing_at": None if is_failed else record.finalizing_at,
        "cancelling_at": None if is_failed else record.cancel_requested_at,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelled_at": None,
    }
    if final:
        times[_TERMINAL_TIME[final.outcome]] = final.at
        if final.outcome is not Status.CANCELLED:
            times["cancelling_at"] = None
    return {name: None if at is None else int(at) for name, at in times.items()}


def _result_id(record: Record, file: str, facts: object) -> str | None:
    return f"{record.outbox_name}/{file}" if facts else None


def _errors(errors: tuple[LineError, ...]) -> dict[str, Any]:
    return {"object": "list", "data": [error.model_dump() for error in errors]}


def _usage(usage: UsageTotals) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _extra(
    record: Record, instance: str, progress: Progress, final: Final | None, counts: dict[str, int]
) -> dict[str, Any]:
    done = counts["completed"] + counts["failed"]
    history = [event.model_dump(mode="json") for event in record.history]
    if final:
        history.append(
            {"at": final.at, "status": str(final.outcome), "phase": "done", "reason": final.reason}
        )
    return {
        "input_file": record.drop,
        "instance": instance,
        "phase": "done" if final else str(record.phase),
        "pool": record.pool,
        "attempt": record.runs,
        "submission": record.sidecar.submission,
        "warnings": list(final.warnings if final else record.warnings),
        "sla": {
            "submitted_at": record.submitted_at,
            "deadline_at": record.deadline_at,
            "at_risk": False if final else progress.at_risk,
            "met": final.at <= record.deadline_at if final else None,
        },
        "progress": {
            "done": done,
            "total": counts["total"],
            "at": None if final else progress.at,
            "requests_per_s": None if final else progress.requests_per_s,
            "tokens_per_s": None if final else progress.tokens_per_s,
            "eta_at": None if final else progress.eta_at,
        },
        "usage": _usage(final.usage) if final else None,
        "shared_requests": final.shared_requests if final else progress.shared,
        "history": history,
    }


def _window(seconds: float) -> str:
    """A window as OpenAI writes it: `24h`, or the largest unit that divides it."""
    whole = round(seconds)
    for unit, size in (("h", 3600), ("m", 60)):
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"
