"""vLLM's processes on a CPU: forked from one that has imported vLLM, threads on the cores meant for them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from config import settings
from pipeline import kinds, vllm_processes
from tests.faults.processes import Process, all_processes, descendants

ROOT = Path(__file__).parents[2]
NAMES = ("EngineCore", "Worker")
MODEL = ROOT / "examples" / "tiny-adder"

PROGRAM = """
import os, torch
from pipeline import vllm_processes

torch.set_num_threads(2)  # starts a thread that is not OpenMP's
before = set(os.listdir("/proc/self/task"))
vllm_processes._bind({cores})
torch.ones(1000, 1000).exp().sum()
new = set(os.listdir("/proc/self/task")) - before
print(*(os.sched_getaffinity(int(each)) for each in (os.getpid(), *new)), sep="\\n")
assert torch.get_num_threads() == 2
"""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(150), pytest.mark.filterwarnings("default")]


def test_both_processes_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """They carry vLLM's names and environment, come from the server, and end with the engine."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "1")
    model = settings.VllmModel(
        name="tiny-adder", kind="vllm", source=str(MODEL), engine_args={"enforce_eager": True}
    )

    async def look() -> list[Process]:
        engine = kinds.make_engine(model)
        await engine.start()
        try:
            below = descendants(os.getpid())
            core, worker = (next(each for each in below if each.title == f"VLLM::{name}") for name in NAMES)
            assert "forkserver" in all_processes()[core.parent].title
            assert worker.parent == core.pid
            assert os.sched_getaffinity(worker.pid) == {1}
            assert os.sched_getaffinity(core.pid) == os.sched_getaffinity(0)
            return [core, worker]
        finally:
            await engine.stop()

    seen = asyncio.run(look())
    deadline = time.monotonic() + 20
    while left := all_processes().keys() & {each.pid for each in seen}:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_each_thread_of_torch_has_its_core() -> None:
    """As with GOMP_CPU_AFFINITY, which OpenMP reads when it is loaded."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    program = PROGRAM.format(cores=cores)
    libraries = vllm_processes._libraries()
    assert libraries, "PyTorch's OpenMP is not where it was"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_PRELOAD": ":".join(map(str, libraries)), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert Counter(answer.stdout.split("\n")[:-1]) == Counter(f"{{{core}}}" for core in cores)


def test_a_preload_of_the_user_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM spawns then, as it does by itself."""
    monkeypatch.setenv("LD_PRELOAD", "libiomp5.so")
    assert not vllm_processes.begin_imports()
