"""Log lines: one line each, whatever is in them, as JSON and on a console."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import LogSettings
from daemon import logs
from spool.record import Status

EVIL = "jan.jsonl\n12:00:00 info    batch completed\x1b[2J\u202e\u2028\r\x00\udc80\x9b31m"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging belongs to the process: put back what configure() changes."""
    loggers = [logging.getLogger(name) for name in ("", *logs.OURS)]
    levels = [logger.level for logger in loggers]
    handlers = logging.getLogger().handlers[:]
    yield
    logging.captureWarnings(False)
    logging.getLogger().handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _configured(stream: io.StringIO, **settings: Any) -> logs.Logger:
    logs.configure(LogSettings(**settings), stream)
    return logs.get()


def _json(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    parsed = json.loads(line)
    assert isinstance(parsed, dict)
    return parsed


def test_json_lines_carry_time_level_event_and_fields() -> None:
    """What is no terminal gets JSON: time, level and event first, in UTC."""
    stream = io.StringIO()
    log = _configured(stream).bind(batch="batch_01")
    log.info(
        "batch claimed", drop=Path("a/jan.jsonl"), status=Status.VALIDATING, attempt=1, took_s=0.25, pool=None
    )
    line = _json(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    stamp = datetime.fromisoformat(line.pop("timestamp"))
    assert stamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - stamp) < timedelta(minutes=1)
    assert line == {
        "level": "info",
        "event": "batch claimed",
        "batch": "batch_01",
        "drop": "a/jan.jsonl",
        "status": "validating",
        "attempt": 1,
        "took_s": 0.25,
        "pool": None,
    }


def test_a_terminal_gets_one_readable_line() -> None:
    """`auto` chooses the console there, with colours unless NO_COLOR says no."""
    stream = Terminal()
    _configured(stream).info("batch claimed", batch="batch_01", drop="my file.jsonl", attempt=1, empty="")
    assert "\x1b[" in stream.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d info    batch claimed  batch=batch_01 drop="my file.jsonl" attempt=1 empty=""\n',
        plain,
    )


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """See no-color.org."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    _configured(stream).warning("disk nearly full")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize("where", ["value", "nested", "key", "event", "foreign", "extra", "error", "bytes"])
def test_nothing_forges_a_line_or_an_escape(style: str, where: str) -> None:
    """A file name, an error's text or another package's message stays within its line, without controls."""
    stream = io.StringIO()
    log = _configured(stream, format=style)
    match where:
        case "value":
            log.info("drop ignored", drop=EVIL)
        case "nested":
            log.info("drop ignored", drops=[{EVIL: EVIL}])
        case "key":
            log.info("drop ignored", **{EVIL: 1})
        case "event":
            log.info(EVIL)
        case "foreign":
            logging.getLogger("watchdog.observers").warning("lost %s", EVIL)
        case "extra":
            logging.getLogger("pipeline.run").info("part written", extra={"drop": EVIL})
        case "error":
            log.info("drop ignored", error=OSError(EVIL))
        case "bytes":
            log.info("drop ignored", drop=EVIL.encode("utf-8", "surrogateescape"))
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    text.encode()
    if style == "json":
        json.loads(text)


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_forges_no_line_either(style: str) -> None:
    """On a console each of its lines is marked as belonging to the event above."""
    stream = io.StringIO()
    log = _configured(stream, format=style)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("step failed", batch="batch_01")
    first, *rest = stream.getvalue()[:-1].split("\n")
    assert "step failed" in first
    assert all(line.isprintable() for line in (first, *rest))
    if style == "json":
        assert rest == []
        assert "ValueError: jan.jsonl\n12:00:00" in json.loads(first)["exception"]
    else:
        assert rest
        assert all(line.startswith("    | ") for line in rest)


def test_a_value_cannot_pass_for_another_field() -> None:
    """What is more than one word is quoted, and quotes in it are escaped."""
    stream = io.StringIO()
    _configured(stream, format="console").info("drop ignored", drop='a state="done', path="C:\\new")
    assert stream.getvalue().endswith(r'drop="a state=\"done" path="C:\\new"' + "\n")


@given(st.text(), st.text(), st.recursive(st.none() | st.floats() | st.integers() | st.binary(), st.lists))
def test_any_fields_make_one_line(event: str, text: str, value: object) -> None:
    """Found by hypothesis, not by us: both formats, any text, any value."""
    for style in ("json", "console"):
        stream = io.StringIO()
        _configured(stream, format=style).info(event, text=text, value=value)
        assert stream.getvalue().count("\n") == 1
        assert stream.getvalue()[:-1].isprintable()
        if style == "json":
            line = json.loads(stream.getvalue(), parse_constant=pytest.fail)
            assert line["text"] == text


def test_long_values_are_cut() -> None:
    """A prompt of megabytes or a list of all lines belongs in a file, not in a log line."""
    stream = io.StringIO()
    log = _configured(stream)
    nested: object = 1
    for _ in range(100):
        nested = [nested]
    log.info("x", text="a" * 10**6, data=b"b" * 10**6, many=list(range(10**5)), big=10**5000, nested=nested)
    line = _json(stream)
    assert line["text"] == "a" * logs.MAX_VALUE_CHARS + "... (1000000 characters)"
    assert len(line["data"]) <= logs.MAX_VALUE_CHARS
    assert line["many"][-1] == "... 100000 items"
    assert line["big"].startswith("0x")
    assert len(stream.getvalue()) < 5 * logs.MAX_VALUE_CHARS


def test_a_long_traceback_keeps_its_end() -> None:
    """The end says what happened."""
    stream = io.StringIO()
    log = _configured(stream)
    try:
        raise ValueError("x" * 10**6 + "the end")
    except ValueError:
        log.exception("step failed")
    assert _json(stream)["exception"].endswith("the end")
    assert len(stream.getvalue()) < 2 * logs.MAX_TRACEBACK_CHARS


def test_fields_cannot_change_time_level_or_event() -> None:
    """A field of that name gives way."""
    stream = io.StringIO()
    logs.configure(LogSettings(), stream)
    logs.get(level="critical", timestamp="never").info("batch claimed")
    line = _json(stream)
    assert line["level"] == "info"
    assert line["timestamp"] != "never"


def test_others_are_heard_from_warning_on_and_ours_from_the_level() -> None:
    """debug of ours is no debug of watchdog's, which tells each event."""
    stream = io.StringIO()
    log = _configured(stream, level="debug", format="console")
    logging.getLogger("watchdog.observers").info("no")
    logging.getLogger("watchdog.observers").warning("queue overflowed")
    logging.getLogger("spool.recover").debug("looked")
    log.debug("woke")
    assert [line[len("12:00:00 ") :] for line in stream.getvalue().splitlines()] == [
        "warning queue overflowed  logger=watchdog.observers",
        "debug   looked  logger=spool.recover",
        "debug   woke",
    ]
    stream = io.StringIO()
    log = _configured(stream, level="error")
    logging.getLogger("ray").warning("no")
    log.warning("no")
    assert not stream.getvalue()


