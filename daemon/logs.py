"""Log lines: a constant event name and fields, as JSON for machines or as one readable line for a terminal.

The only place that installs a handler. What the standard library's loggers say (watchdog, ray, filelock,
Python's warnings) goes the same way: ours from log.level on, theirs from warning on. A line is one line: no
value can end it, start another one, or send a terminal escape. Long values are cut. Logging never raises.

    12:03:04 info    batch_claimed  batch=batch_01 drop=jan.jsonl attempt=1
    {"timestamp": "2026-12-01T11:03:04.512345Z", "level": "info", "event": "batch_claimed", "batch": ...}

Limits: a reader that does not read (a full pipe) blocks whoever logs, as it would with print().
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from config.settings import LogSettings

MAX_VALUE_CHARS = 2_000
# A traceback is cut at its start: the end says what happened.
MAX_TRACEBACK_CHARS = 20_000
MAX_ITEMS = 50
MAX_DEPTH = 4

_UNUSUAL = re.compile(r"[^\w.-]")

OURS = ("batchd", "config", "daemon", "pipeline", "scheduler", "spool")
_FIRST = ("timestamp", "level", "event")
_RESERVED = frozenset({"exc_info", "stack_info", "_record", "_from_structlog"})
_STYLES = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31;1m",
}
_RESET = "\x1b[0m"
_LEVEL_WIDTH = 7  # len("warning")


class Logger(Protocol):
    """What get() returns. `event` is a constant; what varies goes into fields."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...

    def exception(self, event: str, **fields: Any) -> Any:
        """As error, with the traceback of the exception being handled."""
        ...

    def bind(self, **fields: Any) -> Logger:
        """A logger whose lines all carry these fields."""
        ...


