"""What is read from the errors that an engine's processes logged. Processes of the test's own, no vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.error_log import ErrorLog

VARIABLES = ("VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING")
DEFAULTS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {},
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"vllm": {"handlers": ["console"], "level": "INFO"}},
}

# What vLLM's processes do at their start, and then one of them fails.
CHILD = """
import json, logging, logging.config, os, sys
with open(os.environ["VLLM_LOGGING_CONFIG_PATH"]) as file:
    logging.config.dictConfig(json.load(file))
log = logging.getLogger("vllm.worker")
log.info("Traceback (most recent call last):\\nValueError: no error at all")
for error in (ValueError("no room\\n  for the cache"), RuntimeError("failed, see above")):
    try:
        raise error
    except Exception:
        log.exception("worker failed")
"""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[ErrorLog]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    log = ErrorLog(("see above",), "was killed")
    yield log
    log.close()


def write(log: ErrorLog, text: str) -> None:
    """Have this in the file, as if a process had logged it."""
    with log.in_environment(DEFAULTS):
        config = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    Path(config["handlers"]["batchd"]["filename"]).write_text(text)


def test_the_first_real_error_of_another_process_is_found(log: ErrorLog) -> None:
    """A process that starts meanwhile logs its errors to the file, and what it always did to stderr."""
    with log.in_environment(DEFAULTS):
        ran = subprocess.run(
            [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=True
        )
    assert "no error at all" in ran.stderr and "worker failed" in ran.stderr
    assert log.root_cause() == "ValueError: no room for the cache"
    assert "batchd" not in DEFAULTS["handlers"] and not set(VARIABLES) & os.environ.keys()


def test_a_report_is_no_cause(log: ErrorLog) -> None:
    """The error that comes after it may be one."""
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n'
    write(log, f"{trace}RuntimeError: see above\n{trace}torch.cuda.OutOfMemoryError: 3 GiB\n")
    assert log.root_cause() == "OutOfMemoryError: 3 GiB"
    assert log.explain(RuntimeError("see above")) == "OutOfMemoryError: 3 GiB"
    assert log.explain(KeyError("a")) == "KeyError: 'a'"


def test_a_process_that_was_killed_is_named(log: ErrorLog) -> None:
    """It left no traceback."""
    write(log, "some\nworker 3 was killed, see the\nlog\n")
    assert log.root_cause() == "worker 3 was killed, see the"


def test_where_nothing_was_logged_there_is_no_cause(log: ErrorLog) -> None:
    """A report then has to do."""
    assert log.root_cause() is None
    assert log.explain(RuntimeError("failed:\nsee above")) == "RuntimeError: failed: see above"


@pytest.mark.parametrize(
    ("name", "value"), [("VLLM_LOGGING_CONFIG_PATH", "/mine.json"), ("VLLM_CONFIGURE_LOGGING", "0")]
)
def test_a_configuration_of_the_users_own_stays(
    log: ErrorLog, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It may send the errors anywhere, so there is no root cause to tell then."""
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with log.in_environment(DEFAULTS):
        assert dict(os.environ) == before
    assert dict(os.environ) == before


def test_closing_deletes_the_file(log: ErrorLog) -> None:
    write(log, "Traceback (most recent call last):\nValueError: a\n")
    assert log.root_cause() == "ValueError: a"
    log.close()
    assert log.root_cause() is None