def test_python_warnings_come_as_log_lines() -> None:
    """They would otherwise stand raw between them."""
    stream = io.StringIO()
    _configured(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old\nthing", stacklevel=1)
        logging.captureWarnings(False)
    assert _json(stream)["logger"] == "py.warnings"


def test_a_logger_taken_over_speaks_through_ours_only(capsys: pytest.CaptureFixture[str]) -> None:
    """ray gives its loggers a handler of their own as soon as it is imported."""
    stream = io.StringIO()
    _configured(stream)
    theirs, child = logging.getLogger("fakeray"), logging.getLogger("fakeray.data")
    for logger in (theirs, child):
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.propagate = False
        logger.setLevel(logging.INFO)
    logs.absorb("fakeray")
    child.info("no")
    child.warning("spilled")
    assert _json(stream)["event"] == "spilled"
    assert capsys.readouterr().err == ""


def test_configure_replaces_its_own_handler_only() -> None:
    """Twice configured is not twice said; handlers of others stay."""
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    first, second = io.StringIO(), io.StringIO()
    _configured(first)
    _configured(second).info("x")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
    assert other in logging.getLogger().handlers


def test_logging_never_raises(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a value that cannot be shown nor a stream that is gone ends the work."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    stream = io.StringIO()
    log = _configured(stream)
    log.info("x", broken=Broken(), keyed={Broken(): 1})
    assert _json(stream)["broken"] == "<Broken>"
    stream.close()
    log.info("y")
    assert capsys.readouterr().err == ""


def test_before_configure_nothing_below_warning_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """The commands that work on the folder alone log nothing of their own accord."""
    logs.get(batch="batch_01").info("quiet")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_standard_error_is_looked_up_when_a_line_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be replaced after the start."""
    logs.configure(LogSettings(format="json"))
    logs.get().info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"
