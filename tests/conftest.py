"""What the marks mean when tests run; fixtures stand beside the tests that use them.

`engine` tests are skipped where vLLM is not installed, and fail where it was promised: the Makefile installs
it and sets REQUIRE_ENGINE.
"""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import pytest

# The same examples in each run: a test that fails only for somebody else is no help. Fuzzing looks for more.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")

# An engine starts in 20 to 30 s on two idle cores (measured in November 2026), and takes longer on busy ones.
ENGINE_TIMEOUT_S = 300.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give engine tests their time limit, and skip them where they cannot run."""
    absent = importlib.util.find_spec("vllm") is None and not os.environ.get("REQUIRE_ENGINE")
    for item in items:
        if item.get_closest_marker("engine") is None:
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(ENGINE_TIMEOUT_S))
        if absent:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make install"))
