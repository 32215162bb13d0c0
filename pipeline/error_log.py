"""The error log of an engine's processes, which tells the root cause of their end.

They write it through the logging configuration that vLLM reads from its environment; what vLLM's messages
look like is the caller's to say. Where nothing was logged there is no root cause, and that is no error.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import errors

# The error of a traceback follows the frames, which are indented; one of pydantic has a second line.
_ERROR = re.compile(r"^(?![\s(])(?:[\w.]+\.)?(\w+(?:: .*)?(?:\n {2}\S.*)?)", re.MULTILINE)


class ErrorLog:
    """What vLLM's processes log as errors, kept in a file of bounded size.

    The engine runs in processes of its own, and what ends them reaches us only as "see root cause above".

    Args:
        reports: parts of messages that only report the error of another process.
        death: part of the message about a process that ended without a word.
    """

    # The tail of the last mebibyte is more than one traceback of every worker.
    MAX_BYTES = 1 << 20

    def __init__(self, reports: tuple[str, ...], death: str) -> None:
        self._reports = reports
        self._death = re.compile(rf"^.*{re.escape(death)}.*", re.MULTILINE)
        self._folder = tempfile.TemporaryDirectory(prefix="batchd-vllm-", ignore_cleanup_errors=True)
        self._file = Path(self._folder.name, "errors.log")

    @contextmanager
    def in_environment(self, defaults: dict[str, Any]) -> Iterator[None]:
        """Have processes that start now log to the file as well; a configuration of the user's own stays.

        Args:
            defaults: vLLM's own configuration of its logs, as for logging.config.dictConfig.
        """
        if os.environ.get("VLLM_LOGGING_CONFIG_PATH") or os.environ.get("VLLM_CONFIGURE_LOGGING") == "0":
            yield
            return
        config = json.loads(json.dumps(defaults))
        config["formatters"]["batchd"] = {"format": "%(message)s"}
        config["handlers"]["batchd"] = {
            "class": "logging.handlers.RotatingFileHandler",
            "filename": str(self._file),
            "maxBytes": self.MAX_BYTES,
            "backupCount": 1,
            "delay": True,
            "level": "ERROR",
            "formatter": "batchd",
        }
        config["loggers"]["vllm"]["handlers"].append("batchd")
        path = Path(self._folder.name, "logging.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(path)
        try:
            yield
        finally:
            os.environ.pop("VLLM_LOGGING_CONFIG_PATH", None)

    def root_cause(self) -> str | None:
        """The first error that is not merely the report of another one, in one line."""
        try:
            text = self._file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        for traceback in text.split("Traceback (most recent call last):\n")[1:]:
            match = _ERROR.search(traceback)
            if match and not self._is_report(match[1]):
                return errors.one_line(match[1])
        killed = self._death.search(text)
        return errors.one_line(killed[0]) if killed else None

    def explain(self, error: BaseException) -> str:
        """Why the engine did not start, in one line: this error, or the one that it only reports."""
        cause = self.root_cause() if self._is_report(str(error)) else None
        return cause or errors.describe(error)

    def _is_report(self, text: str) -> bool:
        return any(report in text for report in self._reports)

    def close(self) -> None:
        """Delete the file."""
        self._folder.cleanup()
