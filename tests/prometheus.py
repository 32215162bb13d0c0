"""A real Prometheus on a daemon, with the files that deploy/ ships; waits are polls with a limit.

Changed for a test are only the target, how often it is scraped, and how long an alert's condition must hold.
Debian's package `prometheus` has both programs. Without them tests are skipped, unless REQUIRE_PROMETHEUS is
set in the environment, as it is in CI.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import daemons, promql

FOR_S = 2
# Stands for Grafana's variables; long enough for the scrapes before and after a batch.
VARIABLES = {"$__rate_interval": "2m", "$__range": "5m", "$instance": ".*", "$model": ".*"}

needed = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool"))
    and not os.environ.get("REQUIRE_PROMETHEUS"),
    reason="Prometheus is not installed here: apt-get install prometheus",
)


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    """What promtool says; it must be content."""
    ran = subprocess.run(
        ["promtool", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


class Prometheus:
    """A running Prometheus that scrapes one daemon every second."""

    def __init__(self, folder: Path, daemon_port: int) -> None:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        config = yaml.safe_load((promql.RULES.parent / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{daemon_port}"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        rules = yaml.safe_load(promql.RULES.read_text())
        for rule in rules["groups"][0]["rules"]:
            if "for" in rule:
                rule["for"] = f"{FOR_S}s"
        (folder / promql.RULES.name).write_text(yaml.safe_dump(rules))
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            daemons.until(self._is_up, what="Prometheus")
        except BaseException:  # no test knows of it yet that would end it
            self.stop()
            raise

    def _is_up(self) -> bool:
        assert self._process.poll() is None, "Prometheus ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False  # it does not listen yet, or answers 503 while it opens its storage

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[float]:
        """The values that an expression has now, of those series that have one."""
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        found = [float(series["value"][1]) for series in self._get("query", query=expression)["result"]]
        return [value for value in found if not math.isnan(value)]

    def state(self, alert: str) -> str:
        """`inactive`, `pending` or `firing`."""
        [state] = [
            rule["state"]
            for group in self._get("rules")["groups"]
            for rule in group["rules"]
            if rule["name"] == alert
        ]
        return str(state)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