def get(**fields: Any) -> Logger:
    """A logger whose lines carry these fields. Works before configure() too: then only warnings are shown."""
    logger = structlog.wrap_logger(
        logging.getLogger("batchd"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _plain_fields,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return cast(Logger, logger.bind(**fields) if fields else logger)


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send all log lines of this process to a stream. A second call replaces what the first one set.

    Args:
        settings: format and lowest level.
        stream: where to; None is standard error, whatever it is when a line is written.
    """
    is_console = settings.format == "console" or (settings.format == "auto" and _is_terminal(stream))
    has_colors = is_console and _is_terminal(stream) and not os.environ.get("NO_COLOR")
    handler = _Handler(stream)
    handler.setFormatter(_formatter(is_console, has_colors))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    level = logging.getLevelName(settings.level.upper())
    root.setLevel(max(level, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)


def absorb(*names: str) -> None:
    """Take loggers away from the handlers that their package gave them when it was imported (`ray` does)."""
    known = list(logging.root.manager.loggerDict)
    for name in known:
        if any(name == parent or name.startswith(f"{parent}.") for parent in names):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    # Ray's own asks Ray for its context at each line, of ours as well.
    logging.setLogRecordFactory(logging.LogRecord)


def one_line(text: str) -> str:
    r"""Text with all escaped that could end a line, move a cursor or turn the direction of reading: `\n`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that configure() knows what it may replace; follows a replaced sys.stderr."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._is_fixed = stream is not None

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_fixed:
            self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say nothing: the default prints the arguments, unescaped, to standard error."""


def _is_terminal(stream: TextIO | None) -> bool:
    stream = stream or sys.stderr
    return stream is not None and stream.isatty()


def _formatter(is_console: bool, has_colors: bool) -> logging.Formatter:
    stamp = (
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        if is_console
        else structlog.processors.TimeStamper(fmt="iso", utc=True)
    )
    processors: list[Processor] = [
        # After the caller's fields: none of these three can be set by one.
        structlog.stdlib.add_log_level,
        stamp,
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _in_order,
    ]
    if is_console:
        processors += [_indent_traceback, _console(has_colors)]
    else:
        processors += [structlog.processors.JSONRenderer(serializer=json.dumps, ensure_ascii=True)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _without_leftovers,
            _plain_fields,
        ],
        processors=processors,
    )


def _without_leftovers(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Another handler's formatter leaves its rendering in the record; it is no field of the caller's."""
    for name in ("message", "asctime"):
        event_dict.pop(name, None)
    return event_dict


def _plain_fields(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Every value as something that JSON has, bounded, so that no handler can stumble over one."""
    # Names come from the code, but ** and other packages may bring any. Those of structlog's own stay.
    return {
        name if name in _RESERVED else _UNUSUAL.sub("_", _cut(str(name))): value
        if name in _RESERVED
        else _plain(value)
        for name, value in event_dict.items()
    }


def _in_order(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Time, level and event first; tracebacks cut; nothing that begins with `_` (ray marks records)."""
    fields = {name: event_dict.pop(name) for name in _FIRST if name in event_dict}
    for name, value in event_dict.items():
        if name in ("exception", "stack") and len(value) > MAX_TRACEBACK_CHARS:
            fields[name] = f"...{value[-MAX_TRACEBACK_CHARS:]}"
        elif not name.startswith("_"):
            fields[name] = value
    return fields


def _plain(value: object, depth: int = 0) -> object:
    """A value that JSON has: numbers as they are, text cut, the rest as text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _plain_number(value)
    if isinstance(value, str):
        return _cut(str(value))
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        shown = {_cut(_text(key)): _plain(item, depth + 1) for key, item in list(value.items())[:MAX_ITEMS]}
        return shown | ({"...": f"{len(value)} items"} if len(value) > MAX_ITEMS else {})
    if depth < MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        rest = [f"... {len(value)} items"] if len(value) > MAX_ITEMS else []
        return [_plain(item, depth + 1) for item in list(value)[:MAX_ITEMS]] + rest
    return _cut(_text(value))


def _plain_number(value: float) -> object:
    """Infinity is no JSON, and an int of more than 4,300 digits raises where it is printed."""
    if isinstance(value, int):
        return int(value) if value.bit_length() <= 64 else _cut(hex(value))
    return float(value) if math.isfinite(value) else str(float(value))


def _text(value: object) -> str:
    """Any object as text, also one that cannot say what it is."""
    try:
        if isinstance(value, bytes | bytearray):
            return bytes(value[:MAX_VALUE_CHARS]).decode("utf-8", "backslashreplace")
        return str(value)
    except Exception:  # noqa: BLE001 (someone's __str__ raised; the line matters more)
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}... ({len(text)} characters)"


def _indent_traceback(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Lines of a traceback stand under their event and can pass for no line of their own."""
    for name in ("exception", "stack"):
        if name in event_dict:
            lines = str(event_dict[name]).splitlines()
            event_dict[name] = "\n".join(f"    | {one_line(line)}" for line in lines)
    return event_dict


def _shown(value: object) -> str:
    """A value on a console: bare if it is one word, else quoted, so that none can look like another field."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    escaped = one_line(text)
    if isinstance(value, str) and text and escaped == text and not any(char in text for char in ' ="\\'):
        return text
    if not isinstance(value, str):
        return escaped
    return f'"{one_line(text.replace(chr(92), chr(92) * 2)).replace(chr(34), chr(92) + chr(34))}"'


def _console(has_colors: bool) -> structlog.dev.ConsoleRenderer:
    reset = _RESET if has_colors else ""

    def column(name: str, style: str, show: Callable[[object], str], width: int = 0, after: str = "") -> Any:
        formatter = structlog.dev.KeyValueColumnFormatter(
            key_style=None,
            value_style=style if has_colors else "",
            reset_style=reset,
            value_repr=show,
            width=width,
            postfix=after,
        )
        return structlog.dev.Column(name, formatter)

    def level(key: str, value: object) -> str:
        style = _STYLES.get(str(value), "") if has_colors else ""
        return f"{style}{value!s:<{_LEVEL_WIDTH}}{reset}"

    others = structlog.dev.KeyValueColumnFormatter(
        key_style="\x1b[36m" if has_colors else "", value_style="", reset_style=reset, value_repr=_shown
    )
    return structlog.dev.ConsoleRenderer(
        columns=[
            column("timestamp", "\x1b[2m", str),
            structlog.dev.Column("level", level),
            column("event", "\x1b[1m", lambda event: one_line(str(event)), after=" "),
            structlog.dev.Column("", others),
        ],
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )
